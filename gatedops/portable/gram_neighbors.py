"""Computes gate_neighbors by torch operations: it keeps the k largest values of each row so far, and sorts them again
with each new block of columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.portable.checks import require, require_float
from gatedops.portable.gram_blocks import GateRows, Problem, Tile, require_scale
from gatedops.portable.workspace import blocks, edge_of, pieces


def gate_neighbors(
    words: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    k: int,
    dtype: torch.dtype,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Finds the k largest Lambda of each row and their columns. The arguments are those of the op."""
    problem = Problem.of(words, y_words, first, y_first, count, slope, widths)
    require_scale(scale, problem)
    require_float(dtype, "dtype")
    n, m = problem.shape
    candidates = m - 1 if problem.symmetric else m
    require(k >= 1 and (k <= candidates or n == 0), lambda: f"k: got {k}, needs 1 to {candidates}")
    values = words.new_empty((n, k), dtype=dtype)
    indices = words.new_empty((n, k), dtype=torch.int64)
    edge = edge_of(words.device)
    for rows in blocks(n, edge):
        left = GateRows(words[rows], first, count, kept=True)
        found = _Nearest(values[rows], indices[rows])
        for columns in blocks(m, edge):
            right = GateRows(problem.y_words[columns], y_first, count, kept=False)
            tile = Tile(rows, columns, left, right, problem.symmetric, problem.slopes)
            found.add(tile.gram(count, scale, dtype), columns.start, without_diagonal=tile.diagonal)
    return values, indices


class _Nearest:
    """The largest values of some rows so far with their indices, in the memory of the results."""

    def __init__(self, values: Tensor, indices: Tensor) -> None:
        self._values, self._indices = values, indices
        self._found = 0

    def add(self, values: Tensor, first: int, *, without_diagonal: bool) -> None:
        """Adds the values of the columns from `first` on. Sorting is stable, and earlier values have lower indices, so
        equal values stay in the order of their indices. NaN counts as the largest value."""
        columns = torch.arange(values.shape[1] - without_diagonal, device=values.device)
        before = self._found
        self._found = min(self._values.shape[1], before + len(columns))
        for rows in pieces(values.shape[0], 16 * (before + len(columns))):
            here = columns.expand(rows.stop - rows.start, -1)
            if without_diagonal:  # The columns behind a row's own column move one place to the front.
                here = here + (here >= torch.arange(rows.start, rows.stop, device=values.device)[:, None])
            merged = torch.cat([self._values[rows, :before], values[rows].gather(1, here)], 1)
            where = torch.cat([self._indices[rows, :before], here + first], 1)
            merged, order = torch.sort(merged, dim=1, descending=True, stable=True)
            self._values[rows, : self._found] = merged[:, : self._found]
            self._indices[rows, : self._found] = where.gather(1, order[:, : self._found])
