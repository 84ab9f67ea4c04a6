"""Kernel regression with a Gram matrix: one solve, C right-hand sides (docs/math.md section 4).

    (K_train + ridge * (trace(K_train) / n) * I) alpha = Y - mean(Y)
    scores = K(test, train) alpha + mean(Y)

The ridge is relative to the mean of the diagonal, so an overall factor of the kernel changes no score.
Every tensor may also be a numpy array, and labels and targets may be lists.
All functions compute in float64, whatever the dtype of the Gram. They add only the ridge to the diagonal. If a Gram is
not positive definite with its ridge, for instance because it was rounded to float32 and the ridge is tiny, `fit` raises
an error. `gatedops.solve.select_ridge` chooses a ridge.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.ops.checks import require_float64
from gatedops.tables import ShownAsTable, Table, whole

RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False, repr=False)
class KernelRegression(ShownAsTable):
    """A fitted regression: alpha float64 (n, C), offset float64 (C,), which is the mean target, and the relative
    ridge."""

    alpha: Tensor
    offset: Tensor
    ridge: float

    def table(self) -> Table:
        """The numbers of training points and targets, and the ridge."""
        points, targets = self.alpha.shape
        rows = (("training points", whole(points)), ("targets", whole(targets)), ("ridge", f"{self.ridge:g}"))
        return Table("KernelRegression", ("fitted", ""), rows)

    def predict(self, k_test_train: Tensor) -> Tensor:
        """Returns the scores, float64 (m, C), of m test points, from their kernel (m, n) with the n training points.

        Raises:
            ValueError: the kernel has another shape.
        """
        k_test_train = as_tensor(k_test_train, "k_test_train")
        if k_test_train.ndim != 2 or k_test_train.shape[1] != len(self.alpha):
            raise ValueError(
                f"k_test_train must have shape (m, {len(self.alpha)}), with a column per training point; "
                f"got {tuple(k_test_train.shape)}"
            )
        return k_test_train.to(torch.float64) @ self.alpha + self.offset


def one_hot(labels: Tensor | Sequence[int], classes: int) -> Tensor:
    """Makes targets, float64 (n, classes), from integer labels (n,): 1 at the label, 0 elsewhere."""
    return torch.nn.functional.one_hot(_row_values(labels, "labels").long(), classes).to(torch.float64)


def accuracy(scores: Tensor, labels: Tensor | Sequence[int]) -> float:
    """The share, from 0 to 1, of the rows of scores (n, C) whose largest entry is at the label."""
    scores = as_tensor(scores, "scores")
    return (scores.argmax(1) == _row_values(labels, "labels", scores)).double().mean().item()


def fit(k_train: Tensor, targets: Tensor | Sequence[Any], ridge: float = 1e-3) -> KernelRegression:
    """Solves for the dual coefficients by one Cholesky factorisation in float64.

    Args:
        k_train: (n, n), symmetric (the lower triangle is read), any float dtype.
        targets: (n, C) or (n,); they are centred here.
        ridge: at least 0, relative to the mean of k_train's diagonal.

    Raises:
        ValueError: shapes do not fit, values are not finite, the diagonal is all zeros, the ridge is negative, or the
            matrix is not positive definite with this ridge.
    """
    k_train = as_tensor(k_train, "k_train")
    targets = _row_values(targets, "targets", k_train)
    _check(k_train, targets)
    fitted = _solve(k_train, targets, ridge)
    if fitted is None:
        raise ValueError(f"k_train is not positive definite with ridge={ridge:g}: use a larger ridge or a float64 Gram")
    return fitted


def select_ridge(
    k_train: Tensor,
    labels: Tensor | Sequence[int],
    ridges: Iterable[float] = RIDGES,
    *,
    validation: float = 0.2,
    seed: int = 0,
) -> float:
    """Returns what :func:`gatedops.solve.select_ridge` does: the ridge with the best leave-one-out accuracy.

    Deprecated: use that function. `validation` and `seed` belong to an earlier choice on held-out points; they are
    not used.
    """
    from gatedops.solve import select_ridge as by_leave_one_out

    warnings.warn(
        "gatedops.path_kernels.regression.select_ridge is deprecated: use gatedops.solve.select_ridge, which does the "
        "same; validation and seed are not used",
        DeprecationWarning,
        stacklevel=2,
    )
    return by_leave_one_out(k_train, _row_values(labels, "labels").long(), ridges)


def _row_values(given: Any, name: str, beside: Tensor | None = None) -> Tensor:
    """Labels or targets as a tensor. If they are given as a list, they lie on the device of the tensor `beside`."""
    if not isinstance(given, (list, tuple)):
        return as_tensor(given, name)
    try:
        values = as_tensor(np.asarray(given), name)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got a {type(given).__name__} of other things, needs a list of numbers") from None
    return values if beside is None else values.to(beside.device)


def _solve(k_train: Tensor, targets: Tensor, ridge: float) -> KernelRegression | None:
    """The fitted regression; None if the matrix is not positive definite with this ridge."""
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    y = targets.to(torch.float64).reshape(len(targets), -1)
    offset = y.mean(0)
    system = k_train.to(torch.float64, copy=True)
    system.diagonal().add_(ridge * float(system.diagonal().mean()))
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        return None
    return KernelRegression(torch.cholesky_solve(y - offset, factor), offset, float(ridge))


def _check(k_train: Tensor, targets: Tensor) -> None:
    require_float64(k_train.device, "k_train")
    if k_train.ndim != 2 or k_train.shape[0] != k_train.shape[1] or len(k_train) == 0:
        raise ValueError(f"k_train must have shape (n, n) with n > 0, got {tuple(k_train.shape)}")
    if targets.ndim not in (1, 2) or len(targets) != len(k_train):
        raise ValueError(f"targets must have {len(k_train)} rows, one per training point, got {tuple(targets.shape)}")
    if not (bool(torch.isfinite(k_train).all()) and bool(torch.isfinite(targets).all())):
        raise ValueError("k_train and targets must be finite: if the kernel overflows, use scale='width' or float64")
    if not float(k_train.diagonal().sum()) > 0:
        raise ValueError("k_train has no positive diagonal: every input is zero or has no gate on")
