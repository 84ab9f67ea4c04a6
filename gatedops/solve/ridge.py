"""Kernel ridge regression at any size: Cholesky for few points, preconditioned conjugate gradients for many."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from gatedops.atomic_file import file_at
from gatedops.ops.checks import require_option
from gatedops.solve import checks
from gatedops.solve.checkpoint import Checkpoint
from gatedops.solve.dense import factored
from gatedops.solve.iterate import Callback, Steps, conjugate_gradients, scale_of, warned
from gatedops.solve.problem import MAX_ITER, Problem, chosen_method, joined, problem_of
from gatedops.solve.row_tiles import norms
from gatedops.solve.solution import Solution, SolvedSystem

METHODS = ("auto", "cholesky", "cg", "nystrom")
_LOST = "is not accurate: K is nearly singular with this ridge, so Cholesky lost its digits: use a larger ridge"


def kernel_ridge(
    K: Any,
    targets: Any,
    ridge: float,
    *,
    method: str = "auto",
    rank: int | None = None,
    tol: float = 1e-3,
    max_iter: int | None = None,
    x0: Any = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 60.0,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> Solution:
    """Solves (K + ridge * mean(diag K) I) alpha = targets - mean(targets) (docs/math.md section 15).

    The same arguments give the same bits on every run, and for any number of threads if the products with K do. This
    does not hold for "cholesky", which is torch's. Labels become targets by `path_kernels.regression.one_hot`.

    Args:
        K: ``(n, n)``, symmetric and positive semidefinite: an operator (NPKOperator), a tensor, an array, or an
            operator of scipy or linear_operator.
        targets: ``(n,)`` or ``(n, c)``, numbers; whole numbers only as ``(n, c)``. They are centred by their means.
        ridge: at least 0, in units of the mean of the diagonal of K.
        method: "cholesky" factors K in float64, and takes up to ``16 n^2`` bytes. "cg" needs only products with K.
            "auto" takes "cholesky" up to 4,000 points. "nystrom" is an approximation (`nystrom`), with `rank` centres.
        rank: of the preconditioner of "cg", which takes ``4 n rank`` bytes, or ``8 n rank`` if that is little. None:
            n / 4, at most 1000, or 2000 from 30,000 points on.
        tol: the norm of each residual, relative to that of the centred targets, at which its column is solved.
            Predictions of classifiers stop changing at about 1e-3.
        max_iter: the most steps of "cg"; None: 1000.
        x0: a start of "cg", like alpha.
        checkpoint: a file to which "cg" writes, so that a solve that was killed goes on from it bit for bit. The file
            stays: a second call returns its solution after one product, which checks the solution.
        checkpoint_every: the least number of seconds from one writing to the next.
        callback: is called after each step of "cg" with the number of steps and the residuals ``(c,)``.
        progress: whether to show a bar. None: on a terminal, if tqdm is installed.

    Warns:
        RuntimeWarning: the solution does not have the asked tolerance. The text is `Solution.reason`.

    Raises:
        TypeError: an argument has a wrong type, or targets look like labels.
        ValueError: a shape or a value does not fit, K is not positive definite with this ridge, the ridge is too small
            for the dtype of K, the memory is too small, or the checkpoint is of another problem.
    """
    begun = time.monotonic()
    require_option("method", method, METHODS, listed=True)
    problem = problem_of(K, targets)
    ridge, tol, start = checks.ridge_of(ridge), checks.tol_of(tol), checks.start_of(x0, problem.targets)
    max_iter = checks.whole_number(MAX_ITER if max_iter is None else max_iter, "max_iter", 1)
    used, every = checks.rank_of(rank, len(problem.targets)), checks.seconds_of(checkpoint_every)
    checks.require_callback(callback)
    file = None if checkpoint is None else file_at(checkpoint, "checkpoint")
    method = chosen_method(method, problem)
    if method == "nystrom":
        from gatedops.solve.nystrom import nystrom

        return nystrom(problem.operator, problem.targets, ridge, centres=used, progress=progress)
    problem = problem.for_ridge(ridge, method)
    if method == "cholesky":
        return warned(cholesky(problem, ridge, tol, begun))
    kept = None if file is None else Checkpoint(file, every, problem.identity(ridge, used))
    steps = Steps(used, tol, max_iter, kept, callback, progress)
    return warned(conjugate_gradients(problem, [ridge], steps, begun, start)[0])


def cholesky(problem: Problem, ridge: float, tol: float, begun: float) -> Solution:
    """Solves by one Cholesky factorisation in float64.

    Raises:
        ValueError: K is not finite, not positive definite with this ridge, or too large for the memory.
    """
    shift = ridge * problem.unit
    b, mean = checks.centred(problem.targets)
    alpha = torch.cholesky_solve(b, factored(problem.operator, shift, ridge, "use method='cg'"))
    residuals = norms(b - problem.operator.product(alpha) - shift * alpha) / scale_of(b)
    converged = bool((residuals <= tol).all())
    return Solution(
        alpha=alpha,
        mean=mean,
        ridge=ridge,
        iterations=0,
        residuals=residuals,
        recursive=residuals,
        reason=joined("solved by Cholesky" if converged else _LOST, problem.note),
        converged=converged,
        seconds=time.monotonic() - begun,
        method="cholesky",
        rank=0,
        system=SolvedSystem(problem.operator, shift, problem.targets),
    )
