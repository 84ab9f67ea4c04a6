"""What a solve with a kernel returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.solve.checks import centred
from gatedops.solve.preconditioner import Preconditioner
from gatedops.solve.row_tiles import norms
from gatedops.tables import ShownAsTable, Table, whole


@dataclass(frozen=True, eq=False)
class SolvedSystem:
    """What was solved, for functions that go on from a solution.

    Attributes:
        operator: K.
        shift: ridge * mean(diag K).
        targets: float64 ``(n, c)``, not centred.
        preconditioner: None if the solve did not need one.
    """

    operator: KernelOperator
    shift: float
    targets: Tensor
    preconditioner: Preconditioner | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Solution(ShownAsTable):
    """A kernel regression: the solution of (K + ridge * mean(diag K) I) alpha = targets - mean.

    Attributes:
        alpha: float64 ``(n, c)``; it does not include the mean.
        mean: float64 ``(c,)``, the means of the columns of the targets.
        ridge: in units of the mean of the diagonal of K.
        iterations: how many steps all columns together took; each step is one product with K. 0 for "cholesky".
        residuals: float64 ``(c,)``, the norms of the true residuals, relative to the norms of the centred targets.
        recursive: the same as the last step updated them, which is where the steps stop.
        reason: why the solve stopped, and what else a reader should know.
        converged: whether every true residual is at most the tolerance.
        seconds: how long the solve took, including the part before it went on from a checkpoint.
        method: "cholesky", "cg" or "nystrom".
        rank: of the preconditioner, or the number of centres of "nystrom". 0 for "cholesky".
    """

    alpha: Tensor
    mean: Tensor
    ridge: float
    iterations: int
    residuals: Tensor
    recursive: Tensor
    reason: str
    converged: bool
    seconds: float
    method: str
    rank: int
    system: SolvedSystem = field(repr=False)

    def predict(self, K_test: Any) -> Tensor:
        """Returns the scores of m test points, float64 ``(m, c)``: K_test alpha + mean.

        Args:
            K_test: ``(m, n)``, the kernel of test points with the n training points (with the centres, if this is a
                NystromSolution): an operator, a tensor, an array, or an operator of scipy or linear_operator.

        Raises:
            ValueError: K_test has another number of columns.
        """
        return self.kernel_of(K_test).product(self.alpha) + self.mean

    def kernel_of(self, K_test: Any) -> KernelOperator:
        """Returns K_test, as predict takes it, as an operator. ValueError if it has another number of columns."""
        return operator_of(K_test, f"(m, {len(self.alpha)}), a column per training point", len(self.alpha))

    def table(self) -> Table:
        """What was solved, how, and how well."""
        points, columns = self.alpha.shape
        rows = (
            ("training points", whole(points)),
            ("targets", whole(columns)),
            ("ridge", f"{self.ridge:g}"),
            ("method", self.method),
            ("rank", whole(self.rank)),
            ("iterations", whole(self.iterations)),
            ("largest residual", f"{float(self.residuals.max()):.1e}"),
            ("largest recursive residual", f"{float(self.recursive.max()):.1e}"),
            ("seconds", f"{self.seconds:.1f}"),
        )
        return Table(f"Solution ({self.reason})", ("solved", ""), rows)


def operator_of(K_test: Any, needs: str, columns: int) -> KernelOperator:
    """Returns the kernel of test points as an operator.

    Args:
        needs: what the error about another number of columns asks for.

    Raises:
        ValueError: it is not a matrix, or has another number of columns.
    """
    shape = getattr(K_test, "shape", ())
    if len(shape) == 1:
        raise ValueError(f"K_test: got shape {tuple(shape)}, needs {needs}: K_test[None] is that of one test point")
    operator = as_operator(K_test, "K_test")
    if operator.shape[1] != columns:
        raise ValueError(f"K_test: has shape {tuple(operator.shape)}, needs {needs}")
    return operator


def change_of_predictions(residuals: Tensor, targets: Tensor) -> float:
    """Returns a bound on how far the predictions of the training points are from those of the exact solution: the
    largest root mean square over the columns.

    The exact solution differs by (K + shift I)^-1 r, where r is the residual. The predictions differ by K times that,
    which is at most as long as r.

    Args:
        residuals: relative to the norms of the columns of the centred targets.
        targets: float64 ``(n, c)``.
    """
    spread = norms(centred(targets)[0]) / len(targets) ** 0.5
    return float(torch.max(residuals * spread))
