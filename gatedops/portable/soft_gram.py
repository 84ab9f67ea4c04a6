"""Computes soft_npk_gram and its backward by torch operations, tile by tile (docs/math.md, section 5).

The arguments of the ops are those of their schemas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gatedops.portable.checks import require, require_float, require_one_device
from gatedops.portable.tiles import tiles, write
from gatedops.portable.workspace import WORKSPACE, edge_of


def soft_npk_gram(a: Tensor, b: Tensor | None, widths: list[int], scale: list[float]) -> Tensor:
    """Computes ``prod_l scale_l <a_l, b_l>``, ``(n, m)``."""
    _require_soft(a, b, widths, scale)
    right = a if b is None else b
    out = a.new_empty((a.shape[0], right.shape[0]))
    edge = edge_of(a.device)
    for rows, columns in tiles((a.shape[0], right.shape[0]), (edge, edge), b is None):
        values: Tensor | None = None
        for counts in _counts(a[rows], right[columns], widths, scale):
            values = counts if values is None else values.mul_(counts)
        assert values is not None
        write(values, out, rows, columns, b is None)
    return out


def soft_npk_gram_backward(grad: Tensor, a: Tensor, b: Tensor | None, widths: list[int], scale: list[float]) -> Tensor:
    """Computes the gradient of a. A layer's share is the product of the layers before it and of those behind it, so no
    division is needed."""
    _require_soft(a, b, widths, scale)
    right = a if b is None else b
    require(
        tuple(grad.shape) == (a.shape[0], right.shape[0]),
        lambda: f"grad: got shape {tuple(grad.shape)}, needs that of the Gram",
    )
    require_one_device(a, grad)
    out = torch.zeros_like(a, memory_format=torch.contiguous_format)
    each = WORKSPACE // 2 // ((2 * len(widths) + 6) * a.itemsize)
    # Tiles are smaller if there are many layers.
    edge = min(edge_of(a.device), max(16, math.isqrt(each)))
    for rows, columns in tiles((a.shape[0], right.shape[0]), (edge, edge), b is None):
        counts = list(_counts(a[rows], right[columns], widths, scale))
        part = grad[rows, columns].to(a.dtype)
        before = [part + grad[columns, rows].mT.to(a.dtype) if b is None else part]
        for values in counts[:-1]:
            before.append(before[-1] * values)
        behind = torch.ones_like(part)
        for layer in reversed(range(len(widths))):
            first, last = sum(widths[:layer]), sum(widths[: layer + 1])
            weights = before.pop().mul(behind).mul_(scale[layer])
            behind *= counts.pop()
            out[rows, first:last].addmm_(weights, right[columns, first:last])
            if b is None and rows != columns:
                out[columns, first:last].addmm_(weights.mT, a[rows, first:last])
    return out


def _counts(left: Tensor, right: Tensor, widths: list[int], scale: list[float]) -> Iterator[Tensor]:
    """Yields ``scale_l <a_l, b_l>`` of each layer."""
    for a, b, factor in zip(left.split(widths, 1), right.split(widths, 1), scale, strict=True):
        yield (a @ b.mT).mul_(factor)


def _require_soft(a: Tensor, b: Tensor | None, widths: list[int], scale: list[float]) -> None:
    require(len(widths) > 0 and min(widths) >= 1, "widths: every layer needs at least one gate")
    require(len(widths) == len(scale), "scale: needs one factor per layer")
    require_float(a.dtype, "a")
    for value, name in ((a, "a"), (b, "b")):
        if value is not None:
            fits = value.dim() == 2 and value.shape[1] == sum(widths)
            require(fits, f"{name}: got shape {tuple(value.shape)}, needs (n, {sum(widths)})")
            require(value.dtype == a.dtype, f"{name}: needs the dtype of a")
    require_one_device(a, b)
