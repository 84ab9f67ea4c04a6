"""Sums over the windows of images in registers of conv_gram, by slices."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from gatedops.ops.conv_program import Instruction

Run = tuple[slice, slice]  # output pixels, and the input pixels that they read


class Axis(NamedTuple):
    """The windows of an instruction along one axis of an image."""

    out: int
    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    circular: bool

    @staticmethod
    def rows(i: Instruction) -> Axis:
        return Axis(i.out_height, i.height, i.kernel_h, i.stride_h, i.dilation_h, i.pad_top, bool(i.circular))

    @staticmethod
    def columns(i: Instruction) -> Axis:
        return Axis(i.out_width, i.width, i.kernel_w, i.stride_w, i.dilation_w, i.pad_left, bool(i.circular))

    def runs(self, offset: int) -> list[Run]:
        """Returns the output pixels that have a pixel of the image at this place in their window, in runs of equal
        steps."""
        start = offset * self.dilation - self.before
        first, last = 0, self.out
        if not self.circular:
            first = max(0, -(start // self.stride))
            last = min(self.out, (self.size - 1 - start) // self.stride + 1)
        runs = []
        while first < last:
            begin = start + first * self.stride
            if self.circular:
                begin %= self.size
            count = min(last - first, (self.size - 1 - begin) // self.stride + 1)
            runs.append((slice(first, first + count), slice(begin, begin + (count - 1) * self.stride + 1, self.stride)))
            first += count
        return runs

    @property
    def moves(self) -> bool:
        """Whether some output pixel reads an input pixel other than its own."""
        return (self.kernel, self.stride, self.before, self.out) != (1, 1, 0, self.size)


def window_sums(kernel: Tensor, axis: Axis, dims: tuple[int, ...]) -> Tensor:
    """Sums over the places in a window, the same place along each of `dims`; a new tensor if any pixel moves."""
    if not axis.moves:
        return kernel
    places = [runs for runs in map(axis.runs, range(axis.kernel)) if runs]
    # If all output pixels have a pixel at one place, this place comes first and is copied, so nothing is zeroed.
    places.sort(key=lambda runs: _covered(runs) < axis.out)
    complete = bool(places) and _covered(places[0]) == axis.out
    shape = [axis.out if dim in dims else size for dim, size in enumerate(kernel.shape)]
    total = kernel.new_empty(shape) if complete else kernel.new_zeros(shape)
    for number, runs in enumerate(places):
        for chosen in itertools.product(runs, repeat=len(dims)):
            target, source = between(total, kernel, dict(zip(dims, chosen, strict=True)))
            if complete and number == 0:
                target.copy_(source)
            else:
                target.add_(source)
    return total


def between(total: Tensor, kernel: Tensor, runs: dict[int, Run]) -> tuple[Tensor, Tensor]:
    """Returns the part of `total` that the run of each dimension writes, and the part of `kernel` that it reads."""
    return at(total, {dim: run[0] for dim, run in runs.items()}), at(kernel, {dim: run[1] for dim, run in runs.items()})


def at(tensor: Tensor, slices: dict[int, slice]) -> Tensor:
    """Returns the part of a tensor inside slices of some of its dimensions."""
    return tensor[tuple(slices.get(dim, slice(None)) for dim in range(tensor.dim()))]


def tile_sums(kernel: Tensor, i: Instruction) -> Tensor:
    """Sums a kernel ``(H, W, a, H', W', b)`` over windows that lie side by side, on both sides."""
    for row in (3, 0):
        kernel = kernel.unflatten(row + 1, (i.out_width, i.kernel_w)).unflatten(row, (i.out_height, i.kernel_h))
        kernel = kernel.sum((row + 1, row + 3))
    return kernel


def in_tiles(kernel: Tensor, i: Instruction) -> Tensor:
    """Returns the pixels of a kernel ``(H, W, a, H', W', b)`` that windows side by side cover."""
    rows, columns = slice(i.out_height * i.kernel_h), slice(i.out_width * i.kernel_w)
    return kernel[rows, columns, :, rows, columns]


def _covered(runs: list[Run]) -> int:
    return sum(pixels.stop - pixels.start for pixels, _ in runs)
