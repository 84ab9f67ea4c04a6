"""The diagonal of (K + shift I)^-1: by a factorisation, or estimated by random vectors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.progress import stages
from gatedops.solve import block_cg, checks
from gatedops.solve.dense import factored
from gatedops.solve.preconditioner import Preconditioner, preconditioner_of
from gatedops.solve.problem import MAX_ITER
from gatedops.solve.row_tiles import norms, one_thread, times
from gatedops.solve.solution import SolvedSystem

# The inverse of the triangular factor is computed in panels of this many columns.
_PANEL = 1024
# A solve keeps this many copies of the probes.
_COPIES = 10


@dataclass(frozen=True, eq=False)
class InverseDiagonal:
    """The diagonal of (K + shift I)^-1 and its standard error, float64 ``(n,)``, and the inverse times what the caller
    gave, ``(n, c)``."""

    diagonal: Tensor
    error: Tensor
    solved: Tensor


def by_cholesky(system: SolvedSystem, ridge: float, given: Tensor) -> InverseDiagonal:
    """Factors K + shift I in float64. The diagonal of the inverse is that of L^-T L^-1.

    Raises:
        ValueError: K is not finite or not positive definite with this shift, or the memory is too small.
    """
    lower = factored(system.operator, system.shift, ridge, "use method='probes'")
    n = len(lower)
    diagonal = given.new_empty(n)
    for begin in range(0, n, _PANEL):
        columns = given.new_zeros(n - begin, min(_PANEL, n - begin))
        columns.diagonal().fill_(1)
        columns = torch.linalg.solve_triangular(lower[begin:, begin:], columns, upper=False)
        diagonal[begin : begin + _PANEL] = columns.square().sum(0)
    return InverseDiagonal(diagonal, torch.zeros_like(diagonal), torch.cholesky_solve(given, lower))


def by_probes(
    system: SolvedSystem, given: Tensor, probes: int, tol: float, seed: int, progress: bool | None
) -> InverseDiagonal:
    """Estimates the diagonal with vectors of +-1, for which K + shift I is solved by conjugate gradients.

    The preconditioner P resembles K + shift I, so its inverse, whose diagonal is known, is subtracted: the vectors only
    estimate the rest.
    """
    operator, n = system.operator, len(given)
    needed = 8 * _COPIES * n * (probes + given.shape[1])
    checks.require_memory(needed, operator.device, f"probes: a block of {probes:,} for {n:,} points", "use fewer")
    entries = operator.diag().to(torch.float64)
    factor = system.preconditioner or preconditioner_of(operator, entries, checks.rank_of(None, n))
    made = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (n, probes), generator=made, device="cpu").to(given.device, torch.float64) * 2 - 1
    shifts = given.new_full((probes + given.shape[1],), system.shift)
    problem = block_cg.System(operator, shifts, factor.at(shifts))
    solved = _solved(problem, torch.cat([signs, given], 1), tol, progress)
    scale = system.shift + factor.tail
    rest = signs * (solved[:, :probes] - problem.preconditioner.of_columns(slice(probes)).solve(signs) / scale)
    diagonal = _of_preconditioner(factor, scale, n) + rest.mean(1)
    # An entry of the inverse is at least the inverse of the entry, and at most that of the smallest eigenvalue.
    bounded = torch.maximum(diagonal, 1 / (entries + system.shift))
    if system.shift > 0:
        bounded = bounded.clamp(max=1 / system.shift)
    return InverseDiagonal(bounded, rest.std(1) / probes**0.5, solved[:, probes:])


def _solved(system: block_cg.System, b: Tensor, tol: float, progress: bool | None) -> Tensor:
    """Returns (K + shift I)^-1 b, after a warning if tol is not reached."""
    size = norms(b)
    b = b / size
    state = block_cg.started(system, b, None, tol)
    with stages(0, "step", "loo", progress=progress) as advance:

        def after(state: block_cg.State) -> None:
            advance(f"residual {float(state.recursive.max()):.1e}")

        true, why = block_cg.solve(system, b, state, tol, MAX_ITER, after)
    if why != "converged":
        warnings.warn(
            f"loo: the solves for the probes ended with residuals of up to {float(true.max()):.1e}, not tol={tol:g}; "
            f"the errors are larger than stated: {checks.LARGER_TOL}",
            RuntimeWarning,
            stacklevel=4,
        )
    return state.x * size


def _of_preconditioner(factor: Preconditioner, scale: float, n: int) -> Tensor:
    """Returns the diagonal of (F F^T + scale I)^-1, ``(n,)``."""
    system = factor.gram.clone()
    system.diagonal().add_(scale)
    with one_thread():
        lower = torch.linalg.cholesky(system)
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    sizes = [times(part, inverse.T).square().sum(2).flatten() for part in factor.tiles.split(16)]
    return (1 - torch.cat(sizes)[:n]) / scale
