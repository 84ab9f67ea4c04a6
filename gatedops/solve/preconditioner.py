"""A preconditioner of K + shift I: a factor of some columns of K, and the mean of what the factor leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.solve.checks import INDEFINITE
from gatedops.solve.pivoted_cholesky import pivoted_factor
from gatedops.solve.row_tiles import gram, one_thread, times, to_tiles, transposed_times


@dataclass(frozen=True, eq=False)
class Preconditioner:
    """K ~ F F^T + tail I (docs/math.md section 15).

    Attributes:
        index: int64 ``(r,)``, the pivots.
        tiles: F ``(n, r)`` in tiles of rows.
        gram: F^T F, float64 ``(r, r)``.
        tail: the mean of the diagonal of K - F F^T.
    """

    index: Tensor
    tiles: Tensor
    gram: Tensor
    tail: float

    @property
    def rank(self) -> int:
        """The number of columns of F."""
        return self.tiles.shape[2]

    def at(self, shifts: Tensor) -> ShiftedPreconditioner:
        """Returns the preconditioner of K + shift I, with a shift for each column of the vectors.

        Args:
            shifts: float64 ``(c,)``, at least 0.

        Raises:
            ValueError: a shift is so small that F^T F + s I is not positive definite in float64.
        """
        distinct, place = torch.unique(shifts.cpu(), return_inverse=True)
        inner, factors = self.gram.cpu(), []
        with one_thread():
            for shift in distinct.tolist():
                system = inner.clone()
                system.diagonal().add_(shift + self.tail)
                factor, failed = torch.linalg.cholesky_ex(system)
                if int(failed):
                    raise ValueError(INDEFINITE)
                factors.append(factor.to(shifts.device))
        return ShiftedPreconditioner(self.tiles, tuple(factors), place.to(shifts.device))


@dataclass(frozen=True, eq=False)
class ShiftedPreconditioner:
    """The inverse of F F^T + s I for some s = shift + tail, times s.

    Attributes:
        tiles: F in tiles of rows.
        factors: for each s, the Cholesky factor of F^T F + s I.
        place: int64 ``(c,)``: the factor of each column of the vectors.
    """

    tiles: Tensor
    factors: tuple[Tensor, ...]
    place: Tensor

    def solve(self, v: Tensor) -> Tensor:
        """Returns s (F F^T + s I)^-1 v = v - F (F^T F + s I)^-1 F^T v, float64 ``(n, c)``."""
        inner = transposed_times(self.tiles, to_tiles(v))
        with one_thread():
            for place, factor in enumerate(self.factors):
                columns = (self.place == place).nonzero()[:, 0]
                if len(columns):
                    inner[:, columns] = torch.cholesky_solve(inner[:, columns], factor)
        return v - times(self.tiles, inner).view(-1, v.shape[1])[: len(v)]

    def of_columns(self, chosen: Tensor | slice) -> ShiftedPreconditioner:
        """Returns the preconditioner of some columns of the vectors."""
        return ShiftedPreconditioner(self.tiles, self.factors, self.place[chosen])


def preconditioner_of(operator: KernelOperator, diagonal: Tensor, rank: int) -> Preconditioner:
    """Returns a preconditioner of at most `rank` columns.

    Args:
        diagonal: of the operator, float64 ``(n,)``.
    """
    factor = pivoted_factor(operator, diagonal, rank)
    return Preconditioner(factor.index, factor.tiles, gram(factor.tiles), float(factor.left.mean()))
