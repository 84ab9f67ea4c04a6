"""Tall matrices cut into tiles of rows, whose products and sums have the same bits for any number of threads.

torch's matrix products and sums over many rows add in an order that depends on the number of threads. A batch of at
least two small products does not, because each of them runs on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ROWS = 256
# This many tiles are taken to float64 together. It is even, as is the number of tiles, so no batch has one tile alone.
_TOGETHER = 8
# A sum of one column over more rows than this could be shared among threads.
_SUMMED = 16_384


def empty_tiles(n: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns zeros ``(tiles, 256, columns)`` on the device of `like`, with room for n rows."""
    return torch.zeros(_count(n), ROWS, columns, dtype=dtype, device=like.device)


def to_tiles(v: Tensor) -> Tensor:
    """Returns a copy of v ``(n, c)`` in tiles, ``(tiles, 256, c)``, whose last rows are zero."""
    tiles = empty_tiles(len(v), v.shape[1], v, v.dtype)
    tiles.view(tiles.shape[0] * ROWS, v.shape[1])[: len(v)] = v
    return tiles


def times(tiles: Tensor, small: Tensor) -> Tensor:
    """Returns the product of a tall matrix in tiles and a small float64 matrix, in tiles, float64."""
    small = small.contiguous()
    product = small.new_empty(*tiles.shape[:2], small.shape[1])
    for part in _parts(tiles):
        batch = tiles[part].to(torch.float64)
        torch.bmm(batch, small.expand(len(batch), *small.shape), out=product[part])
    return product


def transposed_times(tiles: Tensor, other: Tensor) -> Tensor:
    """Returns A^T B in float64, for tall matrices A and B in tiles, of which B has fewer columns."""
    # B^T A is faster, because it reads the rows of A in their order.
    total = torch.zeros(other.shape[2], tiles.shape[2], dtype=torch.float64, device=tiles.device)
    for part in _parts(tiles):
        total += torch.bmm(other[part].to(torch.float64).mT, tiles[part].to(torch.float64)).sum(0)
    return total.T


def gram(tiles: Tensor) -> Tensor:
    """Returns A^T A in float64, for a tall matrix A in tiles. Only its lower triangle is computed."""
    r = tiles.shape[2]
    total = torch.zeros(r, r, dtype=torch.float64, device=tiles.device)
    for part in _parts(tiles):
        batch = tiles[part].to(torch.float64)
        for begin in range(0, r, ROWS):
            end = min(begin + ROWS, r)
            total[begin:end, :end] += torch.bmm(batch[:, :, begin:end].mT, batch[:, :, :end]).sum(0)
    return torch.tril(total) + torch.tril(total, -1).T


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of each column of a ``(n, c)`` with the same column of b, float64 ``(c,)``."""
    total = torch.zeros(a.shape[1], dtype=torch.float64, device=a.device)
    for begin in range(0, len(a), _SUMMED):
        total += (a[begin : begin + _SUMMED] * b[begin : begin + _SUMMED]).sum(0)
    return total


def norms(v: Tensor) -> Tensor:
    """Returns the norm of each column of v ``(n, c)``, float64 ``(c,)``, for numbers of any size."""
    scale = powers_of_two(v)
    v = v / scale
    return dots(v, v).sqrt() * scale


def powers_of_two(v: Tensor) -> Tensor:
    """Returns for each column of v ``(n, c)`` the power of two at or below its largest magnitude, float64 ``(c,)``; 1
    if that is zero or not finite. A division by this power rounds nothing, and squares then stay in range."""
    largest = v.abs().amax(0) if len(v) else v.new_zeros(v.shape[1])
    # The mantissa is half of largest / power.
    powers = largest / (2 * torch.frexp(largest).mantissa)
    return torch.where((largest > 0) & torch.isfinite(largest), powers, 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Uses one thread of torch in the block: LAPACK's factors of small matrices depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(n: int) -> int:
    return max(2, 2 * -(-n // (2 * ROWS)))


def _parts(tiles: Tensor) -> Iterator[slice]:
    for begin in range(0, len(tiles), _TOGETHER):
        yield slice(begin, begin + _TOGETHER)
