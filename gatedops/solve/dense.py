"""Kernel matrices that fit into memory, in float64, and their eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.solve.checks import require_memory

# This many entries are computed together.
_ENTRIES = 1 << 24


def dense(operator: KernelOperator, *, copies: int = 1) -> Tensor:
    """Returns all entries in float64, computed in blocks of rows.

    Args:
        copies: how many matrices of this size the caller needs in all.

    Raises:
        ValueError: the memory is too small, or entries are not finite.
    """
    n, m = operator.shape
    require_memory(8 * n * m * copies, operator.device, f"K: a stored matrix of {n:,} points", "use fewer points")
    found = torch.empty(n, m, dtype=torch.float64, device=operator.device)
    step = max(1, _ENTRIES // m)
    for begin in range(0, n, step):
        rows = slice(begin, min(begin + step, n))
        found[rows] = operator.block(rows, slice(None))
        if not bool(torch.isfinite(found[rows]).all()):
            raise ValueError(
                "K: has entries that are not finite: if the kernel overflows, use scale='width' or float64"
            )
    return found


def decompose(operator: KernelOperator) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues ``(n,)``, the smallest first, and the eigenvectors ``(n, n)`` of a symmetric kernel."""
    values, vectors = torch.linalg.eigh(dense(operator, copies=3))
    return values, vectors
