"""Computes npk_gram, its variants and gate_overlap by torch operations, tile by tile.

The arguments of the ops are those of their schemas.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.devices import most_precise
from gatedops.portable.checks import require, require_float, require_one_device
from gatedops.portable.gram_blocks import Problem, Tile, require_right_factor, require_scale, row_counts
from gatedops.portable.sigma import Sigma, add_product

# What gate_overlap can count: gates that are on for both inputs, that agree, or that differ.
MEASURES = ("both", "agree", "differ")


def gate_overlap(
    words: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    widths: list[int],
    measure: str,
) -> Tensor:
    """Counts gates, int32 ``(L, n, m)``."""
    problem = Problem.of(words, y_words, first, y_first, count)
    require(len(widths) == len(count), "widths: needs one entry per layer")
    require(measure in MEASURES, lambda: f"measure: got {measure!r}, needs 'both', 'agree' or 'differ'")
    out = words.new_empty((len(count), *problem.shape))
    on = _on_in_both(problem) if measure != "both" else None
    for tile in problem.tiles():
        for layer, size in enumerate(count):
            counts = tile.counts(layer, size).to(torch.int32)
            if on is not None:  # This many gates differ: on_i + on_j - 2 <g_i, g_j>.
                left, right = on[0][layer, tile.rows], on[1][layer, tile.columns]
                counts = counts.mul(-2).add_(left[:, None]).add_(right)
                counts = counts.neg_().add_(widths[layer]) if measure == "agree" else counts
            tile.write(counts, out[layer], exact=True)
    return out


def _on_in_both(problem: Problem) -> tuple[Tensor, Tensor]:
    """Counts the gates that are on in each layer of each row, int32 ``(L, n)``, for both sides."""
    left = row_counts(problem.words, problem.first, problem.count).to(torch.int32)
    if problem.symmetric:
        return left, left
    return left, row_counts(problem.y_words, problem.y_first, problem.count).to(torch.int32)


def npk_diag(
    words: Tensor,
    first: list[int],
    count: list[int],
    scale: list[float],
    dtype: torch.dtype,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    """Computes ``Lambda_ii``, ``(n,)``."""
    problem = Problem.of(words, None, first, first, count, slope, widths)
    require_scale(scale, problem)
    require_float(dtype, "dtype")
    total: Tensor | None = None
    slopes = problem.slopes
    counts = row_counts(words, first, count) if slopes is None else slopes.on
    for layer, (on, factor) in enumerate(zip(counts, scale, strict=True)):
        if slopes is None or slopes.slope[layer] == 0:
            scaled = on.to(dtype).mul_(factor)
        else:
            scaled = slopes.weighted(layer, on, 2 * on, dtype).mul_(factor)
        total = scaled if total is None else total.mul_(scaled)
    assert total is not None
    return total


def npk_gram(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    factor: Tensor | None,
    y_factor: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    dtype: torch.dtype,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    """Computes ``Sigma * Lambda``, ``(n, m)`` of dtype."""
    require_float(dtype, "dtype")
    m = words.shape[0] if y_words is None else y_words.shape[0]
    out = words.new_empty((words.shape[0], m), dtype=dtype)
    npk_gram_out(x, words, y, y_words, factor, y_factor, first, y_first, count, scale, slope, widths, out=out)
    return out


def npk_gram_out(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    factor: Tensor | None,
    y_factor: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
    *,
    out: Tensor,
) -> None:
    """Computes out = Sigma * Lambda, and scales its rows and columns."""
    problem = Problem.of(words, y_words, first, y_first, count, slope, widths)
    require_scale(scale, problem)
    require_float(out.dtype, "out")
    require(tuple(out.shape) == problem.shape, lambda: f"out: got shape {tuple(out.shape)}, needs {problem.shape}")
    require(out.shape[1] <= 1 or out.stride(1) == 1, "out: the elements of a row must be contiguous")
    require((y_factor is not None) == (factor is not None and y_words is not None), "y_factor: goes with factor")
    require_one_device(words, x, y, factor, y_factor, out)
    sigma = Sigma.of(x, y, problem, out.dtype)
    left, right = factor, factor if y_factor is None else y_factor
    factor_dtype = most_precise(words.device)
    for vector, rows, name in ((left, problem.shape[0], "factor"), (right, problem.shape[1], "y_factor")):
        fits = vector is None or (tuple(vector.shape) == (rows,) and vector.dtype == factor_dtype)
        require(fits, f"{name}: needs {rows} numbers of dtype {factor_dtype}")
    exact = (sigma is None or sigma.exact) and (left is None or left.dtype == torch.float64)
    for tile in problem.tiles():
        values = _kernel(tile, sigma, problem, scale, out.dtype)
        if left is not None and right is not None:
            values = _scaled(values, left[tile.rows, None], right[tile.columns]).to(out.dtype)
        tile.write(values, out, exact=exact)


def _scaled(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Computes ``K_ij f_i g_j``.

    A device without float64 works in float32. There ``f_i g_j`` can be infinite if K is tiny, so K is multiplied by one
    factor after the other.
    """
    if rows.dtype == torch.float64:
        return values.to(torch.float64).mul_(rows * columns)
    return values.mul_(rows).mul_(columns)


def npk_matvec(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    v: Tensor,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    """Computes the Gram times v, tile by tile."""
    problem = Problem.of(words, y_words, first, y_first, count, slope, widths)
    require_scale(scale, problem)
    require_float(v.dtype, "v")
    require_right_factor(v, problem, "v")
    require_one_device(words, x, y)
    sigma = Sigma.of(x, y, problem, v.dtype)
    out = v.new_zeros((problem.shape[0], v.shape[1]))
    for tile in problem.tiles():
        values = _kernel(tile, sigma, problem, scale, v.dtype)
        out[tile.rows].addmm_(values, v[tile.columns])
        if tile.mirrored:
            out[tile.columns].addmm_(values.mT, v[tile.rows])
    return out


def npk_product(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    v: Tensor,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    digits: bool,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    """Computes the float32 Gram times v with sums in float64, or in float32 on a device without it."""
    problem = Problem.of(words, y_words, first, y_first, count, slope, widths)
    require_scale(scale, problem)
    require_float(v.dtype, "v")
    require_right_factor(v, problem, "v")
    require_one_device(words, x, y)
    sigma = Sigma.of(x, y, problem, torch.float32)
    out = v.new_zeros((problem.shape[0], v.shape[1]), dtype=most_precise(v.device))
    for tile in problem.tiles():
        values = _kernel(tile, sigma, problem, scale, torch.float32)
        add_product(out[tile.rows], values, v[tile.columns])
        if tile.mirrored:
            add_product(out[tile.columns], values.mT, v[tile.rows])
    return out


def npk_gram_backward(
    grad: Tensor,
    words: Tensor,
    y: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    """Computes ``(G * Lambda) Y``, or ``((G + G^T) * Lambda) Y`` in the symmetric case."""
    problem = Problem.of(words, y_words, first, y_first, count, slope, widths)
    require_scale(scale, problem)
    require_float(grad.dtype, "grad")
    require_right_factor(y, problem, "y")
    require(tuple(grad.shape) == problem.shape, lambda: f"grad: got shape {tuple(grad.shape)}, needs {problem.shape}")
    require_one_device(words, grad)
    out = grad.new_zeros((problem.shape[0], y.shape[1]))
    for tile in problem.tiles():
        values = tile.gram(count, scale, grad.dtype)
        part = grad[tile.rows, tile.columns]
        values.mul_(part + grad[tile.columns, tile.rows].mT if problem.symmetric else part)
        add_product(out[tile.rows], values, y[tile.columns])
        if tile.mirrored:
            add_product(out[tile.columns], values.mT, y[tile.rows])
    return out


def _kernel(tile: Tile, sigma: Sigma | None, problem: Problem, scale: list[float], dtype: torch.dtype) -> Tensor:
    """Computes ``Sigma * Lambda`` of a tile."""
    values = tile.gram(problem.count, scale, dtype)
    return values if sigma is None else values.mul_(sigma.tile(tile.rows, tile.columns))
