"""Entries of a kernel matrix for pairs of a row and a column, from blocks of entries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A block of this many rows and as many columns is computed for the pairs on its diagonal.
_EDGE = 128


def entries_of_pairs(block: Callable[[Tensor, Tensor], Tensor], rows: Tensor, cols: Tensor) -> Tensor:
    """Returns the entries ``(rows[k], cols[k])``, ``(k,)``.

    Args:
        block: returns the entries of some rows and columns, ``(a, b)``, for int64 indices ``(a,)`` and ``(b,)``.
        rows, cols: int64 ``(k,)``, at least 0.
    """
    if not len(rows):
        return block(rows, cols).flatten()
    own_rows, row_at = rows.unique(return_inverse=True)
    own_cols, col_at = cols.unique(return_inverse=True)
    # One block has them all if few rows or few columns are asked for, such as a row of the matrix.
    if len(own_rows) * len(own_cols) <= _EDGE * len(rows):
        return block(own_rows, own_cols)[row_at, col_at]
    pieces = zip(rows.split(_EDGE), cols.split(_EDGE), strict=True)
    return torch.cat([block(some, others).diagonal() for some, others in pieces])
