"""The sections of gram.py. Each yields its problems, and for each a function that times all contestants there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from _common.contest import OURS, Call, Contest, Entry, Failures, Key
from _common.options import available_memory
from _common.peers import MatmulPerLayer, require_right, require_right_product
from _common.problems import Cell, random_gates
from torch import Tensor

import gatedops
from _gram.cpu import threads
from _gram.platform import COLUMNS, COUNTS, FLOATS, INPUTS, LAMBDA, MATVEC, NEW, PIXELS, Inputs, Platform
from _gram.sizes import Budget, Sizes
from gatedops import GateBits, pack_gates, reference
from gatedops.ops.gates import by_position

CHECKED = 64  # rows of counts
CHANNELS, SIDE = 64, 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "bool": torch.bool}
SPARE = 1.25  # memory of a data set over that of its n x n result: gates, vectors, everything else

Part = tuple[str, Callable[[], list[Entry]]]  # a problem, and what times its contestants


@dataclass(frozen=True)
class Run:
    """What every section is told."""

    platform: Platform
    sizes: Sizes
    seed: int
    failures: Failures

    def cells(self, section: str) -> tuple[Cell, ...]:
        return self.sizes.cells.get(section, ())

    def gates(self, cell: Cell) -> GateBits:
        return random_gates(cell, self.seed, self.platform.device)

    def generator(self, more: int = 0) -> torch.Generator:
        return torch.Generator(self.platform.device).manual_seed(self.seed + more)

    def on_threads(self, section: str) -> Iterator[tuple[Cell, str, int]]:
        """The cells of a section, each with its problem's name for all threads, and on a CPU for one."""
        counts = self.platform.threads
        for cell, count in product(self.cells(section), counts):
            yield cell, str(cell) if count == counts[0] else f"{cell}, one thread", count

    def contest(self, problem: object) -> Contest:
        return Contest(str(problem), self.failures, device=self.platform.device)

    def enter(
        self,
        contest: Contest,
        cell: Cell,
        what: str,
        by: str,
        make: Callable[[], Call],
        check: Callable[[Call], None] | None = None,
        work: float | None = None,
    ) -> None:
        """Enters a contestant that looks at all bit-pairs of a cell, by default those of the symmetric Gram."""
        limit, facts = self.platform.limit(what, by, cell), self.platform.facts(cell, by)
        contest.enter(
            what, by, make, check=check, work=work or cell.bit_pairs, unit="bit_pairs", limit=limit, facts=facts
        )

    def enter_grams(
        self, contest: Contest, cell: Cell, bits: GateBits, kernels: Sequence[str], given: Inputs, seconds: float = 0
    ) -> None:
        """Enters Grams of these inputs by our kernels, all into one result, and by the torch peers that take less than
        `seconds` for one."""
        out = torch.empty(cell.n, cell.n, device=bits.device)

        def check(x: Tensor | None, call: Call) -> None:
            out.fill_(torch.nan)  # what another kernel left there does not pass for a result
            require_right(call, bits, x)

        for what, x in given.items():
            for kernel in kernels:
                make = partial(self.platform.gram, kernel, bits, x, out)
                self.enter(contest, cell, what, kernel, make, partial(check, x))
        for what, by, make in self.platform.torch_grams(cell, bits, given, seconds) if seconds else ():
            self.enter(contest, cell, what, by, make)

    def enter_product(self, contest: Contest, cell: Cell, bits: GateBits) -> None:
        """Enters Lambda times a matrix by the chosen kernel."""
        kernel = self.platform.kernels[0]
        times = self.platform.product(kernel, bits)
        v = torch.randn(bits.n, COLUMNS, device=bits.device, generator=self.generator(2))
        self.enter(
            contest,
            cell,
            MATVEC,
            kernel,
            lambda: partial(times, v),
            lambda _: require_right_product(times, bits, v),
        )


def timed(contest: Contest, budget: Budget, base: Key | dict[str, Key] | None = None) -> list[Entry]:
    return contest.run(budget.repeats, seconds=budget.seconds, base=base)


def sweep(run: Run) -> Iterator[Part]:
    """Lambda over n, L and w, by our kernels and by the torch peers that a cell can afford."""

    def measure(cell: Cell) -> list[Entry]:
        bits, contest, seconds = run.gates(cell), run.contest(cell), run.sizes.peer_seconds
        run.enter_grams(contest, cell, bits, run.platform.sweep_kernels(bits, seconds), {LAMBDA: None}, seconds)
        return timed(contest, run.sizes.wide)

    for cell in run.cells("sweep"):
        yield str(cell), partial(measure, cell)


def headline(run: Run) -> Iterator[Part]:
    """One cell by every kernel: Lambda, Grams with inputs, products; Lambda alone on one thread; and a product whose
    Gram fits into no memory."""

    def measure(cell: Cell, problem: str, count: int) -> list[Entry]:
        platform, whole = run.platform, count == run.platform.threads[0]
        with threads(count):
            bits, contest = run.gates(cell), run.contest(problem)
            shape = (cell.n, INPUTS)
            pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=platform.device, generator=run.generator(1))
            x = pixels.float() / 255
            given: Inputs = {LAMBDA: None, **({PIXELS: pixels, FLOATS: x} if whole else {})}
            run.enter_grams(contest, cell, bits, platform.kernels, given, 10 * run.sizes.peer_seconds)
            base = {MATVEC: (LAMBDA, platform.kernels[0])}
            if whole:
                run.enter_product(contest, cell, bits)
                for what, by, make in platform.extras(bits, x):
                    contest.enter(what, by, make, facts=platform.facts(cell, by))
                    base |= {} if what in given else {what: base[MATVEC]}
            return timed(contest, run.sizes.deep, base)

    def measure_product(cell: Cell) -> list[Entry]:
        run.platform.memory()  # gives back what the cells before left to torch
        contest = run.contest(cell)
        run.enter_product(contest, cell, run.gates(cell))
        return timed(contest, Budget(3))

    for cell, problem, count in run.on_threads("headline"):
        yield problem, partial(measure, cell, problem, count)
    for cell in run.cells("never stored"):
        yield str(cell), partial(measure_product, cell)


def data_set(run: Run) -> Iterator[Part]:
    """Lambda of as many points as a whole data set has: without the matrix, into a new result, into a reused one.

    One n x n result at a time is alive. A new one is timed with the memory that the system gives it.
    """

    def measure(cell: Cell) -> list[Entry]:
        bits, entries = run.gates(cell), list[Entry]()
        for what in (MATVEC, NEW, LAMBDA):
            contest = run.contest(cell)
            if what == MATVEC:
                run.enter_product(contest, cell, bits)
            elif what == NEW:
                run.enter(contest, cell, NEW, OURS, lambda: lambda: gatedops.npk_gram(None, bits))
            else:
                run.enter_grams(contest, cell, bits, [OURS], {LAMBDA: None})
            entries += timed(contest, run.sizes.wide)
        base = next((entry.median_s for entry in entries if entry.what == LAMBDA), None)
        return [replace(entry, ratio=base and entry.median_s / base) for entry in entries]

    for cell in run.cells("data-set"):
        needed, available = int(SPARE * 4 * cell.n**2), available_memory()
        if available is not None and needed > available:
            print(f"left out: {cell} needs {needed / 2**30:.1f} GiB of memory, more than is left")
        else:
            yield str(cell), partial(measure, cell)


def one_core(run: Run) -> Iterator[Part]:
    """Lambda on one thread where counting is all there is, with the two fastest instruction sets: the share of the
    limit is that of the inner loop."""

    def measure(cell: Cell) -> list[Entry]:
        with threads(1):
            contest, sets = run.contest(cell), run.platform.kernels[1:3]
            run.enter_grams(contest, cell, run.gates(cell), sets, {LAMBDA: None})
            return timed(contest, run.sizes.deep)

    for cell in run.cells("one-core"):
        yield str(cell), partial(measure, cell)


def one_layer(run: Run) -> Iterator[Part]:
    """int32 counts of one layer: on a CPU those of one set of points beside Lambda and NumKong, on a GPU all pairs of
    two sets, which is what a binary matrix product computes."""

    def measure(cell: Cell, problem: str, count: int) -> list[Entry]:
        platform = run.platform
        with threads(count):
            contest, x, y = run.contest(problem), run.gates(cell), platform.other_gates(cell, run.seed + 1)
            work = cell.bit_pairs if y is None else cell.n**2 * cell.bits_per_pair
            if y is None:
                run.enter_grams(contest, cell, x, platform.kernels[:1], {LAMBDA: None})
            ours = [(COUNTS, kernel, partial(platform.counts, kernel, x, y)) for kernel in platform.layer_kernels]
            for what, by, make in (*ours, *platform.layer_peers(x)):
                check = partial(require_counts, x, y, "triangle" in what)
                run.enter(contest, cell, what, by, make, check, work)
            base = {what: (LAMBDA, OURS) for what, _ in contest.contestants} if y is None else None
            return timed(contest, run.sizes.deep, base)

    for cell, problem, count in run.on_threads("one-layer"):
        yield problem, partial(measure, cell, problem, count)


def require_counts(x: GateBits, y: GateBits | None, triangle: bool, call: Call) -> None:
    """Raises RuntimeError unless some of the counts are the reference's, or their upper triangle is."""
    at = torch.linspace(0, x.n - 1, min(x.n, CHECKED)).long()
    left, right = (bits[at.to(bits.device)].to("cpu") for bits in (x, x if y is None else y))
    found = call()
    assert isinstance(found, Tensor)
    found = found.reshape(x.n, x.n)[at.to(found.device)][:, at.to(found.device)].cpu()
    expected = reference.gate_overlap(left, right)[0]
    if not (found.triu().equal(expected.triu()) if triangle else found.equal(expected)):
        raise RuntimeError("the counts are wrong: they differ from the reference")


def packing(run: Run) -> Iterator[Part]:
    """Pre-activations into reused words, beside a copy of their bytes: the rates are bytes of input per second."""

    def measure(name: str, make_input: Callable[[], Tensor]) -> list[Entry]:
        q, contest = make_input(), run.contest(name)

        def make() -> Call:
            words, positions = torch.zeros_like(pack_gates(q).words), by_position(q)

            def call() -> Tensor:
                torch.ops.gatedops.pack_gates_out(positions, out=words)
                return words

            return call

        work = {"work": q.nbytes, "unit": "bytes"}
        limit = run.platform.packing_limit(q)
        contest.enter("packing", run.platform.packer, make, check=partial(require_packed, q), limit=limit, **work)
        memory = q.permute(0, 2, 3, 1) if q.dim() == 4 and not q.is_contiguous() else q
        source = memory.view(torch.uint8).flatten()
        for by, copy in run.platform.copies(torch.empty_like(source), source).items():
            contest.enter("packing", by, lambda copy=copy: copy, **work)
        return timed(contest, run.sizes.deep)

    for name, make_input in inputs(run.sizes.packing, run).items():
        yield name, partial(measure, name, make_input)


def inputs(size: int, run: Run) -> dict[str, Callable[[], Tensor]]:
    """Inputs of about `size` bytes each: dense layers of several dtypes, images in both memory layouts."""

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
    assert isinstance(words, Tensor)
    if not words[few].cpu().equal(reference.pack_gates(q[few].cpu()).words):
        raise RuntimeError("the words are wrong: they differ from the reference")


def scaling(run: Run) -> Iterator[Part]:
    """The exponent of the time of Lambda in n (it should be 2) and in the bits per pair (1) where counting is the
    limit."""

    def measure(by: str) -> list[Entry]:
        entries: list[Entry] = []
        for cell in run.cells(by):
            contest = run.contest(cell)
            run.enter_grams(contest, cell, run.gates(cell), [OURS], {LAMBDA: None})
            entries += timed(contest, run.sizes.wide)
        slope = exponent(by, entries)
        return [replace(entry, facts={**entry.facts, "grows": by, "exponent": slope}) for entry in entries]

    for by in ("by n", "by bits"):
        yield by, partial(measure, by)


def exponent(by: str, entries: Sequence[Entry]) -> float:
    """The slope b of seconds ~ size^b: the least squares line through the logarithms."""
    names = ["n"] if by == "by n" else ["layers", "width"]
    sizes = [sum(math.log(entry.facts[name]) for name in names) for entry in entries]
    return statistics.linear_regression(sizes, [math.log(entry.median_s) for entry in entries]).slope


def soft(run: Run) -> Iterator[Part]:
    """The Gram of real-valued gates, and its gradient, beside plain torch: one product per layer, and autograd."""

    def measure(cell: Cell) -> list[Entry]:
        gates = [torch.rand(cell.n, cell.width, generator=run.generator(layer)) for layer in range(cell.layers)]
        learned = [gate.clone().requires_grad_() for gate in gates]
        cotangent = torch.rand(cell.n, cell.n, generator=run.generator())
        plain = MatmulPerLayer(gates, [1 / cell.width] * cell.layers, torch.float32)

        def gradient(gram: Callable[..., Tensor]) -> Call:
            return lambda: torch.autograd.grad(gram(None, learned), learned, cotangent)

        calls = {
            "soft Gram": (lambda: (gatedops.soft_npk_gram(None, gates),), lambda: (plain(),)),
            "soft Gram and gradient": (gradient(gatedops.soft_npk_gram), gradient(reference.soft_npk_gram)),
        }
        contest = run.contest(cell)
        for what, (ours, theirs) in calls.items():
            check, facts = partial(require_close, theirs), run.platform.facts(cell, OURS)
            contest.enter(what, OURS, lambda ours=ours: ours, check=check, facts=facts)
            contest.enter(what, "torch", lambda theirs=theirs: theirs, facts=run.platform.facts(cell, "torch"))
        return timed(contest, run.sizes.deep)

    for cell in run.cells("soft"):
        yield str(cell), partial(measure, cell)


def require_close(expected: Call, call: Call) -> None:
    """Raises RuntimeError unless each tensor is what is expected, to float32's accuracy."""
    for found, right in zip(call(), expected(), strict=True):
        if (found - right).abs().max() > 1e-4 * right.abs().max():
            raise RuntimeError("the result is wrong: it differs from plain torch")


SECTIONS = {
    "sweep": sweep,
    "headline": headline,
    "data-set": data_set,
    "one-core": one_core,
    "one-layer": one_layer,
    "packing": packing,
    "scaling": scaling,
    "soft": soft,
}
ON_GPUS = ("sweep", "headline", "one-layer", "packing")
