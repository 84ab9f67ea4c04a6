"""Computes kernels of networks that are not dense by programs of the conv_gram family, in blocks of the Gram."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.conv_gram import conv_gram
from gatedops.path_kernels.per_input import PerInput
from gatedops.path_kernels.program_builder import Program
from gatedops.path_kernels.work import work_of
from gatedops.progress import with_bar

# A block of the Gram, which is one step of the bar, has this many rows and columns.
_BLOCK = 128

# A Side has the columns and the words of the inputs of one side.
Side = tuple[Tensor, Tensor]


class ImageKernel:
    """The kernel that a program computes.

    Args:
        per_input: makes what the program reads of each input.
        batch_size: inputs at a time while that is made.
        progress: show a bar over blocks of the Gram; None: on a terminal, once it has taken a second.
    """

    def __init__(self, program: Program, per_input: PerInput, batch_size: int, progress: bool | None) -> None:
        self._program, self._per_input = program, per_input
        self._batch_size, self._progress = batch_size, progress
        self.exponent = program.exponent
        self.work = work_of(program)

    def pairs(
        self, x: Tensor, bits: GateBits | None, y: Tensor | None, y_bits: GateBits | None, dtype: torch.dtype
    ) -> Pairs:
        """Makes what the program reads of the inputs with these gates, once for all blocks."""
        left = self._per_input.rows(x, bits, dtype, self._batch_size)
        right = None if y is None else self._per_input.rows(y, y_bits, dtype, self._batch_size)
        return Pairs(self._program, left, right, dtype)

    def gram(
        self, x: Tensor, bits: GateBits | None, y: Tensor | None, y_bits: GateBits | None, dtype: torch.dtype
    ) -> Tensor:
        """The kernel of the inputs with these gates, times ``2 ** -exponent``."""
        pairs = self.pairs(x, bits, y, y_bits, dtype)
        gram = x.new_empty((len(x), len(x if y is None else y)), dtype=dtype)
        blocks = _blocks(len(gram), gram.shape[1], y is None)
        for i, j in with_bar(blocks, self.what, "block", len(blocks), self._progress):
            gram[i, j] = pairs.block(i, j)
            if y is None and i != j:
                gram[j, i] = gram[i, j].T
        return gram

    @property
    def what(self) -> str:
        """Names the work, for a bar."""
        return f"kernel ({self.work.total:.0e} operations a pair)"


class Pairs:
    """What a program reads of the inputs of both sides, from which it makes any block of their kernel.

    Args:
        left, right: of the rows and of the columns; right is None if both are the same.
        dtype: of the kernel.
    """

    def __init__(self, program: Program, left: Side, right: Side | None, dtype: torch.dtype) -> None:
        self._program, self._left, self._right = program, left, right
        self.dtype, self.device, self.symmetric = dtype, left[0].device, right is None
        self.shape = (len(left[0]), len((right or left)[0]))

    def to(self, dtype: torch.dtype) -> Pairs:
        """The same inputs with a kernel of another dtype."""
        right = None if self._right is None else (self._right[0].to(dtype), self._right[1])
        return Pairs(self._program, (self._left[0].to(dtype), self._left[1]), right, dtype)

    def block(self, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
        """The kernel of some rows and columns. A block of the diagonal, given by one slice twice, is bitwise
        symmetric."""
        same = self.symmetric and isinstance(rows, slice) and isinstance(columns, slice) and rows == columns
        x, words = (part[rows] for part in self._left)
        y, y_words = (None, None) if same else (part[columns] for part in self._right or self._left)
        return conv_gram(x, words, y, y_words, self._program.encoded, self._program.scalars, self.dtype)


def _blocks(n: int, m: int, symmetric: bool) -> list[tuple[slice, slice]]:
    """The blocks of the Gram; if it is symmetric, only those on and above the diagonal."""
    rows, columns = ([slice(k, k + _BLOCK) for k in range(0, size, _BLOCK)] for size in (n, m))
    return [(i, j) for i in rows for j in columns if not symmetric or i.start <= j.start]
