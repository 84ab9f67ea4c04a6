"""Multiplies tiles of a matrix by vectors, with sums in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# Products of blocks of this size with at least two columns have the same bits on any number of threads. For some other
# sizes MKL divides the sums among threads.
_EDGE = 256

# Vectors ``(k, c)`` and the sums that take their product, both float64.
Target = tuple[Tensor, Tensor]


def widened(v: Tensor) -> Tensor:
    """Returns vectors ``(k, c)`` in float64, with at least two columns, as :func:`add_product` needs them."""
    values = v.detach().to(torch.float64)
    return values if values.shape[1] > 1 else pad(values, (0, 2 - values.shape[1]))


def add_product(tile: Tensor, straight: Target | None, mirrored: Target | None = None) -> None:
    """Adds the product of a tile to sums.

    Args:
        tile: ``(a, b)``, float32 or float64.
        straight: vectors ``(b, c)`` and sums ``(a, c)``, to which ``tile @ vectors`` is added.
        mirrored: vectors ``(a, c)`` and sums ``(b, c)``, to which ``tile.mT @ vectors`` is added.
    """
    for start in range(0, tile.shape[0], _EDGE):
        i = slice(start, start + _EDGE)
        for first in range(0, tile.shape[1], _EDGE):
            j = slice(first, first + _EDGE)
            block = _whole(tile[i, j])
            if straight is not None:
                _add(block, straight[0][j], straight[1][i])
            if mirrored is not None:
                _add(block.mT, mirrored[0][i], mirrored[1][j])


def _add(block: Tensor, vectors: Tensor, sums: Tensor) -> None:
    if len(vectors) < _EDGE:
        vectors = pad(vectors, (0, 0, 0, _EDGE - len(vectors)))
    if len(sums) == _EDGE:
        sums.addmm_(block, vectors)
    else:
        sums += (block @ vectors)[: len(sums)]


def _whole(block: Tensor) -> Tensor:
    """Returns a block of the full size in float64, with zeros after its rows and columns."""
    rows, cols = block.shape
    return pad(block.to(torch.float64), (0, _EDGE - cols, 0, _EDGE - rows))
