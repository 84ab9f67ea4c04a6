"""Lambda over n, L and w: time, rate, share of the machine's limit; portable and torch where they are affordable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from _common.gram_speed import random_problem
from _common.options import available_memory
from _common.peers import MatmulPerLayer
from _common.timing import Timing, interleaved_medians, readable_seconds
from torch import Tensor
from tqdm import tqdm

import gatedops
from _gram.entry import Cell, Entry, entry_of, gram_limit, require_right
from _gram.portable import PORTABLE, portable_lambda, portable_seconds

PEERS = {"torch float32": torch.float32, "torch bfloat16": torch.bfloat16}
OTHERS = (PORTABLE, *PEERS)
HEADER = ("n", "L", "w", "median", "runs", "bit-pairs/s", "limit", "by", "of limit", *(f"{o} / ours" for o in OTHERS))
PROBE = 2048  # rows and columns of the product that tells how fast torch multiplies


@dataclass(frozen=True)
class Budget:
    """repeats   runs of a fast function
    seconds      for all runs of one function in one cell; at least three are made
    peer_seconds a peer, or portable, that would need longer for one run is left out
    """

    repeats: int
    seconds: float
    peer_seconds: float


def sweep(cells: Sequence[Cell], report: dict[str, object], budget: Budget, *, peers: bool, seed: int) -> list[Entry]:
    """Entries of gatedops and, with `peers`, of portable and of the peers that each cell can afford."""
    rates = multiply_rates() if peers else {}
    entries: list[Entry] = []
    for cell in tqdm(cells, desc="sweep", unit="cell", leave=False, disable=None):
        entries += time_cell(cell, report, budget, rates, seed)
    return entries


def time_cell(cell: Cell, report: dict[str, object], budget: Budget, rates: dict[str, float], seed: int) -> list[Entry]:
    """rates: those of the peers; none: gatedops alone."""
    bits = random_problem(cell.n, cell.layers, cell.width, None, seed).bits
    out = torch.empty(cell.n, cell.n)
    functions: dict[str, Callable[[], Tensor]] = {"gatedops": lambda: gatedops.npk_gram(None, bits, out=out)}
    require_right(functions["gatedops"], bits, str(cell))
    if rates and portable_seconds(bits) < budget.peer_seconds:
        functions[PORTABLE] = portable_lambda(bits, out)
    for name, rate in rates.items():
        if is_affordable(cell, PEERS[name], rate, budget.peer_seconds):
            functions[name] = MatmulPerLayer(bits.unpack(), [1 / cell.width] * cell.layers, PEERS[name])
    times = interleaved_medians(functions, budget.repeats, seconds=budget.seconds, label=str(cell))
    return [_entry(cell, name, timing, report) for name, timing in times.items()]


def _entry(cell: Cell, name: str, timing: Timing, report: dict[str, object]) -> Entry:
    threads, isa = torch.get_num_threads(), str(report["instruction_set"])
    if name != "gatedops":
        return entry_of("Lambda", name, cell, threads, None, timing)
    return entry_of("Lambda", name, cell, threads, isa, timing, gram_limit(cell, report, isa, threads))


def multiply_rates() -> dict[str, float]:
    """Multiply-adds per second of torch.mm in the dtype of each peer."""
    rates = {}
    for name, dtype in PEERS.items():
        a, out = torch.ones(PROBE, PROBE, dtype=dtype), torch.empty(PROBE, PROBE, dtype=dtype)
        best = interleaved_medians({name: lambda a=a, out=out: torch.mm(a, a, out=out)}, 3)[name].best
        rates[name] = PROBE**3 / best
    return rates


def is_affordable(cell: Cell, dtype: torch.dtype, rate: float, seconds: float) -> bool:
    """Whether one run stays below `seconds`, and masks, gates as numbers and two n x n buffers in half the memory."""
    needed = 2 * cell.n**2 * dtype.itemsize + cell.n * cell.bits_per_pair * (1 + dtype.itemsize)
    memory = available_memory()
    fits = memory is None or needed < memory / 2
    return fits and cell.n**2 * cell.bits_per_pair / rate < seconds


def sweep_rows(entries: Iterable[Entry]) -> list[tuple[str, ...]]:
    """Cells under HEADER, one row a cell of the sweep."""
    by_cell: dict[Cell, dict[str, Entry]] = {}
    for entry in entries:
        by_cell.setdefault(entry.cell, {})[entry.by] = entry
    return [_row(cell, found) for cell, found in by_cell.items()]


def _row(cell: Cell, found: dict[str, Entry]) -> tuple[str, ...]:
    ours = found["gatedops"]
    limit = ("-", "-", "-")
    if ours.limit is not None and ours.share is not None:
        limit = (readable_seconds(ours.limit.seconds), ours.limit.by, f"{ours.share:.0%}")
    ratios = (f"{found[o].median_s / ours.median_s:.1f}x" if o in found else "-" for o in OTHERS)
    time, rate = readable_seconds(ours.median_s), f"{ours.bit_pairs_per_second:.3g}"
    return str(cell.n), str(cell.layers), str(cell.width), time, str(ours.runs), rate, *limit, *ratios


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope b of seconds ~ size^b: the least squares line through the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope
