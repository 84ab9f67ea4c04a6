"""The sections of a run on a GPU: Lambda over n, L and w; the headline; one wide layer; packing against a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from _common.gpu_timing import interleaved_gpu_medians
from _common.gram_speed import random_gates
from _common.timing import readable_seconds
from torch import Tensor

import gatedops
from _gram.entry import Cell, Entry, Limit, entry_of, require_close, require_right, require_right_product
from _gram.gpu_limits import Rates, counts_limit, gpu_limit
from _gram.gpu_peers import (
    INT8,
    TRITON,
    Int8PerLayer,
    affordable_peers,
    counts_call,
    forced_kernel,
    gram_call,
    packing_kernel,
    torch_peer,
)
from _gram.gpu_sizes import GpuSizes
from _gram.gpu_trials import ALL, ContestantError, Trials, attributed, gpu_works
from _gram.packing import PackEntry, PackProblem, inputs
from gatedops import GateBits, reference
from gatedops.ops.gates import by_position

DEVICE = "cuda"
INPUTS, COLUMNS = 784, 10
LAMBDA, PIXELS, FLOATS = "Lambda", "Gram with x, uint8", "Gram with x, float32"
MATVEC, COUNTS = f"matvec, {COLUMNS} columns", "counts of two sets"
HEADER = ("problem", "what", "by", "median", "runs", "op/s", "limit", "by", "of limit", "/ ours")

Calls = dict[tuple[str, str], Callable[[], object]]  # (what, by) -> one run


@dataclass(frozen=True)
class Plan:
    """What every section is told. kernels: the chosen one first; peers: whether torch is timed beside them."""

    sizes: GpuSizes
    kernels: Sequence[str]
    rates: Rates | None
    peers: bool
    seed: int
    trials: Trials


def random_bits(cell: Cell, seed: int) -> GateBits:
    """Gates on with probability 1/2: power and so clocks depend on the data. Made on the GPU."""
    return random_gates(cell.n, cell.layers, cell.width, torch.Generator(DEVICE).manual_seed(seed))


def free_bytes() -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def timed(plan: Plan, cell: Cell, calls: Calls, limits: dict[str, Limit | None], repeats: int) -> list[Entry]:
    """All calls in turns; one that raises is noted, and the others are timed without it."""
    left = dict(calls)
    while left:
        named = {", ".join(key): attributed(key, call) for key, call in left.items()}
        try:
            times = interleaved_gpu_medians(named, repeats, label=str(cell))
        except ContestantError as error:
            if not gpu_works():
                raise  # an earlier call may be the one to blame
            plan.trials.note(*error.key, cell, error.error)
            del left[error.key]
        else:
            return [
                entry_of(what, by, cell, None, None, timing, limits.get(what))
                for (what, by), timing in zip(left, times.values(), strict=True)
            ]
    return []


def whole(plan: Plan, what: str, cell: Cell, measure: Callable[[Plan, Cell], list[Entry]]) -> list[Entry]:
    """The entries of a cell; none, and a failure of all, where something that its contestants share raises."""
    with plan.trials.trial(what, ALL, cell):
        return measure(plan, cell)
    return []


def sweep(plan: Plan) -> Iterator[list[Entry]]:
    """Cell by cell: Lambda by each of our kernels, and by the torch peers that a cell can afford."""
    for cell in plan.sizes.sweep:
        yield whole(plan, LAMBDA, cell, sweep_cell)


def sweep_cell(plan: Plan, cell: Cell) -> list[Entry]:
    bits = random_bits(cell, plan.seed)
    calls = gram_calls(plan, cell, bits, {LAMBDA: None})
    names = affordable_peers(cell, plan.sizes.peer_seconds, free_bytes()) if plan.peers else []
    for name in names:
        with plan.trials.trial(LAMBDA, name, cell):
            calls[LAMBDA, name] = called_once(torch_peer(name, bits.unpack(), cell))
    return timed(plan, cell, calls, {LAMBDA: gpu_limit(cell, plan.rates)}, plan.sizes.repeats)


def gram_calls(plan: Plan, cell: Cell, bits: GateBits, given: dict[str, Tensor | None]) -> Calls:
    """Grams of these inputs by each of our kernels that is right, all into one result."""
    out = torch.empty(cell.n, cell.n, device=DEVICE)
    calls: Calls = {}
    for what, x in given.items():
        for name in plan.kernels:
            with plan.trials.trial(what, name, cell):
                calls[what, name] = checked_gram(name, bits, x, out, f"{cell}, {what}, {name}")
    return calls


def checked_gram(name: str, bits: GateBits, x: Tensor | None, out: Tensor, problem: str) -> Callable[[], Tensor]:
    """One of our kernels, right on a sample. What another one left in `out` does not pass for its result."""
    call = gram_call(name, bits, x, out)
    out.fill_(torch.nan)
    if x is not None and x.is_floating_point():
        require_close(call, bits, x, problem)
    else:
        require_right(call, bits, problem, x)
    return call


def called_once(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A peer, which raises here what it raises at its first call."""
    call()
    return call


def headline(plan: Plan) -> Iterator[list[Entry]]:
    """One Gram without inputs, with bytes and with floats, and its matvec; and a matvec whose Gram fits nowhere."""
    yield whole(plan, "headline", plan.sizes.headline, headline_cell)
    if plan.sizes.never_stored is not None:
        yield whole(plan, MATVEC, plan.sizes.never_stored, never_stored)


def headline_cell(plan: Plan, cell: Cell) -> list[Entry]:
    bits = random_bits(cell, plan.seed)
    generator = torch.Generator(DEVICE).manual_seed(plan.seed + 1)
    pixels = torch.randint(0, 256, (cell.n, INPUTS), dtype=torch.uint8, device=DEVICE, generator=generator)
    given = {LAMBDA: None, PIXELS: pixels, FLOATS: pixels.float() / 255}
    calls = gram_calls(plan, cell, bits, given) | matvec_calls(plan, cell, bits)
    if plan.peers and INT8 in affordable_peers(cell, 10 * plan.sizes.peer_seconds, free_bytes()):
        calls |= int8_calls(plan, cell, bits, given)
    limits = {
        LAMBDA: gpu_limit(cell, plan.rates),
        PIXELS: gpu_limit(cell, plan.rates, INPUTS, "uint8"),
        FLOATS: gpu_limit(cell, plan.rates, INPUTS, "float32"),
    }
    return timed(plan, cell, calls, limits, plan.sizes.repeats)


def int8_calls(plan: Plan, cell: Cell, bits: GateBits, given: dict[str, Tensor | None]) -> Calls:
    """The same Grams by torch's products of int8 gates, which share the gates and the buffers."""
    calls: Calls = {}
    with plan.trials.trial("headline", INT8, cell):
        peer = Int8PerLayer(bits.unpack(), [1 / cell.width] * cell.layers)
        for what, x in given.items():
            with plan.trials.trial(what, INT8, cell):
                calls[what, INT8] = called_once(peer.with_inputs(x, tf32=what == PIXELS))
    return calls


def never_stored(plan: Plan, cell: Cell) -> list[Entry]:
    free_bytes()
    return timed(plan, cell, matvec_calls(plan, cell, random_bits(cell, plan.seed)), {}, 3)


def matvec_calls(plan: Plan, cell: Cell, bits: GateBits) -> Calls:
    """Lambda times a matrix by our chosen kernel, where it is right."""
    kernel, generator = plan.kernels[0], torch.Generator(DEVICE).manual_seed(plan.seed + 2)
    v = torch.randn(bits.n, COLUMNS, device=DEVICE, generator=generator)

    def product(v: Tensor) -> Tensor:
        with forced_kernel(kernel):
            return gatedops.npk_matvec(None, bits, v)

    calls: Calls = {}
    with plan.trials.trial(MATVEC, kernel, cell):
        require_right_product(product, bits, v, f"{cell}, {MATVEC}, {kernel}")
        calls[MATVEC, kernel] = lambda: product(v)
    return calls


def one_layer(plan: Plan) -> Iterator[list[Entry]]:
    """int32 counts of all pairs of two sets of rows, what a binary matrix product computes."""
    yield whole(plan, COUNTS, plan.sizes.one_layer, counts_cell)


def counts_cell(plan: Plan, cell: Cell) -> list[Entry]:
    x, y = random_bits(cell, plan.seed), random_bits(cell, plan.seed + 1)
    few = slice(0, 16)
    expected = reference.gate_overlap(x[few].to("cpu"), y[few].to("cpu"))

    def checked(name: str) -> Callable[[], Tensor]:
        call = counts_call(name, x, y)
        if not call()[:, few, few].cpu().equal(expected):
            raise RuntimeError(f"gatedops is wrong on {cell}, {name}")
        return call

    calls: Calls = {}
    for name in plan.kernels:
        if name != TRITON or name == plan.kernels[0]:
            with plan.trials.trial(COUNTS, name, cell):
                calls[COUNTS, name] = checked(name)
    return timed(plan, cell, calls, {COUNTS: counts_limit(cell, plan.rates)}, plan.sizes.repeats)


def packing(plan: Plan) -> Iterator[list[PackEntry]]:
    """Input by input: into reused words, against torch's copy of the input."""
    for name, make in inputs(plan.sizes.packing, plan.seed, DEVICE).items():
        entries: list[PackEntry] = []
        with plan.trials.trial("packing", packing_kernel(), name):
            entries.append(time_packing(PackProblem(name, make()), plan.sizes))
        yield entries


def time_packing(problem: PackProblem, sizes: GpuSizes) -> PackEntry:
    words, positions = torch.empty_like(gatedops.pack_gates(problem.q).words), by_position(problem.q)
    source, to = problem.raw, torch.empty_like(problem.raw)
    times = interleaved_gpu_medians(
        {
            "packing": lambda: torch.ops.gatedops.pack_gates_out(positions, out=words),
            "copy_": lambda: to.copy_(source),
        },
        sizes.repeats,
        label=f"packing {problem.name}",
    )
    return problem.entry(words, times["packing"], times["copy_"].median)


def operations(entry: Entry) -> float:
    """Two a pair of bits: of the unordered pairs of a symmetric problem, of all pairs of two sets."""
    if entry.what == COUNTS:
        return 2.0 * entry.cell.n**2 * entry.cell.bits_per_pair
    return 2.0 * entry.cell.bit_pairs


def rows_of(entries: Iterable[Entry], ours: str) -> list[tuple[str, ...]]:
    """Cells under HEADER; the last column is the time over that of our chosen kernel on the same problem."""
    entries = list(entries)
    base = {(e.cell, e.what): e.median_s for e in entries if e.by == ours}
    return [_row(entry, base.get((entry.cell, entry.what))) for entry in entries]


def _row(entry: Entry, ours_s: float | None) -> tuple[str, ...]:
    limit = ("-", "-", "-")
    if entry.limit is not None and entry.share is not None:
        limit = (readable_seconds(entry.limit.seconds), entry.limit.by, f"{entry.share:.0%}")
    ratio = "-" if ours_s is None else f"{entry.median_s / ours_s:.2f}x"
    time, rate = readable_seconds(entry.median_s), f"{operations(entry) / entry.median_s:.3g}"
    return str(entry.cell), entry.what, entry.by, time, str(entry.runs), rate, *limit, ratio


def entry_json(entry: Entry) -> dict[str, object]:
    return entry.to_json() | {"operations_per_second": operations(entry) / entry.median_s}
