"""Cuts a Gram into tiles, which are blocks of rows and of columns. A symmetric Gram needs only those on and above the
diagonal."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gatedops.portable.workspace import blocks


def tiles(shape: tuple[int, int], edges: tuple[int, int], symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns of each tile of a Gram of this shape. `edges` are the rows and columns of a whole
    tile, which must be equal if the Gram is symmetric."""
    for rows in blocks(shape[0], edges[0]):
        for columns in blocks(shape[1], edges[1]):
            if not symmetric or columns.start >= rows.start:
                yield rows, columns


def write(values: Tensor, out: Tensor, rows: slice, columns: slice, symmetric: bool, *, exact: bool = False) -> None:
    """Puts the values of a tile into `out` and, if `out` is symmetric, also their mirror images, bit for bit. `exact`
    says that a tile on the diagonal is symmetric already, because no sum in it was rounded."""
    if symmetric and rows == columns and not exact:
        values = torch.where(torch.ones_like(values, dtype=torch.bool).triu_(), values, values.mT)
    out[rows, columns] = values
    if symmetric and rows != columns:
        out[columns, rows] = values.mT
