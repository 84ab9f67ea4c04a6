"""Reads tensors ``(..., width)`` as the rows of a matrix, without a large copy if their strides allow no view."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.portable.workspace import PIECE

# A tensor of at most this many bytes is copied as a whole.
LARGE = 4 * PIECE


class Rows:
    """The rows of a tensor. `matrix` has all of them, or is None if that would need a large copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.n, self.width = tensor.shape[:-1].numel(), tensor.shape[-1]
        small = tensor.nbytes <= LARGE
        self.matrix = tensor.reshape(self.n, self.width) if small or _has_view(tensor) else None

    @property
    def at_once(self) -> int:
        """How many rows can be read at a time."""
        return self.n if self.matrix is not None else max(1, LARGE // (self.width * self._tensor.itemsize))

    def at(self, rows: slice, columns: slice = slice(None)) -> Tensor:
        """Returns these rows and columns."""
        if self.matrix is not None:
            return self.matrix[rows, columns]
        index = torch.arange(rows.start, rows.stop, device=self._tensor.device)
        places: list[Tensor | slice] = []
        for size in reversed(self._tensor.shape[:-1]):
            places.append(index % size)
            index = index // size
        index_of_all = (*places[::-1], columns)
        return self._tensor[index_of_all]


def _has_view(tensor: Tensor) -> bool:
    """Whether a view of the tensor's memory is a matrix of its rows."""
    try:
        tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        return False
    return True
