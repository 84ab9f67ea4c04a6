"""A matrix in tiles, each computed when it is needed and kept while there is room."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gatedops.operators.memory import available
from gatedops.operators.sums import add_product, widened
from gatedops.progress import with_bar
from gatedops.scalars import whole_number

# "auto" takes at most this share of the memory that is free, or this many bytes if the system does not say.
SHARE = 0.25
UNKNOWN = 1 << 30

# Some rows or columns: a slice, or int64 indices.
Index = Tensor | slice


def cache_limit(cache: Any, device: torch.device) -> int:
    """Returns the most bytes that may be stored.

    Args:
        cache: "none": 0; "auto": a share of the memory that is free now; else a whole number of bytes.
    """
    if isinstance(cache, str):
        if cache not in ("auto", "none"):
            raise ValueError(f"cache: got {cache!r}, needs 'auto', 'none' or a number of bytes")
        free = available(device) if cache == "auto" else 0
        return UNKNOWN if free is None else int(SHARE * free)
    number = whole_number(cache)
    if number is None:
        raise TypeError(f"cache: got {type(cache).__name__}, needs 'auto', 'none' or a whole number of bytes")
    if number < 0:
        raise ValueError(f"cache: got {number}, needs at least 0 bytes")
    return number


class _Kept(dict[tuple[int, int], Tensor]):
    """The tiles that are kept, by their row and their column in the grid of tiles."""

    nbytes = 0


class Tiles:
    """A matrix ``(n, m)`` in tiles.

    Args:
        shape: ``(n, m)``.
        dtype, device: of the entries.
        symmetric: whether the matrix is; then only the tiles on and above the diagonal are computed and kept.
        compute: returns the entries of some rows and columns.
        edge: the rows and columns of a tile.
        limit: the most bytes that are kept.
        what: names the work on one tile, for the bar that a pass shows while it computes.
        progress: whether to show that bar. None: on a terminal, once it has taken a second.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        symmetric: bool,
        compute: Callable[[Index, Index], Tensor],
        edge: int,
        limit: int,
        what: str,
        progress: bool | None = None,
    ) -> None:
        self.shape, self._dtype, self._device, self._symmetric = shape, dtype, device, symmetric
        self._compute, self._edge, self._limit = compute, edge, limit
        self._what, self._progress = what, progress
        self._kept = _Kept()
        self._transposed = False

    @property
    def T(self) -> Tiles:
        """The transposed matrix, with the same tiles; the matrix itself if it is symmetric."""
        if self._symmetric:
            return self
        other = copy.copy(self)
        other.shape, other._transposed = (self.shape[1], self.shape[0]), not self._transposed
        return other

    @property
    def nbytes(self) -> int:
        """The bytes of all tiles."""
        n, m = self.shape
        if not self._symmetric:
            return n * m * self._dtype.itemsize
        return sum(len(i) * len(j) for i, j in map(self._ranges, self._grid())) * self._dtype.itemsize

    @property
    def kept(self) -> int:
        """The bytes of the tiles that are kept now."""
        return self._kept.nbytes

    def product(self, v: Tensor) -> Tensor:
        """Returns the matrix times v, float64 ``(n, c)``."""
        values = widened(v)
        sums = values.new_zeros((self.shape[0], values.shape[1]))
        grid = self._grid()
        with torch.no_grad():
            progress = self._progress if len(self._kept) < len(grid) else False
            for place in with_bar(grid, self._what, "tile", len(grid), progress):
                i, j = (slice(span.start, span.stop) for span in self._ranges(place))
                straight = None if self._transposed else (values[j], sums[i])
                is_mirrored = self._transposed or (self._symmetric and i != j)
                add_product(self._tile(place), straight, (values[i], sums[j]) if is_mirrored else None)
        return sums[:, : v.shape[1]]

    def diag(self) -> Tensor:
        """Returns the diagonal of a symmetric matrix. Tiles on the diagonal are kept if there is room for all tiles;
        otherwise each entry is computed alone."""
        n = self.shape[0]
        whole = self.nbytes <= self._limit
        found = torch.empty(n, dtype=self._dtype, device=self._device)
        with torch.no_grad():
            for start in range(0, n, self._edge):
                place = (start // self._edge,) * 2
                if whole or place in self._kept:
                    found[start : start + self._edge] = self._tile(place).diagonal()
                    continue
                for row in range(start, min(start + self._edge, n)):
                    one = slice(row, row + 1)
                    found[one] = self._compute(one, one)[0]
        return found

    def block(self, rows: Index, cols: Index) -> Tensor:
        """Returns the entries of some rows and columns; those in tiles that are kept are not computed again."""
        if self._transposed:
            return self.T.block(cols, rows).mT
        with torch.no_grad():
            if not self._kept:
                return self._compute(rows, cols)
            left, right = (
                _indices(index, size, self._device) for index, size in ((rows, self.shape[0]), (cols, self.shape[1]))
            )
            entries = torch.empty((len(left), len(right)), dtype=self._dtype, device=self._device)
            for i, at in _grouped(left, self._edge):
                for j, to in _grouped(right, self._edge):
                    entries[at[:, None], to] = self._part(i, j, left[at], right[to])
        return entries

    def _part(self, i: int, j: int, rows: Tensor, cols: Tensor) -> Tensor:
        """Returns the entries of some rows and columns that lie in one tile."""
        if self._symmetric and i > j:
            return self._part(j, i, cols, rows).mT
        if (i, j) not in self._kept:
            return self._compute(rows, cols)
        return self._kept[i, j][(rows - i * self._edge)[:, None], cols - j * self._edge]

    def _tile(self, place: tuple[int, int]) -> Tensor:
        if place in self._kept:
            return self._kept[place]
        i, j = (slice(span.start, span.stop) for span in self._ranges(place))
        tile = self._compute(i, j)
        if self.kept + tile.nbytes <= self._limit:
            self._kept[place] = tile
            self._kept.nbytes += tile.nbytes
        return tile

    def _grid(self) -> list[tuple[int, int]]:
        """Returns the places of the tiles, those of the matrix that is not transposed."""
        n, m = self.shape[::-1] if self._transposed else self.shape
        rows, cols = (range(-(-size // self._edge)) for size in (n, m))
        return [(i, j) for i in rows for j in cols if not self._symmetric or i <= j]

    def _ranges(self, place: tuple[int, int]) -> tuple[range, range]:
        """Returns the rows and the columns of a tile."""
        n, m = self.shape[::-1] if self._transposed else self.shape
        i, j = (range(size)[k * self._edge : (k + 1) * self._edge] for k, size in zip(place, (n, m), strict=True))
        return i, j


def _indices(index: Index, size: int, device: torch.device) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(size, device=device)[index]
    return torch.where(index < 0, index + size, index)


def _grouped(index: Tensor, edge: int) -> list[tuple[int, Tensor]]:
    """Returns each row or column of tiles that the indices touch, with the places of its indices."""
    tiles = index // edge
    return [(int(tile), (tiles == tile).nonzero().flatten()) for tile in tiles.unique()]
