"""The sections of a run on a GPU: Lambda over n, L and w; the headline; one wide layer; packing against a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from _common.gpu_timing import interleaved_gpu_medians
from _common.gram_speed import random_gates
from _common.timing import readable_seconds
from torch import Tensor

import gatedops
from _gram.entry import Cell, Entry, Limit, entry_of, require_close, require_right
from _gram.gpu_limits import Rates, counts_limit, gpu_limit
from _gram.gpu_peers import INT8, TRITON, Int8PerLayer, affordable_peers, forced_kernel, gram_call, torch_peer
from _gram.gpu_sizes import GpuSizes
from _gram.packing import PackEntry, PackProblem, inputs
from gatedops import GateBits, reference
from gatedops.ops.gates import by_position

DEVICE = "cuda"
INPUTS, COLUMNS = 784, 10
LAMBDA, PIXELS, FLOATS = "Lambda", "Gram with x, uint8", "Gram with x, float32"
MATVEC, COUNTS = f"matvec, {COLUMNS} columns", "counts of two sets"
HEADER = ("problem", "what", "by", "median", "runs", "op/s", "limit", "by", "of limit", "/ ours")

Calls = dict[tuple[str, str], Callable[[], object]]  # (what, by) -> one run


def random_bits(cell: Cell, seed: int) -> GateBits:
    """Gates on with probability 1/2: power and so clocks depend on the data. Made on the GPU."""
    return random_gates(cell.n, cell.layers, cell.width, torch.Generator(DEVICE).manual_seed(seed))


def free_bytes() -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def timed(cell: Cell, calls: Calls, limits: dict[str, Limit | None], repeats: int) -> list[Entry]:
    named = {f"{what}, {by}": call for (what, by), call in calls.items()}
    times = interleaved_gpu_medians(named, repeats, label=str(cell))
    return [
        entry_of(what, by, cell, None, None, timing, limits.get(what))
        for (what, by), timing in zip(calls, times.values(), strict=True)
    ]


def sweep(sizes: GpuSizes, kernels: Sequence[str], rates: Rates | None, *, peers: bool, seed: int) -> list[Entry]:
    """Lambda by each of our kernels, and by the torch peers that a cell can afford."""
    entries: list[Entry] = []
    for cell in sizes.sweep:
        bits = random_bits(cell, seed)
        out = torch.empty(cell.n, cell.n, device=DEVICE)
        calls: Calls = {}
        for name in kernels:
            call = gram_call(name, bits, None, out)
            require_right(call, bits, f"{cell}, {name}")
            calls[LAMBDA, name] = call
        names = affordable_peers(cell, sizes.peer_seconds, free_bytes()) if peers else []
        masks = bits.unpack() if names else []
        calls |= {(LAMBDA, name): torch_peer(name, masks, cell) for name in names}
        entries += timed(cell, calls, {LAMBDA: gpu_limit(cell, rates)}, sizes.repeats)
    return entries


def headline(sizes: GpuSizes, kernels: Sequence[str], rates: Rates | None, *, peers: bool, seed: int) -> list[Entry]:
    """One Gram without inputs, with bytes and with floats, and its matvec; and a matvec whose Gram fits nowhere."""
    cell = sizes.headline
    bits = random_bits(cell, seed)
    generator = torch.Generator(DEVICE).manual_seed(seed + 1)
    pixels = torch.randint(0, 256, (cell.n, INPUTS), dtype=torch.uint8, device=DEVICE, generator=generator)
    given = {LAMBDA: None, PIXELS: pixels, FLOATS: pixels.float() / 255}
    out = torch.empty(cell.n, cell.n, device=DEVICE)
    calls: Calls = {}
    for what, x in given.items():
        for name in kernels:
            call = gram_call(name, bits, x, out)
            if what == FLOATS:
                require_close(call, bits, given[FLOATS], f"{cell}, {what}, {name}")
            else:
                require_right(call, bits, f"{cell}, {what}, {name}", x)
            calls[what, name] = call
    calls[MATVEC, kernels[0]] = matvec_call(kernels[0], bits, seed)
    if peers and INT8 in affordable_peers(cell, 10 * sizes.peer_seconds, free_bytes()):
        masks, factors = bits.unpack(), [1 / cell.width] * cell.layers
        peer = Int8PerLayer(masks, factors)
        del masks
        calls |= {(what, INT8): peer.with_inputs(x, tf32=what == PIXELS) for what, x in given.items()}
    limits = {
        LAMBDA: gpu_limit(cell, rates),
        PIXELS: gpu_limit(cell, rates, INPUTS, "uint8"),
        FLOATS: gpu_limit(cell, rates, INPUTS, "float32"),
    }
    entries = timed(cell, calls, limits, sizes.repeats)
    del calls, out, bits
    return entries + never_stored(sizes, kernels[0], seed)


def never_stored(sizes: GpuSizes, kernel: str, seed: int) -> list[Entry]:
    cell = sizes.never_stored
    if cell is None:
        return []
    free_bytes()
    return timed(cell, {(MATVEC, kernel): matvec_call(kernel, random_bits(cell, seed), seed)}, {}, 3)


def matvec_call(kernel: str, bits: GateBits, seed: int) -> Callable[[], Tensor]:
    v = torch.randn(bits.n, COLUMNS, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(seed + 2))

    def call() -> Tensor:
        with forced_kernel(kernel):
            return gatedops.npk_matvec(None, bits, v)

    return call


def one_layer(sizes: GpuSizes, kernels: Sequence[str], rates: Rates | None, seed: int) -> list[Entry]:
    """int32 counts of all pairs of two sets of rows, what a binary matrix product computes."""
    cell = sizes.one_layer
    x, y = random_bits(cell, seed), random_bits(cell, seed + 1)
    few = slice(0, 16)
    expected = reference.gate_overlap(x[few].to("cpu"), y[few].to("cpu"))

    def call_of(name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with forced_kernel(name):
                return gatedops.gate_overlap(x, y)

        if not call()[:, few, few].cpu().equal(expected):
            raise RuntimeError(f"gatedops is wrong on {cell}, {name}")
        return call

    ours = [name for name in kernels if name != TRITON] or list(kernels)
    calls: Calls = {(COUNTS, name): call_of(name) for name in ours}
    return timed(cell, calls, {COUNTS: counts_limit(cell, rates)}, sizes.repeats)


def packing(sizes: GpuSizes, seed: int) -> list[PackEntry]:
    """Into reused words, against torch's copy of the input."""
    made = inputs(sizes.packing, seed, DEVICE)
    return [time_packing(PackProblem(name, make()), sizes) for name, make in made.items()]


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
