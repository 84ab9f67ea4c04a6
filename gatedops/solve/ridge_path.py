"""Kernel ridge regression for many ridges, which share a preconditioner and their products with K."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from gatedops.ops.checks import require_option
from gatedops.solve import checks
from gatedops.solve.iterate import Callback, Steps, conjugate_gradients, warned
from gatedops.solve.problem import MAX_ITER, chosen_method, problem_of
from gatedops.solve.ridge import cholesky
from gatedops.solve.solution import Solution

METHODS = ("auto", "cholesky", "cg")
# A product with this many columns takes little longer than one with few.
_COLUMNS = 96
# Each ridge needs a factor of its own, (rank, rank) in float64.
_RIDGES = 16


def ridge_path(
    K: Any,
    targets: Any,
    ridges: Iterable[float],
    *,
    method: str = "auto",
    rank: int | None = None,
    tol: float = 1e-3,
    max_iter: int | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> list[Solution]:
    """Returns the solution of `kernel_ridge` for each ridge, in the order of the ridges.

    With "cg" all ridges share one factor of K, and the columns of several ridges, up to 96, share each product. A path
    then costs little more than its smallest ridge. What does not fit together goes from the largest ridge to the
    smallest, and each solve starts from the one before.

    Args:
        K, targets, method, rank, tol, max_iter, callback, progress: as in `kernel_ridge`. The residuals that callback
            gets are those of all columns that are solved together. `Solution.iterations` and `Solution.seconds` count
            what the ridges that are solved together took.
        ridges: at least one.

    Warns:
        RuntimeWarning: as `kernel_ridge`, for each ridge.

    Raises:
        TypeError, ValueError: as `kernel_ridge`, or ridges is empty.
    """
    begun = time.monotonic()
    require_option("method", method, METHODS, listed=True)
    checks.require_callback(callback)
    asked = checks.ridges_of(ridges)
    problem, tol = problem_of(K, targets), checks.tol_of(tol)
    max_iter = checks.whole_number(MAX_ITER if max_iter is None else max_iter, "max_iter", 1)
    used, method = checks.rank_of(rank, len(problem.targets)), chosen_method(method, problem)
    problem = problem.for_ridge(min(asked), method)
    if method == "cholesky":
        return [warned(cholesky(problem, ridge, tol, time.monotonic())) for ridge in asked]
    steps = Steps(used, tol, max_iter, callback=callback, progress=progress)
    together = min(_RIDGES, max(1, _COLUMNS // problem.targets.shape[1]))
    largest_first = sorted(set(asked), reverse=True)
    found: dict[float, Solution] = {}
    start = preconditioner = None
    for first in range(0, len(largest_first), together):
        group = largest_first[first : first + together]
        for solution in conjugate_gradients(problem, group, steps, begun, start, preconditioner):
            found[solution.ridge] = warned(solution)
        preconditioner = solution.system.preconditioner
        start = solution.alpha.repeat(1, len(largest_first[first + together : first + 2 * together]))
        begun = time.monotonic()
    return [found[ridge] for ridge in asked]
