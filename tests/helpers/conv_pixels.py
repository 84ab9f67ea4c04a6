"""Runs programs of conv_gram by loops over pairs of pixels, in float64: a definition that shares no code with the
reference."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gatedops.layout import words_used
from gatedops.ops.conv_program import SAME_COLUMN, SAME_ROW, Instruction, Op, decode
from gatedops.reference.gates import gates_of_layer

Pixel = tuple[int, int]
# These have a mask for each output pixel and offset.
OFFSET_MASKS = (Op.SELECT, Op.MASKED_BOX)


def pixels(height: int, width: int) -> list[Pixel]:
    return [*itertools.product(range(height), range(width))]


class PixelLoops:
    """A register is an array (height, width, height', width', n, m)."""

    def __init__(self, x: Tensor, words: Tensor, y: Tensor | None, y_words: Tensor | None, scalars: Sequence[float]):
        y, y_words = (x, words) if y is None or y_words is None else (y, y_words)
        self._inputs, self._words, self._scalars = (x, y), (words, y_words), scalars
        self._registers: list[np.ndarray] = []
        self._unpacked: dict[tuple[int, int, int, int], np.ndarray] = {}

    def run(self, program: Sequence[int]) -> Tensor:
        """Returns the last register, (n, m)."""
        for i in decode(program):
            out = np.zeros((i.out_height, i.out_width) * 2 + (len(self._inputs[0]), len(self._inputs[1])))
            for p, q in itertools.product(pixels(i.out_height, i.out_width), repeat=2):
                out[p + q] = self._entry(i, p, q)
            self._registers.append(out)
        return torch.from_numpy(self._registers[-1][0, 0, 0, 0])

    def _entry(self, i: Instruction, p: Pixel, q: Pixel) -> np.ndarray | float:
        s = self._scalars[i.scale]
        match i.op:
            case Op.INPUT:
                left, right = (x[:, i.first : i.first + i.channels * i.height * i.width] for x in self._inputs)
                left, right = (x.unflatten(1, (i.channels, i.height, i.width)).double() for x in (left, right))
                return s * (left[:, :, *p] @ right[:, :, *q].T).numpy()
            case Op.CONSTANT:
                equal = all(p[axis] == q[axis] for axis, bit in ((0, SAME_ROW), (1, SAME_COLUMN)) if i.pattern & bit)
                return s * equal
        source = self._registers[i.src]
        match i.op:
            case Op.BOX | Op.POOL | Op.SELECT | Op.MASKED_BOX:
                return self._window(i, p, q, source)
            case Op.GATE:
                return s * source[p + q] * self._overlap(i, self._at(i, p), self._at(i, q))
            case Op.ADD:
                second = self._scalars[i.scale2] * self._registers[i.src2][p + q] if i.src2 >= 0 else 0
                return s * source[p + q] + second + self._constant(i)
            case Op.TRACE:
                return s * sum(source[r + r] for r in pixels(i.height, i.width))
            case Op.RESAMPLE:
                left, right = self._resampling(i, p), self._resampling(i, q)
                return s * np.einsum("rs,tu,rstunm->nm", left, right, source)
        raise AssertionError(i.op)

    def _window(self, i: Instruction, p: Pixel, q: Pixel, source: np.ndarray) -> np.ndarray | float:
        s, total = self._scalars[i.scale], 0.0
        area = i.kernel_h * i.kernel_w
        for (u, f), (v, g) in itertools.product(self._read(i, p), self._read(i, q)):
            if i.op in (Op.BOX, Op.MASKED_BOX) and u != v:
                continue
            left, right = self._at(i, p) * area + u, self._at(i, q) * area + v
            total += source[f + g] * (self._overlap(i, left, right) if i.op in OFFSET_MASKS else 1.0)
        if i.op == Op.POOL and i.scale2 >= 0:
            total *= self._scalars[i.scale2 + self._at(i, p)] * self._scalars[i.scale2 + self._at(i, q)]
        total = s * total + self._constant(i)
        return total * self._overlap(i, self._at(i, p), self._at(i, q)) if i.op == Op.BOX and i.first >= 0 else total

    def _read(self, i: Instruction, p: Pixel) -> Iterator[tuple[int, Pixel]]:
        """Lists the offsets in the window of p that read a pixel, and these pixels."""
        for k, (u, v) in enumerate(pixels(i.kernel_h, i.kernel_w)):
            row, column = p[0] * i.stride_h + u * i.dilation_h - i.pad_top, p[1] * i.stride_w + v * i.dilation_w
            column -= i.pad_left
            if i.circular:
                row, column = row % i.height, column % i.width
            if 0 <= row < i.height and 0 <= column < i.width:
                yield k, (row, column)

    def _resampling(self, i: Instruction, p: Pixel) -> np.ndarray:
        """Returns A(p, .), (height, width)."""
        rows, columns = np.split(np.array(self._scalars[i.scale2 :]), [i.out_height * i.height])
        columns = columns[: i.out_width * i.width].reshape(i.out_width, i.width)
        return np.outer(rows.reshape(i.out_height, i.height)[p[0]], columns[p[1]])

    def _overlap(self, i: Instruction, left: int, right: int) -> np.ndarray:
        """Returns <m(left), m'(right)> of the masks at two positions, (n, m)."""
        a, b = self._masks(0, i.first, i), self._masks(1, i.first if i.first_y < 0 else i.first_y, i)
        return a[:, left] @ b[:, right].T

    def _masks(self, side: int, first: int, i: Instruction) -> np.ndarray:
        """Returns the masks of an instruction, (n, positions, channels)."""
        positions = i.out_height * i.out_width * (i.kernel_h * i.kernel_w if i.op in OFFSET_MASKS else 1)
        key = (side, first, positions, i.channels)
        if key not in self._unpacked:
            span = self._words[side][:, first : first + words_used(positions, i.channels)]
            self._unpacked[key] = gates_of_layer(span, positions, i.channels).double().numpy()
        return self._unpacked[key]

    def _at(self, i: Instruction, p: Pixel) -> int:
        return p[0] * i.out_width + p[1]

    def _constant(self, i: Instruction) -> float:
        return self._scalars[i.constant] if i.constant >= 0 else 0.0
