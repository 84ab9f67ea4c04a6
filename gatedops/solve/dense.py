"""Kernel matrices that are stored in float64, their Cholesky factor and their eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.solve.checks import LARGER_RIDGE, NOT_FINITE, require_memory

# This many entries are computed together.
_ENTRIES = 1 << 24


def factored(operator: KernelOperator, shift: float, ridge: float, remedy: str) -> Tensor:
    """Returns the lower Cholesky factor ``(n, n)`` of K + shift I.

    Args:
        ridge: what errors call the shift.
        remedy: what errors advise if the memory is too small.

    Raises:
        ValueError: K is not finite, not positive definite with this shift, or too large for the memory.
    """
    n = operator.shape[0]
    require_memory(16 * n * n, operator.device, f"K: Cholesky of {n:,} points", remedy)
    system = _entries(operator)
    system.diagonal().add_(shift)
    failed = torch.empty((), dtype=torch.int32, device=system.device)
    lower, _ = torch.linalg.cholesky_ex(system, out=(system, failed))
    if int(failed):
        raise ValueError(f"K: is not positive definite with ridge={ridge:g}: {LARGER_RIDGE}")
    return lower


def decomposed(operator: KernelOperator, remedy: str) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues ``(n,)`` of a symmetric kernel, the smallest first, and the eigenvectors ``(n, n)``.

    Raises:
        ValueError: K is not finite, or too large for the memory.
    """
    n = operator.shape[0]
    require_memory(24 * n * n, operator.device, f"K: an eigendecomposition of {n:,} points", remedy)
    values, vectors = torch.linalg.eigh(_entries(operator))
    return values, vectors


def _entries(operator: KernelOperator) -> Tensor:
    """Returns all entries in float64, computed in blocks of rows."""
    n = operator.shape[0]
    found = torch.empty(n, n, dtype=torch.float64, device=operator.device)
    step = max(1, _ENTRIES // n)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        found[rows] = operator.block(rows, slice(None))
        if not bool(torch.isfinite(found[rows]).all()):
            raise ValueError(NOT_FINITE)
    return found
