"""Chooses the ridge of an estimator by leave-one-out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gatedops.operators.base import KernelOperator
from gatedops.scalars import real_number
from gatedops.solve import checks
from gatedops.solve.loo import RIDGES, loo, select_ridge
from gatedops.solve.ridge_path import ridge_path

# select_ridge decomposes the kernel of up to this many points.
_DECOMPOSED = 10_000
_NEEDS = "needs a number, a list of numbers, or 'loo'"


def ridges_of(given: Any) -> list[float]:
    """Returns the ridges that an estimator is asked to try.

    Raises:
        TypeError, ValueError: they are neither a number of at least 0, nor a sequence of such numbers, nor "loo".
    """
    if isinstance(given, str) and given == "loo":
        return list(RIDGES)
    if real_number(given) is not None:
        return [checks.ridge_of(given)]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"ridge: got {given!r}, {_NEEDS}")
    several = [checks.ridge_of(ridge) for ridge in given]
    if not several:
        raise ValueError(f"ridge: got an empty list, {_NEEDS}")
    return several


def best_ridge(
    K: KernelOperator, targets: np.ndarray, labels: np.ndarray | None, ridges: list[float], tol: float
) -> float:
    """Returns the ridge with the best leave-one-out predictions of the training points.

    Args:
        K: ``(n, n)``.
        targets: float64 ``(n, c)``.
        labels: int64 ``(n,)``, of which the targets are the one-hot form: the ridge with the most hits wins, and among
            equals the smallest sum of squared residuals. None: this sum alone decides.
        ridges: at least one.
        tol: of the solves, if there are more than 10,000 points.
    """
    if len(ridges) == 1:
        return ridges[0]
    if bool((targets == targets[0]).all()):
        return max(ridges)  # All predict the same.
    if len(targets) <= _DECOMPOSED:
        return select_ridge(K, targets if labels is None else labels, ridges)
    scores = []
    for solution in ridge_path(K, targets, ridges, tol=tol, progress=False):
        residuals = loo(solution, progress=False).numpy()
        hits = 0 if labels is None else int(((targets - residuals).argmax(1) == labels).sum())
        scores.append((hits, -float(np.square(residuals).sum()), solution.ridge))
    return max(scores)[2]
