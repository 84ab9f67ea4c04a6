"""Approximate kernel ridge regression with some centres, for more points than products with all of K allow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatedops.operators.adapters import as_operator
from gatedops.operators.base import KernelOperator
from gatedops.progress import with_bar
from gatedops.scalars import whole_number
from gatedops.solve import checks
from gatedops.solve.iterate import scale_of
from gatedops.solve.row_tiles import norms, one_thread
from gatedops.solve.solution import Solution, SolvedSystem, operator_of
from gatedops.tables import Table, listed, whole

# A block of rows of K_nm has at most this many entries: 64 MiB in float64.
_ENTRIES = 1 << 23
# The products of a block are computed in panels of this many columns, because their lower triangle suffices.
_PANEL = 512
# The smallest jitter in units of the last bit of the kernel's entries, and the largest in units of mean(diag K).
_LEAST_JITTER, _MOST_JITTER = 8, 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class NystromSolution(Solution):
    """Kernel ridge regression with m centres: the Solution whose alpha is ``(m, c)``.

    Attributes:
        centres: int64 ``(m,)``, which training points are centres.
        jitter: what was added to the diagonal of the kernel of the centres to factor it, in units of mean(diag K). 0 if
            it could be factored as it is.
        residuals: float64 ``(c,)``, of the m equations, relative to their right sides.
    """

    centres: Tensor
    jitter: float

    def kernel_of(self, K_test: Any) -> KernelOperator:
        """Returns K_test, the kernel ``(q, m)`` of test points with the centres, as an operator. ValueError if it has
        another number of columns."""
        m = len(self.alpha)
        needs = f"(q, {m}), a column for each centre: choose the training points solution.centres"
        return operator_of(K_test, needs, m)

    def table(self) -> Table:
        """What was solved, how, and how well."""
        rows = (
            ("training points", whole(len(self.system.targets))),
            ("targets", whole(self.alpha.shape[1])),
            ("ridge", f"{self.ridge:g}"),
            ("centres", whole(len(self.centres))),
            ("jitter", f"{self.jitter:.1e}"),
            ("largest residual", f"{float(self.residuals.max()):.1e}"),
            ("seconds", f"{self.seconds:.1f}"),
        )
        return Table("NystromSolution", ("solved", ""), rows)


def nystrom(
    K: Any,
    targets: Any,
    ridge: float,
    *,
    centres: Any,
    seed: int = 0,
    progress: bool | None = None,
) -> NystromSolution:
    """Returns kernel ridge regression whose prediction is a sum over m centres instead of all n points.

        (K_mn K_nm + lambda K_mm) alpha = K_mn (targets - mean)        lambda = ridge * mean(diag K)

    Among the functions ``sum_j alpha_j k(x, centre_j)`` this one has the smallest sum of squared errors plus lambda
    times its squared norm. lambda is that of :func:`kernel_ridge`, so both predict the same if all points are centres.

    Each block of rows of K_nm is computed once and is not kept: ``n m`` entries of the kernel, about ``2 n m^2``
    operations in float64, and ``48 m^2`` bytes. The same arguments give the same bits on every run, and for any number
    of threads if the entries of K do.

    Args:
        K: ``(n, n)``, symmetric and positive semidefinite: an operator, a tensor, an array, or an operator of scipy or
            linear_operator. Only its diagonal and the columns of the centres are computed.
        targets: ``(n,)`` or ``(n, c)``; they are centred by their means.
        ridge: at least 0, in units of the mean of the diagonal of K.
        centres: how many points are centres, chosen at random with equal chances; or their indices ``(m,)``, for
            instance those of :func:`pivots`.
        seed: of the random choice.
        progress: whether to show a bar. None: on a terminal, if tqdm is installed.

    If rounding makes K_mm indefinite, because centres are alike, the smallest jitter that repairs it is added to its
    diagonal. It adds lambda * jitter * |alpha|^2 to what is minimised; `NystromSolution.jitter` has its size.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: a shape or a value does not fit, centres repeat or do not exist, K is not positive semidefinite, the
            ridge is too small to solve the equations, or the memory is too small.

    Source: Rudi, Camoriano and Rosasco 2015 (arXiv 1507.04717); docs/math.md section 15.
    """
    begun = time.monotonic()
    operator, ridge = as_operator(K, "K"), checks.ridge_of(ridge)
    diagonal = checks.checked_diagonal(operator)
    targets, unit = checks.targets_of(targets, operator), float(diagonal.mean())
    chosen = _centres(centres, len(diagonal), checks.seed_of(seed)).to(operator.device)
    m = len(chosen)
    checks.require_memory(48 * m * m, operator.device, f"centres: a system of {m:,}", "use fewer")
    centred, mean = checks.centred(targets)
    whitener, jitter = _whitener(operator, chosen, unit)
    system, right = _normal_equations(operator, chosen, whitener, centred, progress)
    system.diagonal().add_(ridge * unit)
    white, residuals = _solved(system, right, ridge)
    with one_thread():
        alpha = whitener.T @ white
    return NystromSolution(
        alpha=alpha,
        mean=mean,
        ridge=ridge,
        iterations=0,
        residuals=residuals,
        recursive=residuals,
        reason=f"solved with {len(chosen):,} centres",
        converged=True,
        seconds=time.monotonic() - begun,
        method="nystrom",
        rank=len(chosen),
        system=SolvedSystem(operator, ridge * unit, targets),
        centres=chosen,
        jitter=jitter / unit,
    )


def _centres(given: Any, n: int, seed: int) -> Tensor:
    """Returns the indices of the centres, int64 ``(m,)``.

    Raises:
        TypeError, ValueError: they are not whole numbers, do not exist, or repeat.
    """
    if whole_number(given) is not None:
        m = checks.whole_number(given, "centres", 1, n)
        made = torch.Generator().manual_seed(seed)
        return torch.randperm(n, generator=made, device="cpu")[:m].sort().values
    index = checks.tensor_of(given, "centres")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.ndim != 1:
        raise TypeError(f"centres: got {index.dtype} {tuple(index.shape)}, needs a number, or their indices (m,)")
    index = index.long()
    if len(index) == 0 or int(index.min()) < 0 or int(index.max()) >= n:
        raise ValueError(f"centres: got {listed(index.tolist())}, needs indices from 0 to {n - 1}, at least one")
    if len(index.unique()) < len(index):
        raise ValueError("centres: some index occurs twice: use torch.unique(centres)")
    return index


def _whitener(operator: KernelOperator, centres: Tensor, unit: float) -> tuple[Tensor, float]:
    """Returns the inverse W of the lower Cholesky factor of the kernel of the centres, and the jitter that was added to
    its diagonal.

    Raises:
        ValueError: a jitter that rounding explains does not suffice.
    """
    kernel = operator.block(centres, centres).to(torch.float64)
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError(checks.NOT_FINITE)
    jitter, tried = 0.0, _LEAST_JITTER * torch.finfo(operator.dtype).eps * unit
    while True:
        system = kernel.clone()
        system.diagonal().add_(jitter)
        with one_thread():
            lower, failed = torch.linalg.cholesky_ex(system)
            if not int(failed):
                identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
                return torch.linalg.solve_triangular(lower, identity, upper=False), jitter
        if tried > _MOST_JITTER * unit:
            raise ValueError(
                "K: the kernel of the centres is not positive semidefinite, even with "
                f"{jitter / unit:.0e} mean(diag K) on its diagonal: use a float64 kernel, or look for an error in it"
            )
        jitter, tried = tried, 10 * tried


def _normal_equations(
    operator: KernelOperator, centres: Tensor, whitener: Tensor, y: Tensor, progress: bool | None
) -> tuple[Tensor, Tensor]:
    """Returns Z^T Z ``(m, m)`` and Z^T y ``(m, c)`` for Z = K_nm W^T, from one pass over the rows of K_nm.

    Z is computed before it is squared, because whitening K_mn K_nm afterwards would multiply its rounding by the
    condition of K_mm. Every product belongs to a batch of at least two, each of which torch computes on one thread, so
    the sums have the same order for any number of threads.

    Args:
        whitener: W ``(m, m)``, lower triangular.
    """
    n, m = len(y), len(centres)
    half, padded = _PANEL // 2, _PANEL * -(-m // _PANEL)
    step = min(max(2, _ENTRIES // padded // 2 * 2), n + n % 2)
    panels = [slice(first, first + _PANEL) for first in range(0, padded, _PANEL)]
    whitener = torch.nn.functional.pad(whitener, (0, padded - m, 0, padded - m))
    gram, right = y.new_zeros(padded, padded), y.new_zeros(padded, y.shape[1])
    block, z, targets = y.new_zeros(2, step // 2, padded), y.new_zeros(step, padded), y.new_zeros(step, y.shape[1])
    for begin in with_bar(range(0, n, step), "nystrom", "block", -(-n // step), progress):
        rows = slice(begin, min(begin + step, n))
        count = rows.stop - begin
        for whole_block, part in ((block.view(step, padded), operator.block(rows, centres)), (targets, y[rows])):
            whole_block[:count, : part.shape[1]] = part
            whole_block[count:] = 0
        if not bool(torch.isfinite(block).all()):
            raise ValueError(checks.NOT_FINITE)
        for panel in panels:
            used = whitener[panel, : panel.stop].T
            z[:, panel] = torch.bmm(block[:, :, : panel.stop], used.expand(2, *used.shape)).flatten(0, 1)
        # Z^T in pieces of 256 rows.
        pieces = z.view(step, -1, half).permute(1, 2, 0)
        right += torch.bmm(pieces, targets.expand(len(pieces), *targets.shape)).flatten(0, 1)
        for panel in panels:
            below = pieces[panel.start // half :]
            gram[panel.start :, panel] += torch.bmm(below, z[:, panel].expand(len(below), step, _PANEL)).flatten(0, 1)
    gram = gram[:m, :m]
    return gram.tril() + gram.tril(-1).T, right[:m]


def _solved(system: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Returns the solution of a positive definite system and the relative norms of its residuals.

    Raises:
        ValueError: the system is not positive definite.
    """
    with one_thread():
        factor, failed = torch.linalg.cholesky_ex(system)
        if int(failed):
            raise ValueError(f"ridge: got {ridge:g}, with which the equations are singular: use a larger one")
        solution = torch.cholesky_solve(right, factor)
        return solution, norms(right - system @ solution) / scale_of(right)
