"""Turns a transposed convolution into two steps: zeros between the pixels, and an ordinary convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gatedops.trace.redraw import Draw
from gatedops.trace.step import Conv2d, Rearrange
from gatedops.trace.step_builder import Arguments, Converter, StepBuilder
from gatedops.trace.step_layers import require_images, size_pair, weights_of

aten = torch.ops.aten


def _conv_transpose(builder: StepBuilder, node: Node, a: Arguments) -> None:
    weights, source, groups = weights_of(builder, node, a), a["input"], a["groups"]
    axes = weights["weight"].dim() - 2
    require_images(builder, node, source, axes)
    drawn = weights["weight_drawn"]
    weights["weight"] = _of_convolution(weights["weight"], groups)
    weights["weight_drawn"] = None if drawn is None else _turned(drawn, groups)
    before, after = builder.shape(source), builder.shape(node)
    stride, padding = size_pair(a["stride"], axes), size_pair(a["padding"], axes, 0)
    dilation = size_pair(a["dilation"], axes)
    sizes = zip(
        size_pair(before[1:], axes), size_pair(after[1:], axes), weights["weight"].shape[2:], stride, padding, dilation,
        strict=True,
    )  # fmt: skip
    rows, columns = (_positions(*size) for size in sizes)
    spread = _spread(before, rows, columns)
    between = builder.insert(node, Rearrange, source, shape=tuple(spread.shape), source=spread)
    fields = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": dilation, "padding_mode": "zeros"}
    builder.add(node, Conv2d, between, **weights, **fields, groups=groups)


def _of_convolution(weight: Tensor, groups: int) -> Tensor:
    """The weight ``(C', C / groups, kh, kw)`` of the ordinary convolution, from ``(C, C' / groups, [kh,] kw)``."""
    weight = weight if weight.dim() == 4 else weight.unsqueeze(2)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)


def _turned(drawn: Draw, groups: int) -> Draw:
    return lambda seed: _of_convolution(drawn(seed), groups)


def _positions(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The pixel along one axis that the ordinary convolution meets at each place; -1 between and beside the pixels."""
    reach = dilation * (kernel - 1)
    place = torch.arange(out + reach, device="cpu") - (reach - padding)
    here = (place % stride == 0) & (place >= 0) & (place < size * stride)
    return torch.where(here, place // stride, -1)


def _spread(shape: tuple[int, ...], rows: Tensor, columns: Tensor) -> Tensor:
    """The positions of these rows and columns of images of a shape, as the source of a Rearrange."""
    numbers = torch.arange(math.prod(shape), device="cpu").view(shape[0], -1, shape[-1])
    inside = (rows >= 0)[:, None] & (columns >= 0)
    found = torch.where(inside, numbers[:, rows.clamp(min=0)][:, :, columns.clamp(min=0)], -1)
    return found if len(shape) == 3 else found.squeeze(1)


TRANSPOSED: dict[Any, Converter] = {
    aten.conv_transpose1d.default: _conv_transpose,
    aten.conv_transpose2d.input: _conv_transpose,
}
