"""One cell in depth: Lambda, the Gram with inputs, the matvec, every instruction set, one thread and all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from _common.gram_speed import random_problem
from _common.machine import clock_hz
from _common.peers import InputMatmul, MatmulPerLayer
from _common.timing import interleaved_medians, readable_seconds
from torch import Tensor

import gatedops
from _gram.entry import Cell, Entry, entry_of, gram_limit, require_right
from _gram.portable import PORTABLE, portable_lambda
from _gram.sweep import PEERS, Budget
from gatedops import GateBits, backends

INPUTS, COLUMNS = 784, 10
HEADER = ("what", "by", "instruction set", "threads", "median", "runs", "best", "of limit", "/ Lambda")
INPUT_MATMUL = "x @ x.T alone"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch runs on `count` threads inside the block, and gatedops with it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lambda_on(isa: str, bits: GateBits, out: Tensor) -> Callable[[], Tensor]:
    """Lambda alone with one instruction set, into `out`."""

    def call() -> Tensor:
        with backends.force_cpu(isa):
            return gatedops.npk_gram(None, bits, out=out)

    require_right(call, bits, f"{isa}, n={bits.n}")
    return call


def headline(cell: Cell, report: dict[str, object], budget: Budget, *, peers: bool, seed: int) -> list[Entry]:
    """Everything on all threads, in turns, and then Lambda alone on one; with `peers`, portable and torch too."""
    problem = random_problem(cell.n, cell.layers, cell.width, INPUTS, seed)
    bits, x = problem.bits, problem.x
    assert x is not None
    out = torch.empty(cell.n, cell.n)
    others: dict[tuple[str, str], Callable[[], Tensor]] = {}
    if peers:
        masks, factors = bits.unpack(), [1 / cell.width] * cell.layers
        others = {("Lambda", PORTABLE): portable_lambda(bits, out)}
        others |= {("Lambda", name): MatmulPerLayer(masks, factors, dtype) for name, dtype in PEERS.items()}
    lambdas = {("Lambda", isa): lambda_on(isa, bits, out) for isa in backends.available_isas()}
    with_inputs = _with_inputs(bits, x, out)
    if peers:
        with_inputs[INPUT_MATMUL, "torch float32"] = InputMatmul(x)
    count = torch.get_num_threads()
    entries = _timed(cell, lambdas | others | with_inputs, count, report, budget)
    if count > 1:
        with threads(1):
            entries += _timed(cell, lambdas | others, 1, report, budget)
    return entries


def _with_inputs(bits: GateBits, x: Tensor, out: Tensor) -> dict[tuple[str, str], Callable[[], Tensor]]:
    """What else the fastest instruction set does: (what, instruction set) -> call."""
    v = torch.randn(bits.n, COLUMNS, generator=torch.Generator().manual_seed(0))
    pixels = (x * 255).to(torch.uint8)
    isa = backends.active_isa()
    return {
        ("Gram with x, float32", isa): lambda: gatedops.npk_gram(x, bits, out=out),
        ("Gram with x, uint8", isa): lambda: gatedops.npk_gram(pixels, bits, out=out),
        (f"matvec, {COLUMNS} columns", isa): lambda: gatedops.npk_matvec(None, bits, v),
        (f"matvec with x, {COLUMNS} columns", isa): lambda: gatedops.npk_matvec(x, bits, v),
        ("10 nearest of each", isa): lambda: gatedops.gate_neighbors(bits, 10)[0],
        ("Lambda, a new (n, n)", isa): lambda: gatedops.npk_gram(None, bits),
        ("counts, a new (L, n, n)", isa): lambda: gatedops.gate_overlap(bits),
    }


def _timed(
    cell: Cell,
    functions: Mapping[tuple[str, str], Callable[[], Tensor]],
    count: int,
    report: dict[str, object],
    budget: Budget,
) -> list[Entry]:
    """functions: (what, by) -> call; by is a peer, portable or an instruction set. The limits are those at the clock of
    the same turns: on a shared machine it wanders by a third within minutes."""
    clocks: list[float | None] = []
    named = {f"{what}, {by}": call for (what, by), call in functions.items()}
    named["clock"] = lambda: clocks.append(clock_hz())
    times = interleaved_medians(named, budget.repeats, seconds=budget.seconds, label=f"{cell}, {count} threads")
    del times["clock"]
    measured = [clock for clock in clocks if clock is not None]
    report = report | {"clock_hz": statistics.median(measured) if measured else None}
    entries = []
    for (what, by), timing in zip(functions, times.values(), strict=True):
        ours = by in backends.available_isas()
        limit = gram_limit(cell, report, by, count) if ours and what == "Lambda" else None
        entries.append(entry_of(what, "gatedops" if ours else by, cell, count, by if ours else None, timing, limit))
    return entries


def one_core(cell: Cell, report: dict[str, object], budget: Budget, seed: int) -> list[Entry]:
    """Lambda on one thread where counting is all there is, with the two fastest instruction sets: the share of the
    bound is that of the inner loop."""
    bits = random_problem(cell.n, cell.layers, cell.width, None, seed).bits
    out = torch.empty(cell.n, cell.n)
    isas = backends.available_isas()[-2:]
    with threads(1):
        return _timed(cell, {("Lambda", isa): lambda_on(isa, bits, out) for isa in isas}, 1, report, budget)


def popcount_seconds(entries: list[Entry]) -> float | None:
    """What VPOPCNTQ needs at least for the counts of these entries; None where the CPU has none."""
    limits = (entry.limit for entry in entries if entry.instruction_set == "avx512")
    return next((limit.counts_s for limit in limits if limit is not None), None)


def headline_rows(entries: list[Entry]) -> list[tuple[str, ...]]:
    """Cells under HEADER; times are over that of Lambda alone with the fastest set on as many threads."""
    rows = []
    for entry in entries:
        base = lambda_entry(entries, entry.threads)
        share = "-" if entry.share is None or entry.limit is None else f"{entry.share:.0%} ({entry.limit.by})"
        rows.append(
            (
                entry.what,
                entry.by,
                entry.instruction_set or "-",
                str(entry.threads),
                readable_seconds(entry.median_s),
                str(entry.runs),
                readable_seconds(entry.best_s),
                share,
                f"{entry.median_s / base.median_s:.2f}x",
            )
        )
    return rows


def lambda_entry(entries: list[Entry], count: int) -> Entry:
    """Lambda alone with the fastest instruction set on `count` threads."""
    return next(
        e
        for e in reversed(entries)
        if e.what == "Lambda" and e.threads == count and e.instruction_set == backends.available_isas()[-1]
    )
