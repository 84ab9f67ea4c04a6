"""What a solve is asked to do, after all checks that need little work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.solve import checks
from gatedops.solve.checkpoint import digest

# "auto" takes Cholesky up to this many points.
_CHOLESKY = 4_000
# Conjugate gradients take at most this many steps if nobody says otherwise.
MAX_ITER = 1_000


@dataclass(frozen=True, eq=False)
class Problem:
    """A kernel and targets that passed all checks.

    Attributes:
        operator: K.
        diagonal: float64 ``(n,)``.
        sample: some columns of K, float64.
        targets: float64 ``(n, c)``.
        note: what a reader of the solution should know, or "".
    """

    operator: KernelOperator
    diagonal: Tensor
    sample: Tensor
    targets: Tensor
    note: str

    @property
    def unit(self) -> float:
        """The mean of the diagonal, the unit of a ridge."""
        return float(self.diagonal.mean())

    def for_ridge(self, ridge: float, method: str) -> Problem:
        """Returns the problem in float64 if rounding could make K indefinite with this ridge.

        Raises:
            ValueError: it could, and K exists in its own dtype alone.
        """
        least = checks.smallest_ridge(self.operator, self.sample, float(self.diagonal.sum()))
        if ridge >= least:
            return self
        # It is rounded up, so that the number in the message suffices.
        shown = f"{1.05 * least:.1e}"
        if self.operator.dtype != torch.float64:
            try:
                operator = self.operator.with_dtype(torch.float64)
            except NotImplementedError:
                pass
            else:
                diagonal = checks.checked_diagonal(operator)
                note = f"entries of K taken to float64, because float32 needs a ridge of at least {shown}"
                return replace(self, operator=operator, diagonal=diagonal, note=joined(self.note, note)).for_ridge(
                    ridge, method
                )
        if method == "cholesky":
            return self
        exact = "" if self.operator.dtype == torch.float64 else "a float64 kernel, "
        raise ValueError(
            f"ridge: got {ridge:g}, needs at least {shown}, because the rounding of K to {self.operator.dtype} can "
            f"make it indefinite: use a larger ridge, {exact}or method='cholesky'"
        )

    def identity(self, ridge: float, rank: int) -> dict[str, str]:
        """Returns what makes a checkpoint one of this problem."""
        return {
            "the number of points": str(len(self.targets)),
            "the ridge": repr(ridge),
            "the rank": str(rank),
            "the targets": digest(self.targets),
            "the entries of K": digest(self.diagonal, self.sample) + str(self.operator.dtype),
        }


def problem_of(K: Any, targets: Any) -> Problem:
    """Returns the checked problem.

    Raises:
        TypeError, ValueError: as kernel_ridge says.
    """
    operator = as_operator(K, "K")
    checks.require_symmetric(operator)
    values = checks.targets_of(targets, operator)
    diagonal = checks.checked_diagonal(operator)
    zeros = int((diagonal == 0).sum())
    note = f"{zeros} of {len(diagonal)} rows of K are zero: these points have no part in predictions" if zeros else ""
    if bool((values == values[0]).all()):
        note = joined("targets are constant, so alpha is 0 and predictions are the mean", note)
    return Problem(operator, diagonal, checks.sampled_columns(operator), values, note)


def chosen_method(method: str, problem: Problem) -> str:
    """Returns the method that "auto" stands for."""
    if method != "auto":
        return method
    return "cholesky" if len(problem.targets) <= _CHOLESKY else "cg"


def joined(*notes: str) -> str:
    """Returns the notes that are not empty, as one text."""
    return "; ".join(note for note in notes if note)
