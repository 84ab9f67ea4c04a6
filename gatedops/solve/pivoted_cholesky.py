"""Randomly pivoted Cholesky: a factor F with K ~ F F^T from some columns of K.

The algorithm is that of Chen, Epperly, Tropp and Webber, "Randomly pivoted Cholesky", 2024 (arXiv 2207.06503), in
blocks: Epperly, Tropp and Webber, "Embrace rejection", 2024 (arXiv 2410.03969). A pivot is drawn with a probability
that is proportional to what is left of its diagonal entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator
from gatedops.solve.row_tiles import empty_tiles, one_thread, times, to_tiles

# This many columns of the kernel are computed together.
_BLOCK = 128
# A pivot is dropped if less than this share of its diagonal entry is left, because rounding made the rest.
_SMALLEST = {torch.float32: 2.0**-20, torch.float64: 2.0**-44}
# A factor of more bytes than this is kept in float32.
_LARGE = 256 << 20


@dataclass(frozen=True, eq=False)
class PivotedFactor:
    """A factor F ``(n, r)`` with K ~ F F^T.

    Attributes:
        index: int64 ``(r,)``, the pivots in the order in which they were taken.
        tiles: F in tiles of rows (row_tiles), float64, or float32 if F is large.
        left: float64 ``(n,)``, the diagonal of K - F F^T, at least 0.
    """

    index: Tensor
    tiles: Tensor
    left: Tensor


def pivoted_factor(operator: KernelOperator, diagonal: Tensor, rank: int, seed: int = 0) -> PivotedFactor:
    """Returns a factor of at most `rank` columns. It has fewer if they represent K to its precision.

    Args:
        operator: symmetric.
        diagonal: float64 ``(n,)``, at least 0.
    """
    n = len(diagonal)
    drawn = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if n * rank * 8 <= _LARGE else torch.float32
    tiles = empty_tiles(n, rank, diagonal, dtype)
    smallest = _SMALLEST[operator.dtype] * diagonal.max()
    left, index, count = diagonal.clone(), torch.empty(0, dtype=torch.int64, device=diagonal.device), 0
    while count < rank:
        left[left <= smallest] = 0
        candidates = _draw(left, min(_BLOCK, rank - count), drawn)
        if not len(candidates):
            break
        columns = to_tiles(operator.columns(candidates).to(torch.float64))
        if count:
            known = tiles[:, :, :count]
            columns -= times(known, known.reshape(-1, count)[candidates].T.to(torch.float64))
        kept, inverse = _chosen(columns.view(-1, len(candidates))[candidates], smallest)
        added = times(columns, inverse).to(dtype)
        index = torch.cat([index, candidates[kept]])
        tiles[:, :, count : count + len(kept)] = added
        count += len(kept)
        left -= added.to(torch.float64).square().sum(2).view(-1)[:n]
        left[index] = 0
    return PivotedFactor(index, tiles[:, :, :count].contiguous(), left.clamp(min=0))


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws places without replacement, each with a probability proportional to its weight; none of weight 0."""
    waits = torch.empty(len(weights), dtype=torch.float64, device="cpu").exponential_(generator=generator)
    first = torch.topk(waits.to(weights.device) / weights, min(count, int((weights > 0).sum())), largest=False)
    return first.indices


def _chosen(block: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which pivots of a block of candidates are kept, and the matrix that makes columns of F of their columns.

    Candidates that resemble each other would give columns of little use. The largest pivot is taken in turn, until what
    is left is one b-th of the trace.

    Args:
        block: ``(b, b)``, what is left of the kernel between the candidates.
    """
    size = len(block)
    rest, enough = block.cpu().clone(), float(block.trace()) / size
    kept: list[int] = []
    left = rest.diagonal().clone()
    with one_thread():
        while len(kept) < size and (not kept or (float(left.sum()) > enough and float(left.max()) > float(smallest))):
            pivot = int(left.argmax())
            column = rest[:, pivot] / left[pivot].sqrt()
            rest -= torch.outer(column, column)
            left = rest.diagonal().clamp(min=0)
            left[[*kept, pivot]] = 0
            kept.append(pivot)
        lower = torch.linalg.cholesky(block.cpu()[kept][:, kept])
        identity = torch.eye(len(kept), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    made = inverse.new_zeros(size, len(kept))
    made[kept] = inverse.T
    return torch.tensor(kept, device=block.device), made.to(block.device)
