"""Counts the gates in common of the pixels of two inputs, exactly, and finds masks in the words of a row."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.portable.bits import spread
from gatedops.portable.conv_plan import GATES, PlannedInstruction
from gatedops.portable.products import operand, product
from gatedops.portable.workspace import blocks


def packed(words: Tensor, first: int, step: PlannedInstruction) -> Tensor:
    """Returns the words of a step's masks, which begin at the word `first`, ``(positions, rows, words)``; a view."""
    layer = words[:, first : first + step.positions * step.pitch].unflatten(1, (step.positions, step.pitch))
    return layer.transpose(0, 1)[..., : step.words]


def factor(masks: Tensor, span: slice, int8: bool) -> Tensor:
    """Returns a span of words of masks ``(..., words)`` as a factor of a product, with one row per leading index."""
    return operand(_gates(masks, span), int8)


def all_counts(left: Tensor, right: Tensor, step: PlannedInstruction, dtype: torch.dtype, int8: bool) -> Tensor:
    """Counts the gates that every row of masks ``(..., words)`` has in common with every row of the other side: int32,
    float32 or `dtype`."""
    rows, columns = left[..., 0].numel(), right[..., 0].numel()
    total: Tensor | None = None
    for span in blocks(step.words, step.span):
        part = product(factor(left, span, int8), factor(right, span, int8))[:rows, :columns]
        if step.words <= step.span:
            return part
        total = part.to(dtype) if total is None else total.add_(part)
    assert total is not None
    return total


def pixel_counts(left: Tensor, right: Tensor, step: PlannedInstruction, dtype: torch.dtype) -> Tensor:
    """Counts the gates in common of masks ``(positions, a, words)`` and ``(positions, b, words)`` at equal positions,
    ``(positions, a, b)``."""
    positions, most = left.shape[0], max(left.shape[1], right.shape[1])
    total = left.new_empty((positions, left.shape[1], right.shape[1]), dtype=dtype)
    for here in blocks(positions, max(1, GATES // (32 * step.span * most))):
        for span in blocks(step.words, step.span):
            sides = (
                _gates(side[here], span).to(torch.float32).unflatten(0, side[here].shape[:2]) for side in (left, right)
            )
            part = torch.bmm(next(sides), next(sides).mT)
            if span.start == 0:
                total[here] = part
            else:
                total[here].add_(part)
    return total


def _gates(masks: Tensor, span: slice) -> Tensor:
    return spread(masks[..., span].reshape(-1, span.stop - span.start))
