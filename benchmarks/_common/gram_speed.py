"""The Gram against its peers on one problem: time, rate, share of the bound, error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

import gatedops
from _common.machine import Bound
from _common.peers import InputMatmul, MatmulPerLayer, exact_rows, largest_relative_error
from _common.timing import Timing, interleaved_medians, readable_seconds
from gatedops import GateBits

CHECKED_ROWS = 256
HEADER = ("problem", "by", "median", "runs", "ratio", "bit-pairs/s", "of bound", "largest error")


@dataclass(frozen=True)
class GramProblem:
    """A symmetric Gram: gates, and float inputs x (n, d), or None for Lambda alone."""

    name: str
    bits: GateBits
    x: Tensor | None = None

    @property
    def bit_pairs(self) -> int:
        """Pairs of gates that have to be looked at: every unordered pair of points once, every gate."""
        return self.bits.n * (self.bits.n + 1) // 2 * sum(self.bits.widths)


@dataclass(frozen=True)
class GramResult:
    """One contestant on one problem. largest_error is relative, against exact counts, over up to 256 rows.

    ratio is this median over gatedops'; share_of_bound is None where no bound is known or where inputs take
    part; rate and error are None for what computes another thing (the input matmul alone).
    """

    problem: str
    by: str
    median_s: float
    best_s: float
    samples_s: tuple[float, ...]
    ratio: float
    bit_pairs_per_second: float | None
    share_of_bound: float | None
    largest_error: float | None

    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        return (
            self.problem,
            self.by,
            readable_seconds(self.median_s),
            str(len(self.samples_s)),
            f"{self.ratio:.2f}x",
            _cell(self.bit_pairs_per_second, ".3g"),
            _cell(self.share_of_bound, ".0%"),
            _cell(self.largest_error, ".1e"),
        )


def random_problem(n: int, layers: int, width: int, inputs: int | None, seed: int) -> GramProblem:
    """n points with gates on with probability 1/2, and uniform inputs of the given dimension."""
    generator = torch.Generator().manual_seed(seed)
    bits = random_gates(n, layers, width, generator)
    x = None if inputs is None else torch.rand(n, inputs, generator=generator)
    return GramProblem(problem_name("random", [width] * layers, n, x), bits, x)


def random_gates(n: int, layers: int, width: int, generator: torch.Generator) -> GateBits:
    """Gates on with probability 1/2, on the generator's device, made as words: no mask of n x layers x width bytes is
    ever there."""
    all_on = GateBits.pack([torch.ones(1, width, dtype=torch.bool)] * layers)
    shape, device = (n, all_on.words.shape[1]), generator.device
    words = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32, device=device)
    return GateBits(words & all_on.words.to(device), all_on.layers)


def problem_name(data: str, widths: Sequence[int], n: int, x: Tensor | None) -> str:
    """One name for tables and plots: "digits, 4 x 256, n=1797, Lambda alone"."""
    layers = f"{len(widths)} x {widths[0]}" if len(set(widths)) == 1 else "-".join(map(str, widths))
    return f"{data}, {layers}, n={n}, " + ("Lambda alone" if x is None else f"with x (d={x.shape[1]})")


def time_gram(
    problem: GramProblem,
    *,
    dtype: torch.dtype,
    scale: Literal["width", "none"],
    repeats: int,
    peers: bool,
    bound: Bound,
) -> list[GramResult]:
    """Time gatedops and, with `peers`, torch in `dtype`, torch in bfloat16 and (with inputs) the input matmul
    alone.

    Everything writes into buffers made beforehand. Raises RuntimeError when gatedops' result is wrong: no
    speed is given for a wrong result.
    """
    x = None if problem.x is None else problem.x.to(dtype)
    masks = problem.bits.unpack()
    factors = [1.0 if scale == "none" else 1.0 / width for width in problem.bits.widths]
    out = torch.empty(problem.bits.n, problem.bits.n, dtype=dtype, device=problem.bits.device)

    grams: dict[str, Callable[[], Tensor]] = {
        "gatedops": lambda: gatedops.npk_gram(x, problem.bits, scale=scale, dtype=dtype, out=out)
    }
    if peers:
        for peer_dtype in (dtype, torch.bfloat16):
            grams[f"torch {_name(peer_dtype)}"] = MatmulPerLayer(masks, factors, peer_dtype, x)
    timed: dict[str, Callable[[], Tensor]] = dict(grams)
    if peers and x is not None:
        timed["torch x @ x.T alone"] = InputMatmul(x)

    times = interleaved_medians(timed, repeats, label=problem.name)
    errors = _errors(grams, masks, factors, x)
    if errors["gatedops"] > (len(masks) + 8) * 16 * torch.finfo(dtype).eps:
        raise RuntimeError(f"gatedops is wrong on {problem.name}: largest relative error {errors['gatedops']:.1e}")
    return [_result(problem, by, times, errors.get(by), bound) for by in timed]


def _errors(
    grams: dict[str, Callable[[], Tensor]], masks: list[Tensor], factors: list[float], x: Tensor | None
) -> dict[str, float]:
    n = len(masks[0])
    rows = torch.linspace(0, n - 1, min(n, CHECKED_ROWS)).long()
    exact = exact_rows(masks, factors, x, rows)
    return {name: largest_relative_error(gram()[rows], exact) for name, gram in grams.items()}


def _result(problem: GramProblem, by: str, times: dict[str, Timing], error: float | None, bound: Bound) -> GramResult:
    taken = times[by]
    rate = None if error is None else problem.bit_pairs / taken.median
    share = None
    if by == "gatedops" and rate is not None and problem.x is None and bound.bit_pairs_per_second is not None:
        share = rate / bound.bit_pairs_per_second
    ratio = taken.median / times["gatedops"].median
    finite = None if error is None or not math.isfinite(error) else error
    return GramResult(problem.name, by, taken.median, taken.best, taken.samples, ratio, rate, share, finite)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
