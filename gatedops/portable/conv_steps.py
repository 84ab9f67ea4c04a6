"""Runs the instructions of a conv_gram program on the registers of one tile of pairs (docs/math.md, section 13).

In a register the pixels come before the inputs, ``(H, W, a, H', W', b)``. Products of matrices that have a row for each
pixel of each input give this order, and neighbouring pixels of all inputs of a side lie in one piece of memory.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.ops.conv_program import SAME_COLUMN, SAME_ROW, Instruction, Op
from gatedops.portable.conv_counts import all_counts, factor, packed, pixel_counts
from gatedops.portable.conv_plan import INPUTS, PlannedInstruction, tiled
from gatedops.portable.conv_resample import resampled, taps_of
from gatedops.portable.conv_windows import Axis, Run, at, between, in_tiles, tile_sums, window_sums
from gatedops.portable.products import product
from gatedops.portable.workspace import blocks, pieces


@dataclass(frozen=True)
class Side:
    """Some rows of one side: inputs ``(rows, D)`` and masks ``(rows, W)``."""

    x: Tensor
    words: Tensor

    @property
    def rows(self) -> int:
        return self.x.shape[0]


class Pairs:
    """The registers of all pairs of a row of one side and a row of the other."""

    def __init__(self, left: Side, right: Side, scalars: list[float], int8: bool) -> None:
        self._left, self._right, self._int8 = left, right, int8
        self._dtype = left.x.dtype
        # A number too large for the dtype becomes infinite, as it does when torch multiplies tensors by it.
        most = torch.finfo(self._dtype).max
        self._scalars = [s if abs(s) <= most or math.isnan(s) else math.copysign(math.inf, s) for s in scalars]
        self._registers: dict[int, Tensor] = {}

    def run(self, steps: list[PlannedInstruction]) -> Tensor:
        """Runs the steps, and returns the last register, ``(a, b)``, which has one pixel."""
        for step in steps:
            self._registers[step.instruction.dst] = self._result(step)
            for register in step.drops:
                del self._registers[register]
        last = self._registers[steps[-1].instruction.dst]
        return last.reshape(self._left.rows, self._right.rows)

    def _result(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        match i.op:
            case Op.INPUT:
                return self._input(step)
            case Op.CONSTANT:
                return self._pattern(step)
            case Op.BOX:
                return self._box(step)
            case Op.GATE:
                return self._gated(self._source(i.src, step), step, fresh=False)
            case Op.SELECT:
                return self._select_tiles(step) if tiled(i) else self._select(step)
            case Op.MASKED_BOX:
                return self._masked_box(step)
            case Op.POOL:
                return self._pool(step)
            case Op.RESAMPLE:
                return self._resample(step)
            case Op.ADD:
                return self._sum(step)
        assert i.op == Op.TRACE
        return self._source(i.src, step).sum((0, 1), keepdim=True).mul_(self._scalars[i.scale])

    def _source(self, register: int, step: PlannedInstruction) -> Tensor:
        """Returns a register in the form that a step reads, which may be its diagonal."""
        kernel = self._registers[register]
        if step.diagonal and kernel.dim() == 6:
            return kernel.diagonal(0, 0, 3).diagonal(0, 0, 2).permute(2, 3, 0, 1)
        if step.diagonal or kernel.dim() == 6:
            return kernel
        return kernel[:, :, :, None, None]  # A diagonal of one pixel is the whole kernel.

    def _shape(self, step: PlannedInstruction) -> tuple[int, ...]:
        """Returns the shape of the register that a step writes."""
        i, a, b = step.instruction, self._left.rows, self._right.rows
        pixels = (i.out_height, i.out_width)
        return (*pixels, a, b) if step.diagonal else (*pixels, a, *pixels, b)

    # --- sources ---------------------------------------------------------------------------------------------

    def _input(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        a, b, pixels = self._left.rows, self._right.rows, step.positions
        out = self._left.x.new_zeros((pixels, a, b) if step.diagonal else (pixels * a, pixels * b))
        for some in pieces(i.channels, max(a, b) * pixels * out.itemsize, size=INPUTS):
            left, right = (self._channels(side, step, some) for side in (self._left, self._right))
            add_product = out.baddbmm_ if step.diagonal else out.addmm_
            add_product(left, right.mT, alpha=self._scalars[i.scale])
        return out.view(self._shape(step))

    def _channels(self, side: Side, step: PlannedInstruction, some: slice) -> Tensor:
        """Returns some channels of all pixels of an input, ``(pixels, rows, channels)`` for a diagonal step, else
        ``(pixels * rows, channels)``."""
        i, pixels = step.instruction, step.positions
        image = side.x[:, i.first : i.first + i.channels * pixels].unflatten(1, (i.channels, pixels))[:, some]
        image = image.permute(2, 0, 1)
        return image if step.diagonal else image.reshape(pixels * side.rows, some.stop - some.start)

    def _pattern(self, step: PlannedInstruction) -> Tensor:
        i, x = step.instruction, self._left.x
        kernel = x.new_full((1,) * (4 if step.diagonal else 6), self._scalars[i.scale])
        if not step.diagonal:
            for bit, size, dim in ((SAME_ROW, i.height, 0), (SAME_COLUMN, i.width, 1)):
                if i.pattern & bit:
                    pixels = torch.arange(size, device=x.device)
                    equal = (pixels[:, None] == pixels).view([size if d in (dim, dim + 3) else 1 for d in range(6)])
                    kernel = torch.where(equal, kernel, 0.0)
        return kernel.expand(self._shape(step))

    # --- one to one ------------------------------------------------------------------------------------------

    def _box(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        source = self._source(i.src, step)
        rows, columns = ((0,), (1,)) if step.diagonal else ((0, 3), (1, 4))
        boxed = window_sums(window_sums(source, Axis.rows(i), rows), Axis.columns(i), columns)
        fresh = boxed is not source
        if step.masked and i.constant < 0:
            return self._gated(boxed, step, fresh=fresh)
        boxed = self._affine(boxed, step, fresh=fresh)
        return boxed.mul_(self._counts(step)) if step.masked else boxed

    def _masked_box(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        kernel = self._source(i.src, step)
        total = kernel.new_zeros(self._shape(step))
        for place, (row, column) in enumerate(itertools.product(range(i.kernel_h), range(i.kernel_w))):
            runs = (Axis.rows(i).runs(row), Axis.columns(i).runs(column))
            if all(runs):
                here = slice(place, None, i.kernel_h * i.kernel_w)
                self._add_place(total, kernel, self._counts(step, here), step, runs)
        return total

    def _add_place(
        self,
        total: Tensor,
        kernel: Tensor,
        counts: Tensor,
        step: PlannedInstruction,
        runs: tuple[list[Run], list[Run]],
    ) -> None:
        """Adds the kernel at one place in the windows of both sides, times the counts of its masks."""
        dims = (0, 1) if step.diagonal else (0, 1, 3, 4)
        for chosen in itertools.product(*runs * (len(dims) // 2)):
            self._add_counted(total, kernel, counts, step, dict(zip(dims, chosen, strict=True)))

    def _add_counted(
        self, total: Tensor, kernel: Tensor, counts: Tensor, step: PlannedInstruction, runs: dict[int, Run]
    ) -> None:
        """Adds the kernel times the scale of a step and the counts, for a run of pixels along each dimension."""
        target, source = between(total, kernel, runs)
        counts = at(counts, {dim: run[0] for dim, run in runs.items()})
        target.addcmul_(source, counts, value=self._scalars[step.instruction.scale])

    def _resample(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        source = self._source(i.src, step)
        made, (rows, columns) = source, taps_of(i, self._scalars)
        dims = ((0, rows), (1, columns)) if step.diagonal else ((3, rows), (4, columns), (0, rows), (1, columns))
        for dim, taps in dims:
            made = resampled(made, taps, dim, both_sides=step.diagonal)
        return self._affine(made, step, fresh=made is not source)

    def _sum(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        total = self._affine(self._source(i.src, step), step, fresh=False)
        return total if i.src2 < 0 else total.add_(self._source(i.src2, step), alpha=self._scalars[i.scale2])

    def _affine(self, kernel: Tensor, step: PlannedInstruction, *, fresh: bool) -> Tensor:
        """Returns the kernel times the scale of a step, plus its constant; in place if the kernel is `fresh`."""
        i = step.instruction
        constant = kernel.new_full((), 0.0 if i.constant < 0 else self._scalars[i.constant])
        return torch.add(constant, kernel, alpha=self._scalars[i.scale], out=kernel if fresh else None)

    def _gated(self, kernel: Tensor, step: PlannedInstruction, *, fresh: bool, counts: Tensor | None = None) -> Tensor:
        """Returns the kernel times the scale of a step and the counts, which are those of its masks unless given; in
        place if the kernel is `fresh`."""
        counts = self._counts(step) if counts is None else counts
        scale = self._scalars[step.instruction.scale]
        return torch.addcmul(kernel.new_zeros(()), kernel, counts, value=scale, out=kernel if fresh else None)

    def _masks(self, step: PlannedInstruction) -> tuple[Tensor, Tensor]:
        """Returns the words of a step's masks for each side, ``(positions, rows, words)``; views."""
        i = step.instruction
        return packed(self._left.words, i.first, step), packed(self._right.words, i.first_y, step)

    def _counts(self, step: PlannedInstruction, positions: slice = slice(None)) -> Tensor:
        """Counts the gates that the pixels of both sides have in common, in the masks at these positions."""
        left, right = (masks[positions] for masks in self._masks(step))
        if step.by_pixel:
            counts = pixel_counts(left, right, step, self._dtype)
            return counts.view(self._shape(step))
        pixels = (step.instruction.out_height, step.instruction.out_width)
        counts = all_counts(left, right, step, self._dtype, self._int8)
        return self._by_pixels(counts, pixels).view(self._shape(step))

    def _by_pixels(self, products: Tensor, pixels: tuple[int, ...]) -> Tensor:
        """Returns a product whose rows and columns are the pixels of all inputs as ``(H, W, a, H', W', b)``."""
        products = products.unflatten(1, (*pixels, self._right.rows))
        return products.unflatten(0, (*pixels, self._left.rows))

    # --- windows on both sides -------------------------------------------------------------------------------

    def _pool(self, step: PlannedInstruction) -> Tensor:
        i = step.instruction
        kernel = self._source(i.src, step)
        if tiled(i):
            kernel = tile_sums(in_tiles(kernel, i), i)
        else:
            for axis, dim in ((Axis.rows(i), 3), (Axis.columns(i), 4), (Axis.rows(i), 0), (Axis.columns(i), 1)):
                kernel = window_sums(kernel, axis, (dim,))
        if i.scale2 < 0:
            return kernel * self._scalars[i.scale]
        weights = self._weights(i)
        left = weights.mul(self._scalars[i.scale])[:, :, None, None, None, None]
        return (kernel * left).mul_(weights[:, :, None])

    def _weights(self, i: Instruction) -> Tensor:
        """Returns the weights of the output pixels of a pool. Each run of equal weights is filled on the device, which
        avoids a copy from the host."""
        weights = self._left.x.new_empty(i.out_height * i.out_width)
        begin = 0
        for value, run in itertools.groupby(self._scalars[i.scale2 : i.scale2 + len(weights)]):
            end = begin + len(list(run))
            weights[begin:end].fill_(value)
            begin = end
        return weights.view(i.out_height, i.out_width)

    def _select_tiles(self, step: PlannedInstruction) -> Tensor:
        """Runs a SELECT whose windows lie side by side: its masks are brought into the order of the image's pixels."""
        i = step.instruction
        windows = (i.out_height, i.out_width, i.kernel_h, i.kernel_w)
        left, right = (masks.unflatten(0, windows).transpose(1, 2) for masks in self._masks(step))
        kernel = in_tiles(self._source(i.src, step), i)
        counts = self._by_pixels(all_counts(left, right, step, self._dtype, self._int8), kernel.shape[:2])
        return tile_sums(self._gated(kernel, step, fresh=False, counts=counts), i)

    def _select(self, step: PlannedInstruction) -> Tensor:
        """Runs a SELECT whose windows overlap or leave the image: one product for each pair of places in a window."""
        i = step.instruction
        kernel = self._source(i.src, step)
        total = kernel.new_zeros(self._shape(step))
        left, right = (masks.unflatten(0, (-1, i.kernel_h * i.kernel_w)) for masks in self._masks(step))
        places = [
            (place, rows, columns)
            for place, (row, column) in enumerate(itertools.product(range(i.kernel_h), range(i.kernel_w)))
            for rows in Axis.rows(i).runs(row)
            for columns in Axis.columns(i).runs(column)
        ]
        for span in blocks(step.words, step.span):
            factors = [factor(right[:, place], span, self._int8) for place, *_ in places]
            for place, *runs in places:
                here = factor(left[:, place], span, self._int8)
                for other, (_, *others) in zip(factors, places, strict=True):
                    self._add_places(total, kernel, product(here, other), step, (*runs, *others))
        return total

    def _add_places(
        self, total: Tensor, kernel: Tensor, counts: Tensor, step: PlannedInstruction, runs: tuple[Run, ...]
    ) -> None:
        """Adds the kernel between two places in the windows, times the counts of their masks."""
        i = step.instruction
        pixels = i.out_height * i.out_width
        # An int8 product has extra rows and columns, which are cut off.
        counts = counts[: pixels * self._left.rows, : pixels * self._right.rows]
        counts = self._by_pixels(counts, (i.out_height, i.out_width))
        self._add_counted(total, kernel, counts, step, dict(zip((0, 1, 3, 4), runs, strict=True)))
