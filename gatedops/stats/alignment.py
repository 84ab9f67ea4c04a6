"""Compares the neural path kernels of two checkpoints by centred alignment (docs/math.md, section 12)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_float64
from gatedops.ops.gram import npk_gram, npk_matvec
from gatedops.ops.gram_args import require_inputs
from gatedops.ops.gram_range import passes_of
from gatedops.progress import with_bar
from gatedops.scalars import whole_number
from gatedops.stats.checks import require_gates, require_same_inputs

# A kernel counts as constant if centring leaves less than this share of it, which may be rounding of float64 sums.
_CONSTANT = 2.0**-40


def npk_alignment(
    a: GateBits, b: GateBits, x: Tensor | None = None, *, block: int = 512, progress: bool | None = None
) -> float:
    """Returns the centred kernel alignment (CKA) of the neural path kernels of two checkpoints. It is 1 if they are
    equal up to a factor and a constant (Cortes et al. 2012, arXiv 1203.0550; Kornblith et al. 2019, arXiv 1905.00414;
    docs/math.md, section 12).

    Both kernels are computed block by block in float64, each unordered pair of inputs once, and neither is stored: the
    memory is that of two ``(block, block)`` blocks.

    Args:
        a, b: gates of the same n inputs, in the same order, with the same layers (names may differ).
        x: the inputs ``(n, d)`` of both kernels ``Sigma * Lambda``; None: the kernels are Lambda alone.
        block: rows and columns computed at a time.
        progress: show a bar (tqdm) over the blocks. None: on a terminal, once it has taken a second.

    Returns:
        A number from 0 to 1; NaN if one of the kernels is the same for every pair.

    Raises:
        TypeError, ValueError: a or b is not a GateBits, has no inputs, or has other inputs or layers than the other; x
            does not fit them.
    """
    require_gates(a, "a")
    require_gates(b, "b")
    require_same_inputs(b, a, "b", "a")
    x = None if x is None else as_tensor(x, "x")
    return float(_alignments([a, b], "a", x, block, progress)[0, 1])


def npk_alignments(
    checkpoints: Sequence[GateBits], x: Tensor | None = None, *, block: int = 512, progress: bool | None = None
) -> Tensor:
    """Returns :func:`npk_alignment` of all pairs of T checkpoints, float64 ``(T, T)``. The kernel of each checkpoint is
    computed once."""
    if isinstance(checkpoints, GateBits):
        raise TypeError("checkpoints: got a GateBits, needs a list of GateBits")
    checkpoints = list(checkpoints)
    if not checkpoints:
        raise ValueError("checkpoints: got none, needs at least one GateBits")
    for index, bits in enumerate(checkpoints):
        require_gates(bits, f"checkpoints[{index}]")
        require_same_inputs(bits, checkpoints[0], f"checkpoints[{index}]", "checkpoints[0]")
    x = None if x is None else as_tensor(x, "x")
    return _alignments(checkpoints, "checkpoints", x, block, progress)


def _alignments(
    checkpoints: Sequence[GateBits], name: str, x: Tensor | None, block: int, progress: bool | None
) -> Tensor:
    """The alignments of all pairs; errors call the checkpoints `name`."""
    size = whole_number(block)
    if size is None or size < 1:
        raise ValueError(f"block: got {block!r}, needs a whole number of at least 1")
    require_inputs(x, checkpoints[0], None, None)
    require_float64(checkpoints[0].device, name)
    x = None if x is None else x.detach()
    n = checkpoints[0].n
    ones = torch.ones(n, dtype=torch.float64, device=checkpoints[0].device)
    scales = [_scale_of(bits) for bits in checkpoints]
    kernels = list(zip(checkpoints, scales, strict=True))
    means = [npk_matvec(x, bits, ones, scale=scale, dtype=torch.float64) / n for bits, scale in kernels]
    starts = list(itertools.combinations_with_replacement(range(0, n, size), 2))
    products = torch.zeros(len(checkpoints), len(checkpoints), dtype=torch.float64, device="cpu")
    for i, j in with_bar(starts, "comparing kernels", "block", len(starts), progress):
        rows, columns = slice(i, i + size), slice(j, j + size)
        centred = torch.stack(
            [
                _centred(bits, scale, x, mean, rows, columns).flatten()
                for (bits, scale), mean in zip(kernels, means, strict=True)
            ]
        )
        products += (centred @ centred.T).cpu() * (1 if i == j else 2)
    norms = products.diagonal().sqrt()
    sizes = torch.tensor([n * float(mean.mean()) for mean in means], device="cpu")
    norms = torch.where(norms > _CONSTANT * sizes, norms, torch.nan)
    return products / norms.outer(norms)


def _scale_of(bits: GateBits) -> list[float] | str:
    """Multipliers that keep the kernel of a deep net in the range of float64; they do not change an alignment."""
    passes = passes_of([bits], [], torch.float64)
    return passes[0].scale if len(passes) == 1 else "width"


def _centred(
    bits: GateBits, scale: list[float] | str, x: Tensor | None, means: Tensor, rows: slice, columns: slice
) -> Tensor:
    """A block of ``H K H``, H = I - 1/n: the kernel minus the means of its rows and columns."""
    here = None if x is None else x[rows]
    if rows == columns:
        kernel = npk_gram(here, bits[rows], scale=scale, dtype=torch.float64)
    else:
        there = None if x is None else x[columns]
        kernel = npk_gram(here, bits[rows], there, bits[columns], scale=scale, dtype=torch.float64)
    return kernel.sub_(means[rows].unsqueeze(1)).sub_(means[columns]).add_(means.mean())
