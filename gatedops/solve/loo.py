"""Leave-one-out: what a kernel regression says of each point if it is fitted to all others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.ops.checks import require_option
from gatedops.solve import checks
from gatedops.solve.dense import decomposed
from gatedops.solve.inverse import by_cholesky, by_probes
from gatedops.solve.row_tiles import dots, powers_of_two
from gatedops.solve.solution import Solution

RIDGES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

# "auto" factors a kernel of up to this many points: 800 MB.
_FACTORED = 10_000
# An eigendecomposition of this many points takes minutes and 2.4 GB.
_MOST_DECOMPOSED = 10_000


@overload
def loo(
    solution: Solution,
    *,
    intercept: str = "fixed",
    method: str = "auto",
    probes: int = 64,
    tol: float = 1e-3,
    seed: int = 0,
    return_error: Literal[False] = False,
    progress: bool | None = None,
) -> Tensor: ...
@overload
def loo(
    solution: Solution,
    *,
    intercept: str = "fixed",
    method: str = "auto",
    probes: int = 64,
    tol: float = 1e-3,
    seed: int = 0,
    return_error: Literal[True],
    progress: bool | None = None,
) -> tuple[Tensor, Tensor]: ...
def loo(
    solution: Solution,
    *,
    intercept: str = "fixed",
    method: str = "auto",
    probes: int = 64,
    tol: float = 1e-3,
    seed: int = 0,
    return_error: bool = False,
    progress: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns the leave-one-out residuals ``y_i - f_-i(x_i)``, float64 ``(n, c)``: f_-i is fitted to all points but i.

        alpha_i / ((K + lambda I)^-1)_ii        lambda = ridge * mean(diag K)

    They are those of n refits that keep the lambda of all n points. With `intercept="fixed"` these also keep the means
    of all n targets; with "free" each refit finds an intercept, without a penalty. The kernel stays too: gates of a net
    that was trained on point i know it. The predictions f_-i(x_i) are the targets minus the residuals.

    Args:
        solution: of `kernel_ridge` or `ridge_path`. The residuals are as exact as its alpha.
        intercept: "fixed" or "free". The full fit of "free" also has a free intercept, unlike the solution.
        method: "cholesky" computes the diagonal of the inverse in float64, ``16 n^2`` bytes. "probes" estimates it, as
            the diagonal of the inverse of the preconditioner P plus an estimate of the rest, the mean over random
            vectors z of +-1 of ``z_i ((K + lambda I)^-1 z - P^-1 z)_i``. "auto" takes "cholesky" up to 10,000 points.
        probes: how many vectors z, at least 2. The error falls with the root of their number.
        tol: of the solves for them.
        seed: of the vectors z.
        return_error: whether to return also the standard error of each residual that the probes cause, float64
            ``(n, c)``; zeros with "cholesky".
        progress: whether to show a bar. None: on a terminal, if tqdm is installed.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: the solution is that of another function, an option does not exist, a number is out of range, or the
            memory is too small.

    Source: docs/math.md section 15; the diagonal by probes: Bekas, Kokiopoulou and Saad 2007.
    """
    _require_ridge(solution)
    require_option("intercept", intercept, ("fixed", "free"))
    require_option("method", method, ("auto", "cholesky", "probes"), listed=True)
    probes, tol, seed = checks.whole_number(probes, "probes", 2), checks.tol_of(tol), checks.seed_of(seed)
    n = len(solution.alpha)
    if intercept == "free" and n < 2:
        raise ValueError("intercept: got 'free' for one point, needs two, because a refit to none has no intercept")
    ones = solution.alpha.new_ones(n, 1) if intercept == "free" else solution.alpha.new_zeros(n, 0)
    if method == "cholesky" or (method == "auto" and n <= _FACTORED):
        inverse = by_cholesky(solution.system, solution.ridge, ones)
    else:
        inverse = by_probes(solution.system, ones, probes, tol, seed, progress)
    alpha, diagonal = solution.alpha, inverse.diagonal
    if intercept == "free":
        # The inverse of the matrix with a row and a column of ones for the intercept.
        size = dots(ones, inverse.solved)
        alpha = alpha - inverse.solved * (dots(ones.expand_as(alpha), alpha) / size)
        diagonal = diagonal - inverse.solved[:, 0] * (inverse.solved[:, 0] / size)
    residuals = alpha / diagonal[:, None]
    return (residuals, residuals.abs() * (inverse.error / diagonal)[:, None]) if return_error else residuals


def _require_ridge(solution: Any) -> None:
    if not isinstance(solution, Solution):
        raise TypeError(f"solution: got {type(solution).__name__}, needs what kernel_ridge returns")
    if solution.method not in ("cholesky", "cg"):
        raise ValueError(
            f"solution: its method is {solution.method!r}, needs 'cholesky' or 'cg': the formula holds for kernel_ridge"
        )


def select_ridge(K: Any, targets: Tensor | np.ndarray | Sequence[Any], ridges: Iterable[float] = RIDGES) -> float:
    """Returns the ridge with the best leave-one-out predictions.

    One eigendecomposition of K gives the residuals of all ridges, those of :func:`loo` with a fixed intercept.

    Args:
        K: ``(n, n)``, symmetric, at most 10,000 points: an operator, a tensor, an array, or an operator of scipy or
            linear_operator. It takes 24 n^2 bytes.
        targets: integer labels ``(n,)`` from 0, or real targets ``(n,)`` or ``(n, c)``. For labels the ridge with the
            most points whose largest score is at their label wins, and among equals the smallest sum of squared
            residuals of the one-hot targets. For real targets this sum alone decides.
        ridges: relative to the mean of K's diagonal, at least 0. A ridge is left out if K is not positive definite with
            it.

    Raises:
        TypeError: an argument has another type.
        ValueError: K is not symmetric, is empty or too large, or has a diagonal of zeros; targets do not fit K or are
            all the same; values are not finite; a ridge is negative, there are none, or every ridge is left out.
    """
    tried = checks.ridges_of(ridges)
    operator = as_operator(K, "K")
    scale, n = float(checks.checked_diagonal(operator).mean()), operator.shape[0]
    if n > _MOST_DECOMPOSED:
        raise ValueError(
            f"K: got {n:,} points, needs at most {_MOST_DECOMPOSED:,} for an eigendecomposition: choose the ridge on a "
            "random part of the points, or compare gatedops.solve.loo of each solution of ridge_path"
        )
    labels, y = _labels_and_targets(targets, operator)
    y = checks.targets_of(y, operator)
    if bool((y == y[0]).all()):
        raise ValueError("targets: got the same for every point, needs two classes or values that differ")
    values, vectors = decomposed(operator, "use fewer points")
    rounding = len(values) * torch.finfo(torch.float64).eps * float(values[-1])
    possible = [ridge for ridge in tried if float(values[0]) + ridge * scale > rounding]
    if not possible:
        raise ValueError(f"K is not positive definite with any of the ridges: {checks.LARGER_RIDGE}")

    # The squares of the residuals then stay in range.
    y = y / powers_of_two((y - y.mean(0)).view(-1, 1))
    scores: list[tuple[float, float, float]] = []
    for ridge, residuals in zip(possible, _residuals(values, vectors, y - y.mean(0), possible, scale), strict=True):
        hits = 0.0 if labels is None else float((y - residuals).argmax(1).eq(labels).sum())
        scores.append((hits, -float(residuals.square().sum()), ridge))
    return max(scores)[2]


def _residuals(values: Tensor, vectors: Tensor, y: Tensor, ridges: list[float], scale: float) -> Iterator[Tensor]:
    """Yields for each ridge the residuals ``(n, c)`` for centred targets y. Squares the vectors in place."""
    columns = y.shape[1]
    inverse = [1 / (values + ridge * scale) for ridge in ridges]
    inside = vectors.T @ y
    alpha = vectors @ torch.cat([factor[:, None] * inside for factor in inverse], 1)
    diagonal = vectors.square_() @ torch.stack(inverse, 1)
    for place in range(len(ridges)):
        yield alpha[:, place * columns : (place + 1) * columns] / diagonal[:, place : place + 1]


def _labels_and_targets(targets: Any, operator: KernelOperator) -> tuple[Tensor | None, Tensor]:
    """Returns integer labels ``(n,)`` and their one-hot targets, or None and the real targets."""
    found = checks.tensor_of(targets, "targets").to(operator.device)
    if found.is_floating_point() or found.ndim != 1 or len(found) == 0:
        return None, found
    labels = found.long()
    if int(labels.min()) < 0:
        raise ValueError(f"targets: got the label {int(labels.min())}, needs labels from 0")
    classes = int(labels.max()) + 1
    what = f"targets: one-hot targets of {classes:,} classes"
    checks.require_memory(8 * len(labels) * classes, operator.device, what, "number the classes from 0 without gaps")
    return labels, torch.nn.functional.one_hot(labels)
