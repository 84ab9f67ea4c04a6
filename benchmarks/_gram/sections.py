"""The sections of gram.py. Each yields its problems, and for each a function that times all contestants there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from _common.contest import OURS, Call, Contest, Entry, Failures, Key, always
from _common.machine import torch_threads
from _common.options import available_memory
from _common.output import Part
from _common.peers import MatmulPerLayer, require_right, require_right_product
from _common.problems import Cell, random_gates
from torch import Tensor

import gatedops
from _gram.numkong import UPPER
from _gram.platform import COLUMNS, COUNTS, FLOATS, INPUTS, LAMBDA, MATVEC, NEW, PIXELS, Inputs, Platform
from _gram.sizes import Budget, Sizes
from gatedops import GateBits, pack_gates, reference
from gatedops.ops.gates import by_position

CHECKED = 64  # rows of counts
CHANNELS, SIDE = 64, 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "bool": torch.bool}
SPARE = 1.25  # memory of a data set over that of its n x n result: gates, vectors, everything else

Make = Callable[[], Call]
Check = Callable[[Call], None]
Tensors = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Run:
    """What every section is told."""

    platform: Platform
    sizes: Sizes
    seed: int
    failures: Failures

    def cells(self, section: str) -> tuple[Cell, ...]:
        return self.sizes.cells.get(section, ())

    def on_threads(self, section: str) -> Iterator[tuple[Cell, str, int]]:
        """Yields each cell of a section with the name of its problem, on all threads, and on a CPU on one too."""
        counts = self.platform.threads
        for cell, count in product(self.cells(section), counts):
            yield cell, str(cell) if count == counts[0] else f"{cell}, one thread", count

    def generator(self, more: int = 0) -> torch.Generator:
        return torch.Generator(self.platform.device).manual_seed(self.seed + more)


class GramContest(Contest):
    """Contestants that look at all bit-pairs of a cell, by default at those of the symmetric Gram."""

    def __init__(self, run: Run, cell: Cell, problem: str = ""):
        super().__init__(problem or str(cell), run.failures, device=run.platform.device)
        self.task, self.platform, self.cell = run, run.platform, cell
        self.bits = random_gates(cell, run.seed, self.device)

    def add(self, what: str, by: str, make: Make, check: Check | None = None, work: float | None = None) -> None:
        limit, facts = self.platform.limit(what, by, self.cell), self.platform.facts(self.cell, by)
        work = work or self.cell.bit_pairs
        self.enter(what, by, make, check=check, work=work, unit="bit_pairs", limit=limit, facts=facts)

    def add_grams(self, kernels: Sequence[str], given: Inputs, seconds: float = 0) -> None:
        """Adds Grams of these inputs by our kernels, all into one result, and by the torch peers that take less than
        `seconds` for one."""
        out = torch.empty(self.cell.n, self.cell.n, device=self.device)

        def check(x: Tensor | None, call: Call) -> None:
            out.fill_(torch.nan)  # what another kernel left there does not pass for a result
            require_right(call, self.bits, x)

        for (what, x), kernel in product(given.items(), kernels):
            if x is None or kernel in self.platform.with_inputs:
                call = partial(self.platform.gram, kernel, self.bits, x, out)
                self.add(what, kernel, always(call), partial(check, x))
        if seconds:
            for what, by, make in self.platform.torch_grams(self.cell, self.bits, given, seconds):
                self.add(what, by, make)

    def add_product(self) -> None:
        """Adds Lambda times a matrix by the chosen kernel."""
        kernel = self.platform.kernels[0]
        times = partial(self.platform.product, kernel, self.bits)
        v = torch.randn(self.cell.n, COLUMNS, device=self.device, generator=self.task.generator(2))
        self.add(MATVEC, kernel, always(partial(times, v)), lambda _: require_right_product(times, self.bits, v))

    def timed(self, budget: Budget, base: dict[str, Key] | None = None) -> list[Entry]:
        return self.run(budget.repeats, seconds=budget.seconds, base=base)


def sweep(run: Run) -> Iterator[Part]:
    """Times Lambda over n, L and w, by our kernels and by the torch peers that a cell can afford."""

    def measure(cell: Cell) -> list[Entry]:
        contest, seconds = GramContest(run, cell), run.sizes.peer_seconds
        contest.add_grams(run.platform.sweep_kernels(contest.bits, seconds), {LAMBDA: None}, seconds)
        return contest.timed(run.sizes.wide)

    for cell in run.cells("sweep"):
        yield str(cell), partial(measure, cell)


def headline(run: Run) -> Iterator[Part]:
    """Times one cell by every kernel: Lambda, Grams with inputs, products. On a CPU, Lambda alone follows on one
    thread; on a GPU, a product whose Gram fits into no memory."""

    def measure(cell: Cell, problem: str, count: int) -> list[Entry]:
        platform, shape = run.platform, (cell.n, INPUTS)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=platform.device, generator=run.generator(1))
        x = pixels.float() / 255
        given: Inputs = {LAMBDA: None, PIXELS: pixels, FLOATS: x}
        whole = count == platform.threads[0]
        with torch_threads(count):
            contest = GramContest(run, cell, problem)
            contest.add_grams(platform.kernels, given if whole else {LAMBDA: None}, 10 * run.sizes.peer_seconds)
            if whole:
                contest.add_product()
                for what, by, make in platform.extras(contest.bits, x):
                    contest.enter(what, by, make, facts=platform.facts(cell, by))
            alone = {what for what, _ in contest.contestants} - set(given)
            return contest.timed(run.sizes.deep, dict.fromkeys(alone, (LAMBDA, platform.kernels[0])))

    def measure_product(cell: Cell) -> list[Entry]:
        run.platform.memory()  # gives back what the cells before left to torch
        contest = GramContest(run, cell)
        contest.add_product()
        return contest.timed(Budget(3))

    for cell, problem, count in run.on_threads("headline"):
        yield problem, partial(measure, cell, problem, count)
    for cell in run.cells("never stored"):
        yield str(cell), partial(measure_product, cell)


def data_set(run: Run) -> Iterator[Part]:
    """Times Lambda of as many points as a whole data set has: without the matrix, into a new result, into a reused one.

    One n x n result at a time is alive. A new one is timed with the memory that the system gives it.
    """

    def measure(cell: Cell) -> list[Entry]:
        entries: list[Entry] = []
        for what in (MATVEC, NEW, LAMBDA):
            contest = GramContest(run, cell)
            if what == MATVEC:
                contest.add_product()
            elif what == NEW:
                contest.add(NEW, OURS, always(partial(gatedops.npk_gram, None, contest.bits)))
            else:
                contest.add_grams([OURS], {LAMBDA: None})
            entries += contest.timed(run.sizes.wide)
        base = next((entry.median_s for entry in entries if entry.what == LAMBDA), None)
        return [replace(entry, ratio=base and entry.median_s / base) for entry in entries]

    for cell in run.cells("data-set"):
        needed, available = int(SPARE * 4 * cell.n**2), available_memory()
        if available is not None and needed > available:
            print(f"left out: {cell} needs {needed / 2**30:.1f} GiB of memory, more than is left")
        else:
            yield str(cell), partial(measure, cell)


def one_core(run: Run) -> Iterator[Part]:
    """Times Lambda on one thread with the two fastest instruction sets. Counting takes nearly all of the time here, so
    the share of the limit is that of the inner loop."""

    def measure(cell: Cell) -> list[Entry]:
        with torch_threads(1):
            contest = GramContest(run, cell)
            contest.add_grams(run.platform.kernels[1:3], {LAMBDA: None})
            return contest.timed(run.sizes.deep)

    for cell in run.cells("one-core"):
        yield str(cell), partial(measure, cell)


def one_layer(run: Run) -> Iterator[Part]:
    """Times int32 counts of one layer: on a CPU those of one set of points, beside Lambda and NumKong; on a GPU those
    of all pairs of two sets, which is what a binary matrix product computes."""

    def measure(cell: Cell, problem: str, count: int) -> list[Entry]:
        platform = run.platform
        with torch_threads(count):
            contest = GramContest(run, cell, problem)
            x, y = contest.bits, platform.other_gates(cell, run.seed + 1)
            if y is None:
                contest.add_grams([OURS], {LAMBDA: None})
            work = None if y is None else cell.n**2 * cell.bits_per_pair
            for kernel in platform.layer_kernels:
                check = partial(require_counts, x, y)
                contest.add(COUNTS, kernel, always(partial(platform.counts, kernel, x, y)), check, work)
            for what, by, make in platform.layer_peers(x):
                contest.add(what, by, make, partial(require_counts, x, None, triangle=what == UPPER))
            base = {what: (LAMBDA, OURS) for what, _ in contest.contestants} if y is None else None
            return contest.timed(run.sizes.deep, base)

    for cell, problem, count in run.on_threads("one-layer"):
        yield problem, partial(measure, cell, problem, count)


def require_counts(x: GateBits, y: GateBits | None, call: Call, *, triangle: bool = False) -> None:
    """Raises RuntimeError unless some of the counts are the reference's, or their upper triangle is."""
    at = torch.linspace(0, x.n - 1, min(x.n, CHECKED)).long()
    left, right = (bits[at.to(bits.device)].to("cpu") for bits in (x, x if y is None else y))
    found = call().reshape(x.n, x.n)[at.to(x.device)][:, at.to(x.device)].cpu()
    expected = reference.gate_overlap(left, right)[0]
    if not (found.triu().equal(expected.triu()) if triangle else found.equal(expected)):
        raise RuntimeError("the counts are wrong: they differ from the reference")


def packing(run: Run) -> Iterator[Part]:
    """Packs pre-activations into reused words, beside copies of them. The rates are bytes of input per second."""

    def measure(name: str, make_input: Callable[[], Tensor]) -> list[Entry]:
        q, contest = make_input(), Contest(name, run.failures, device=run.platform.device)

        def packer() -> Call:
            words, positions = torch.zeros_like(pack_gates(q).words), by_position(q)

            def call() -> Tensor:
                torch.ops.gatedops.pack_gates_out(positions, out=words)
                return words

            return call

        enter = partial(contest.enter, "packing", work=q.nbytes, unit="bytes")
        limit = run.platform.packing_limit(q)
        enter(run.platform.packer, packer, check=partial(require_packed, q), limit=limit)
        memory = q.permute(0, 2, 3, 1) if q.dim() == 4 and not q.is_contiguous() else q
        source = memory.view(torch.uint8).flatten()
        for by, copy in run.platform.copies(torch.empty_like(source), source).items():
            enter(by, always(copy))
        return contest.run(run.sizes.deep.repeats, seconds=run.sizes.deep.seconds)

    for name, make_input in inputs(run.sizes.packing, run).items():
        yield name, partial(measure, name, make_input)


def inputs(size: int, run: Run) -> dict[str, Callable[[], Tensor]]:
    """Makes inputs of about `size` bytes each: dense layers of several dtypes, images in both memory layouts."""

    def dense(dtype: torch.dtype) -> Tensor:
        shape = (size // dtype.itemsize // 4096 or 1, 4096)
        q = torch.randn(shape, generator=run.generator(), device=run.platform.device)
        return q > 0 if dtype == torch.bool else q.to(dtype)

    def images() -> Tensor:
        shape = (size // (4 * CHANNELS * SIDE**2) or 1, CHANNELS, SIDE, SIDE)
        return torch.randn(shape, generator=run.generator(), device=run.platform.device)

    return {f"(n, 4096) {name}": partial(dense, dtype) for name, dtype in DTYPES.items()} | {
        f"NCHW float32, {CHANNELS} channels": images,
        f"NHWC float32, {CHANNELS} channels": lambda: images().contiguous(memory_format=torch.channels_last),
    }


def require_packed(q: Tensor, call: Call) -> None:
    """Raises RuntimeError unless the first rows of the words are the reference's."""
    words, few = call(), slice(0, 3)
    if not words[few].cpu().equal(reference.pack_gates(q[few].cpu()).words):
        raise RuntimeError("the words are wrong: they differ from the reference")


def scaling(run: Run) -> Iterator[Part]:
    """Measures the exponent of the time of Lambda in n (2 if counting is the limit) and in the bits per pair (1)."""

    def measure(by: str) -> list[Entry]:
        found: dict[Cell, Entry] = {}
        for cell in run.cells(by):
            contest = GramContest(run, cell)
            contest.add_grams([OURS], {LAMBDA: None})
            found |= dict(zip([cell], contest.timed(run.sizes.wide), strict=False))
        sizes = [cell.n if by == "by n" else cell.bits_per_pair for cell in found]
        slope = exponent(sizes, [entry.median_s for entry in found.values()])
        return [replace(entry, facts={**entry.facts, "grows": by, "exponent": slope}) for entry in found.values()]

    for by in ("by n", "by bits"):
        yield by, partial(measure, by)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Returns the slope b of seconds ~ size^b: the least squares line through the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope


def soft(run: Run) -> Iterator[Part]:
    """Times the Gram of real-valued gates, and its gradient, beside plain torch: products per layer, and autograd."""

    def measure(cell: Cell) -> list[Entry]:
        gates = [torch.rand(cell.n, cell.width, generator=run.generator(layer)) for layer in range(cell.layers)]
        learned = [gate.clone().requires_grad_() for gate in gates]
        cotangent = torch.rand(cell.n, cell.n, generator=run.generator())
        plain = MatmulPerLayer(gates, [1 / cell.width] * cell.layers, torch.float32)
        contest = Contest(str(cell), run.failures)

        def enter(what: str, ours: Tensors, theirs: Tensors) -> None:
            for by, call, check in ((OURS, ours, partial(require_close, theirs)), ("torch", theirs, None)):
                contest.enter(what, by, always(call), check=check, facts=run.platform.facts(cell, by))

        def gradient(gram: Callable[..., Tensor]) -> Tensors:
            return lambda: torch.autograd.grad(gram(None, learned), learned, cotangent)

        enter("soft Gram", lambda: (gatedops.soft_npk_gram(None, gates),), lambda: (plain(),))
        enter("soft Gram and gradient", gradient(gatedops.soft_npk_gram), gradient(reference.soft_npk_gram))
        return contest.run(run.sizes.deep.repeats, seconds=run.sizes.deep.seconds)

    for cell in run.cells("soft"):
        yield str(cell), partial(measure, cell)


def require_close(expected: Tensors, call: Tensors) -> None:
    """Raises RuntimeError unless each tensor is what is expected, to float32's accuracy."""
    for found, right in zip(call(), expected(), strict=True):
        if (found - right).abs().max() > 1e-4 * right.abs().max():
            raise RuntimeError("the result is wrong: it differs from plain torch")


ALL = (sweep, headline, data_set, one_core, one_layer, packing, scaling, soft)
SECTIONS = {section.__name__.replace("_", "-"): section for section in ALL}
ON_GPUS = ("sweep", "headline", "one-layer", "packing")
