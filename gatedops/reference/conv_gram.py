"""The conv_gram family in plain torch, with which tests compare its kernels (docs/math.md, section 13).

For a tile of a x b pairs of inputs, registers are tensors (a, b, H, W, H', W'). Arguments are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.layout import words_used
from gatedops.ops.conv_program import SAME_COLUMN, SAME_ROW, Instruction, Op, decode
from gatedops.reference.gates import gates_of_layer

# The largest register of a tile has about this many numbers.
_TILE = 1 << 21


def conv_gram(
    x: Tensor,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    program: Sequence[int],
    scalars: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Runs a program on all pairs, (n, m). Without y each unordered pair is computed once; the result is bitwise
    symmetric. This needs a program whose kernel is symmetric.

    x (n, D) and y (m, D) are of dtype; words (n, W) and y_words (m, W) have the layout of GateBits.
    """
    instructions = decode(program)
    symmetric = y is None or y_words is None
    right, right_words = (x, words) if y is None or y_words is None else (y, y_words)
    gram = x.new_empty((len(x), len(right)), dtype=dtype)
    side = max(1, math.isqrt(_TILE // max(_numbers(instruction) for instruction in instructions)))
    for i in range(0, len(x), side):
        a = (x[i : i + side], words[i : i + side])
        for j in range(i if symmetric else 0, len(right), side):
            b = (right[j : j + side], right_words[j : j + side])
            tile = _Tile(*a, *b, scalars, dtype).run(instructions)
            if symmetric and i == j:
                tile = tile.triu() + tile.triu(1).T
            gram[i : i + side, j : j + side] = tile
            if symmetric and i != j:
                gram[j : j + side, i : i + side] = tile.T
    return gram


def _numbers(i: Instruction) -> int:
    """Returns the size of the largest kernel between pixels that an instruction makes."""
    offsets = i.kernel_h * i.kernel_w
    each = offsets**2 if i.op == Op.SELECT else offsets if i.op == Op.MASKED_BOX else 1
    return max(((i.height + 1) * (i.width + 1)) ** 2, each * (i.out_height * i.out_width) ** 2)


class _Tile:
    """The registers of all pairs of `a` rows of one side and `b` rows of the other."""

    def __init__(
        self, x: Tensor, words: Tensor, y: Tensor, y_words: Tensor, scalars: Sequence[float], dtype: torch.dtype
    ) -> None:
        self._inputs, self._words = (x, y), (words, y_words)
        self._scalars, self._dtype = scalars, dtype
        self._registers: dict[int, Tensor] = {}

    def run(self, program: list[Instruction]) -> Tensor:
        """Runs the program, and returns the last register, (a, b), which has one pixel."""
        last = {register: index for index, i in enumerate(program) for register in (i.src, i.src2)}
        for index, i in enumerate(program):
            self._registers[i.dst] = self._result(i)
            for register in {i.src, i.src2} - {-1}:
                if last[register] == index:
                    del self._registers[register]
        return self._registers[program[-1].dst].flatten(1)

    def _result(self, i: Instruction) -> Tensor:
        s = self._scalars[i.scale]
        match i.op:
            case Op.INPUT:
                return s * self._input(i)
            case Op.CONSTANT:
                return s * self._pattern(i)
        source = self._registers[i.src]
        match i.op:
            case Op.BOX:
                boxed = s * box(source, i) + self._constant(i)
                return boxed if i.first < 0 else boxed * self._counts(i)
            case Op.GATE:
                return s * source * self._counts(i)
            case Op.SELECT:
                return s * (at_windows(source, i) * self._counts(i)).sum((4, 5, 8, 9))
            case Op.MASKED_BOX:
                return s * (at_offsets(source, i) * self._counts_at_offsets(i)).sum(6)
            case Op.POOL:
                weights = self._weights(i)
                return s * weights[:, :, None, None] * weights * at_windows(source, i).sum((4, 5, 8, 9))
            case Op.RESAMPLE:
                weights = self._resampling(i)
                left = torch.einsum("pqhw,abhwrs->abpqrs", weights, source)
                return s * torch.einsum("abpqhw,rshw->abpqrs", left, weights)
            case Op.ADD:
                total = s * source + self._constant(i)
                return total if i.src2 < 0 else total + self._scalars[i.scale2] * self._registers[i.src2]
            case Op.TRACE:
                return s * torch.einsum("abpqpq->ab", source)[..., None, None, None, None]
        raise ValueError(f"program: op {i.op} is not one of {[op.name for op in Op]}")

    def _input(self, i: Instruction) -> Tensor:
        columns = slice(i.first, i.first + i.channels * i.height * i.width)
        left, right = (x[:, columns].unflatten(1, (i.channels, i.height, i.width)) for x in self._inputs)
        return torch.einsum("acpq,bcrs->abpqrs", left, right)

    def _counts(self, i: Instruction) -> Tensor:
        """Returns <g(p), g'(p')>, with the axes of at_windows if the masks belong to windows."""
        window = (i.kernel_h, i.kernel_w) if i.op == Op.SELECT else ()
        shape = (i.out_height, i.out_width, *window)
        counts = torch.einsum("apc,bqc->abpq", *self._masks(i, math.prod(shape)))
        return counts.unflatten(3, shape).unflatten(2, shape)

    def _counts_at_offsets(self, i: Instruction) -> Tensor:
        """Returns <m_u(p), m'_u(p')>, with the axes of at_offsets."""
        shape, offsets = (i.out_height, i.out_width), i.kernel_h * i.kernel_w
        left, right = (m.unflatten(1, (-1, offsets)) for m in self._masks(i, math.prod(shape) * offsets))
        return torch.einsum("apuc,bquc->abpqu", left, right).unflatten(3, shape).unflatten(2, shape)

    def _masks(self, i: Instruction, positions: int) -> list[Tensor]:
        """Returns the masks of both sides, (a, positions, channels) and (b, positions, channels)."""
        firsts, size = (i.first, i.first if i.first_y < 0 else i.first_y), words_used(positions, i.channels)
        spans = (words[:, first : first + size] for words, first in zip(self._words, firsts, strict=True))
        return [gates_of_layer(span, positions, i.channels).to(self._dtype) for span in spans]

    def _constant(self, i: Instruction) -> float:
        return 0.0 if i.constant < 0 else self._scalars[i.constant]

    def _weights(self, i: Instruction) -> Tensor:
        shape = (i.out_height, i.out_width)
        return self._matrix(i.scale2, shape) if i.scale2 >= 0 else self._inputs[0].new_ones(shape, dtype=self._dtype)

    def _resampling(self, i: Instruction) -> Tensor:
        """Returns A of a RESAMPLE, (out_height, out_width, height, width)."""
        rows = self._matrix(i.scale2, (i.out_height, i.height))
        columns = self._matrix(i.scale2 + rows.numel(), (i.out_width, i.width))
        return torch.einsum("ph,qw->pqhw", rows, columns)

    def _matrix(self, first: int, shape: tuple[int, int]) -> Tensor:
        """Returns a matrix whose numbers lie in the scalars from `first` on, row by row."""
        listed = self._scalars[first : first + math.prod(shape)]
        return torch.tensor(listed, dtype=self._dtype, device=self._inputs[0].device).view(shape)

    def _pattern(self, i: Instruction) -> Tensor:
        device = self._inputs[0].device
        rows, columns = (
            torch.eye(size, dtype=self._dtype, device=device) if i.pattern & bit else torch.ones(size, size).to(device)
            for size, bit in ((i.height, SAME_ROW), (i.width, SAME_COLUMN))
        )
        pattern = torch.einsum("pr,qs->pqrs", rows.to(self._dtype), columns.to(self._dtype))
        return pattern.expand(len(self._inputs[0]), len(self._inputs[1]), *pattern.shape)


def box(kernel: Tensor, i: Instruction) -> Tensor:
    """Sums K(f(p, u), f(p', u)) over the offsets u, first along the rows, then along the columns."""
    rows, columns = source_rows(i), source_columns(i)
    kernel = with_zeros(kernel)
    kernel = reduce(torch.add, (kernel.index_select(2, r).index_select(4, r) for r in rows.unbind(1)))
    return reduce(torch.add, (kernel.index_select(3, c).index_select(5, c) for c in columns.unbind(1)))


def at_windows(kernel: Tensor, i: Instruction) -> Tensor:
    """Returns K(f(p, u), f(p', v)) as (a, b, rows, columns, kernel_h, kernel_w of p, and the same four of p')."""
    rows, columns = source_rows(i), source_columns(i)
    windows = with_zeros(kernel)
    for axis, index in ((5, columns), (4, rows), (3, columns), (2, rows)):
        windows = windows.index_select(axis, index.flatten()).unflatten(axis, index.shape)
    # Now each of the four axes is (pixel, offset): (a, b, r, i, q, j, r', i', q', j').
    return windows.permute(0, 1, 2, 4, 3, 5, 6, 8, 7, 9)


def at_offsets(kernel: Tensor, i: Instruction) -> Tensor:
    """Returns K(f(p, u), f(p', u)) as (a, b, rows, columns of p, and of p', offsets)."""
    kernel = with_zeros(kernel)
    places = product(source_rows(i).unbind(1), source_columns(i).unbind(1))
    here = (kernel.index_select(2, r).index_select(4, r).index_select(3, c).index_select(5, c) for r, c in places)
    return torch.stack(list(here), 6)


def with_zeros(kernel: Tensor) -> Tensor:
    """Adds a row and a column of zeros behind each image, which stand for the pixels outside it."""
    return pad(kernel, (0, 1, 0, 1, 0, 1, 0, 1))


def source_rows(i: Instruction) -> Tensor:
    """Returns the row of f(p, u), int64 (out_height, kernel_h); i.height if it lies outside."""
    return _source(i.out_height, i.kernel_h, i.stride_h, i.dilation_h, i.pad_top, i.height, bool(i.circular))


def source_columns(i: Instruction) -> Tensor:
    """Returns the column of f(p, u), int64 (out_width, kernel_w); i.width if it lies outside."""
    return _source(i.out_width, i.kernel_w, i.stride_w, i.dilation_w, i.pad_left, i.width, bool(i.circular))


def _source(out: int, kernel: int, stride: int, dilation: int, before: int, size: int, circular: bool) -> Tensor:
    index = torch.arange(out)[:, None] * stride + torch.arange(kernel) * dilation - before
    return index % size if circular else torch.where((index >= 0) & (index < size), index, size)
