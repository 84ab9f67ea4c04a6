"""Conjugate gradients on many columns at once, which share each product with the kernel (docs/math.md section 15).

A direction is rounded to the dtype of the kernel before it is used. The product then takes the fast path, and is still
the product with exactly that direction. The residuals that are updated from step to step therefore stay as exact as the
products. Both scalars of a step are quotients that hold for any direction, so the rounding does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.solve.checks import INDEFINITE
from gatedops.solve.preconditioner import ShiftedPreconditioner
from gatedops.solve.row_tiles import dots, norms

# Steps aim a little below the tolerance, so that rounding does not put the true residual above it.
_AIM = 0.99


@dataclass(frozen=True, eq=False)
class System:
    """The equations (K + shift_j I) x_j = b_j.

    Attributes:
        operator: K, symmetric ``(n, n)``.
        shifts: float64 ``(c,)``.
        preconditioner: of all columns.
    """

    operator: KernelOperator
    shifts: Tensor
    preconditioner: ShiftedPreconditioner

    def residual(self, x: Tensor, b: Tensor) -> Tensor:
        """Returns b - (K + shift I) x, from a product that keeps all digits of x."""
        return b - self.operator.product(x) - self.shifts * x


@dataclass
class State:
    """Everything that the next step depends on.

    Attributes:
        x: float64 ``(n, c)``, the solution so far, for columns b_j of norm 1 or 0.
        r, p: float64 ``(n, a)``, residuals and next directions of the columns that have not converged.
        active: int64 ``(a,)``, these columns.
        recursive: float64 ``(c,)``, the norms of the residuals as the steps update them.
        before: float64 ``(c,)``, the norms of the true residuals when they were last computed.
        iterations: how many steps were taken.
    """

    x: Tensor
    r: Tensor
    p: Tensor
    active: Tensor
    recursive: Tensor
    before: Tensor
    iterations: int = 0


def started(system: System, b: Tensor, x: Tensor | None, tol: float) -> State:
    """Returns the state before the first step, from x or from 0. ValueError if x is too large."""
    state = State(torch.zeros_like(b) if x is None else x.clone(), b, b, torch.arange(0, device=b.device), b[0], b[0])
    residual = b if x is None else system.residual(x, b)
    if x is not None and not bool(torch.isfinite(norms(residual)).all()):
        raise ValueError("x0: is so large that its residual is not finite: use a smaller start")
    _restart(system, state, residual, tol)
    state.before = torch.full_like(state.recursive, float("inf"))
    return state


def solve(
    system: System, b: Tensor, state: State, tol: float, max_iter: int, after: Callable[[State], None]
) -> tuple[Tensor, str]:
    """Goes on from a state until every true residual is at most tol, and returns these residuals and why it stopped:
    "converged", "stalled" or "max_iter".

    Args:
        after: is called after every step.

    Raises:
        ValueError: a direction shows that a matrix is not positive definite or not finite.
    """
    while True:
        while len(state.active) and state.iterations < max_iter:
            _step(system, state, tol)
            after(state)
        residual = system.residual(state.x, b)
        true = norms(residual)
        open_ = ~(true <= tol)  # NaN is open, too.
        if not bool(open_.any()):
            return true, "converged"
        if state.iterations >= max_iter:
            return true, "max_iter"
        if bool((true > state.before / 2)[open_].any()):
            return true, "stalled"
        _restart(system, state, residual, tol)
        state.before = true


def _restart(system: System, state: State, residual: Tensor, tol: float) -> None:
    """Begins anew from the true residuals, with the columns that have not converged."""
    state.recursive = norms(residual)
    state.active = (~(state.recursive <= tol)).nonzero()[:, 0]
    state.r = residual[:, state.active].contiguous()
    state.p = state.r
    if len(state.active):
        state.p = system.preconditioner.of_columns(state.active).solve(state.r)


def _step(system: System, state: State, tol: float) -> None:
    """Takes one step in all active columns; columns that converge become inactive."""
    shifts = system.shifts[state.active]
    direction = state.p.to(system.operator.dtype)
    p = direction.to(torch.float64)
    q = system.operator.product(direction) + shifts * p
    curvature = dots(p, q)
    _check_curvature(curvature)
    length = dots(p, state.r) / curvature
    state.x[:, state.active] += length * p
    state.r = state.r - length * q
    found = norms(state.r)
    state.recursive[state.active] = found
    state.iterations += 1
    kept = ~(found <= _AIM * tol)
    if not bool(kept.all()):
        state.active, state.r = state.active[kept], state.r[:, kept].contiguous()
        p, q, curvature = p[:, kept], q[:, kept], curvature[kept]
    if len(state.active):
        z = system.preconditioner.of_columns(state.active).solve(state.r)
        state.p = z - dots(z, q) / curvature * p
    else:
        state.p = state.r


def _check_curvature(curvature: Tensor) -> None:
    if not bool(torch.isfinite(curvature).all()):
        raise ValueError("K: a product with it is not finite: scale the kernel (scale='width'), or look for NaN in it")
    if bool((curvature <= 0).any()):
        raise ValueError(INDEFINITE)
