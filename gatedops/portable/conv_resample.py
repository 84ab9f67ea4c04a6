"""Multiplies registers of conv_gram by the matrices of a RESAMPLE, whose numbers are mostly 0."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gatedops.ops.conv_program import Instruction

# For each output pixel along an axis: the pixels that it reads, and their weights, which are not 0.
Taps = list[list[tuple[int, float]]]


def taps_of(i: Instruction, scalars: Sequence[float]) -> tuple[Taps, Taps]:
    """Returns what the rows of a RESAMPLE's result read, and what its columns read."""
    columns = i.scale2 + i.out_height * i.height
    end = columns + i.out_width * i.width
    return _taps(scalars[i.scale2 : columns], i.height), _taps(scalars[columns:end], i.width)


def _taps(weights: Sequence[float], size: int) -> Taps:
    rows = (weights[begin : begin + size] for begin in range(0, len(weights), size))
    return [[(source, weight) for source, weight in enumerate(row) if weight != 0] for row in rows]


def moves_pixels(i: Instruction, scalars: Sequence[float]) -> bool:
    """Whether each output pixel of a RESAMPLE reads at most one pixel, so that R(p, p) needs only R(q, q)."""
    return all(len(taps) <= 1 for axis in taps_of(i, scalars) for taps in axis)


def resampled(kernel: Tensor, taps: Taps, dim: int, *, both_sides: bool) -> Tensor:
    """Returns a register whose pixels along `dim` are weighted sums of pixels of the kernel; returns the kernel if all
    stay what they are. `both_sides` says that `dim` counts equal pixels of both sides. Then each of them reads at most
    one, and its weight counts twice."""
    if taps == [[(pixel, 1.0)] for pixel in range(kernel.shape[dim])]:
        return kernel
    total = kernel.new_empty([len(taps) if d == dim else size for d, size in enumerate(kernel.shape)])
    for pixel, read in enumerate(taps):
        target = total.select(dim, pixel)
        if not read:
            target.zero_()
        for number, (source, weight) in enumerate(read):
            if number > 0:
                target.add_(kernel.select(dim, source), alpha=weight)
                continue
            target.copy_(kernel.select(dim, source))
            if weight != 1:
                target.mul_(weight)
            if weight != 1 and both_sides:
                target.mul_(weight)
    return total
