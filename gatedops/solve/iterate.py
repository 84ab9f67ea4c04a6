"""Solves with conjugate gradients: from a problem to its solutions, with checkpoints, callbacks and a bar."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.progress import stages
from gatedops.solve import block_cg, checks
from gatedops.solve.checkpoint import Checkpoint, Saved
from gatedops.solve.preconditioner import Preconditioner, preconditioner_of
from gatedops.solve.problem import Problem, joined
from gatedops.solve.row_tiles import norms
from gatedops.solve.solution import Solution, SolvedSystem, change_of_predictions

# A solve keeps this many copies of its columns, most of them inside a step.
_COPIES = 10

Callback = Callable[[int, Tensor], None]


@dataclass(frozen=True, eq=False)
class Steps:
    """How the steps are taken.

    Attributes:
        rank: of the preconditioner.
        tol: of the residuals.
        max_iter: the most steps.
        file: the checkpoint, or None.
        callback: is called after each step.
        progress: whether to show a bar; None: on a terminal.
    """

    rank: int
    tol: float
    max_iter: int
    file: Checkpoint | None = None
    callback: Callback | None = None
    progress: bool | None = None


@dataclass(frozen=True, eq=False)
class _Ended:
    """The last state, the norms of the true residuals, "converged", "stalled" or "max_iter", and the seconds."""

    state: block_cg.State
    true: Tensor
    why: str
    seconds: float


def conjugate_gradients(
    problem: Problem,
    ridges: Sequence[float],
    steps: Steps,
    begun: float,
    start: Tensor | None = None,
    preconditioner: Preconditioner | None = None,
) -> list[Solution]:
    """Solves for all ridges together, and returns a solution for each.

    Args:
        begun: when the solve began, by time.monotonic().
        start: float64 ``(n, ridges * c)``, or None.
        preconditioner: None: it is made here.
    """
    n, c = problem.targets.shape
    columns = c * len(ridges)
    checks.require_memory(
        n * (4 * steps.rank + 8 * _COPIES * columns),
        problem.operator.device,
        f"targets: a solve of {columns:,} columns with rank {steps.rank:,} for {n:,} points",
        "solve for fewer columns at a time, or with a smaller rank",
    )
    b = checks.centred(problem.targets)[0].repeat(1, len(ridges))
    scale = scale_of(b)
    b /= scale
    shifts = torch.tensor([ridge * problem.unit for ridge in ridges], dtype=torch.float64, device=b.device)
    shifts = shifts.repeat_interleave(c)
    saved = steps.file.load(b.device) if steps.file is not None else None
    ended = None if saved is None else _finished(problem.operator, shifts, b, saved, steps.tol)
    if ended is None:
        preconditioner = preconditioner or preconditioner_of(problem.operator, problem.diagonal, steps.rank)
        system = block_cg.System(problem.operator, shifts, preconditioner.at(shifts))
        x = None if start is None else torch.where(b.any(0), start / scale, 0)
        ended = _run(system, b, x, steps, begun, saved)
    ended.state.x.mul_(scale)
    parts = [slice(place * c, (place + 1) * c) for place in range(len(ridges))]
    return [
        _solution(problem, ridge, ended, part, steps, preconditioner) for ridge, part in zip(ridges, parts, strict=True)
    ]


def scale_of(b: Tensor) -> Tensor:
    """Returns the norm of each column, or 1 if the column is zero."""
    scale = norms(b)
    return torch.where(scale > 0, scale, 1)


def warned(solution: Solution) -> Solution:
    """Returns the solution, after a warning if it has not converged."""
    if not solution.converged:
        warnings.warn(f"kernel_ridge {solution.reason}", RuntimeWarning, stacklevel=3)
    return solution


def _finished(operator: KernelOperator, shifts: Tensor, b: Tensor, saved: Saved, tol: float) -> _Ended | None:
    """Returns what a checkpoint holds if it is a solution. The true residuals are computed anew, because a checkpoint
    knows only some entries of K, and the others may have changed."""
    if saved.true is None or not bool((saved.true <= tol).all()):
        return None
    true = norms(b - operator.product(saved.state.x) - shifts * saved.state.x)
    if bool((true <= tol).all()):
        return _Ended(saved.state, true, "converged", saved.seconds)
    # The solve goes on, and must not take these residuals for a stall.
    saved.state.before.fill_(float("inf"))
    return None


def _run(
    system: block_cg.System, b: Tensor, x: Tensor | None, steps: Steps, begun: float, saved: Saved | None
) -> _Ended:
    """Steps from x, or from what a checkpoint holds."""
    begun -= saved.seconds if saved is not None else 0.0
    state = saved.state if saved is not None else block_cg.started(system, b, x, steps.tol)
    with stages(0, "step", "kernel_ridge", state.iterations, steps.progress) as advance:

        def after(state: block_cg.State) -> None:
            advance(f"residual {float(state.recursive.max()):.1e}")
            if steps.file is not None:
                steps.file.save(state, time.monotonic() - begun)
            if steps.callback is not None:
                steps.callback(state.iterations, state.recursive.clone())

        true, why = block_cg.solve(system, b, state, steps.tol, steps.max_iter, after)
    seconds = time.monotonic() - begun
    if steps.file is not None:
        steps.file.finish(state, true, seconds)
    return _Ended(state, true, why, seconds)


def _solution(
    problem: Problem, ridge: float, ended: _Ended, part: slice, steps: Steps, preconditioner: Preconditioner | None
) -> Solution:
    """Returns the solution of one ridge, whose columns are `part`."""
    true = ended.true[part].clone()
    converged = bool((true <= steps.tol).all())
    reason = f"converged: each residual is at most {steps.tol:g}"
    if not converged:
        reason = _fault(ended, true, problem.targets, steps)
    return Solution(
        alpha=ended.state.x[:, part].contiguous(),
        mean=checks.centred(problem.targets)[1],
        ridge=ridge,
        iterations=ended.state.iterations,
        residuals=true,
        recursive=ended.state.recursive[part].clone(),
        reason=joined(reason, problem.note),
        converged=converged,
        seconds=ended.seconds,
        method="cg",
        rank=steps.rank if preconditioner is None else preconditioner.rank,
        system=SolvedSystem(problem.operator, ridge * problem.unit, problem.targets, preconditioner),
    )


def _fault(ended: _Ended, true: Tensor, targets: Tensor, steps: Steps) -> str:
    """Says why the solve has not converged, what that means, and what to do."""
    change = change_of_predictions(true, targets)
    found = (
        f"after {ended.state.iterations} steps: the largest residual is {float(true.max()):.1e}, tol is {steps.tol:g}. "
        f"Predictions of the training points are within {change:.1e} (root mean square) of the exact ones. "
    )
    if ended.why == "stalled":
        return f"stalled {found}The products with K are not exact enough for more: {checks.LARGER_TOL}"
    return f"stopped {found}Use a larger max_iter, rank or ridge"
