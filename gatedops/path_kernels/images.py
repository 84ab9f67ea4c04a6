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

    def gram(
        self, x: Tensor, bits: GateBits | None, y: Tensor | None, y_bits: GateBits | None, dtype: torch.dtype
    ) -> Tensor:
        """The kernel of the inputs with these gates, times ``2 ** -exponent``."""
        left = self._per_input.rows(x, bits, dtype, self._batch_size)
        right = None if y is None else self._per_input.rows(y, y_bits, dtype, self._batch_size)
        gram = x.new_empty((len(x), len(x if y is None else y)), dtype=dtype)
        blocks = _blocks(len(gram), gram.shape[1], right is None)
        what = f"kernel ({self.work.total:.0e} operations a pair)"
        for i, j in with_bar(blocks, what, "block", len(blocks), self._progress):
            if right is None and i == j:
                gram[i, j] = self._block(left, i, None, j, dtype)
                continue
            gram[i, j] = self._block(left, i, right or left, j, dtype)
            if right is None:
                gram[j, i] = gram[i, j].T
        return gram

    def _block(self, left: Side, i: slice, right: Side | None, j: slice, dtype: torch.dtype) -> Tensor:
        x, words = (part[i] for part in left)
        y, y_words = (None, None) if right is None else (part[j] for part in right)
        return conv_gram(x, words, y, y_words, self._program.encoded, self._program.scalars, dtype)


def _blocks(n: int, m: int, symmetric: bool) -> list[tuple[slice, slice]]:
    """The blocks of the Gram; if it is symmetric, only those on and above the diagonal."""
    rows, columns = ([slice(k, k + _BLOCK) for k in range(0, size, _BLOCK)] for size in (n, m))
    return [(i, j) for i in rows for j in columns if not symmetric or i.start <= j.start]
