"""Turns operations on volumes (C, D, H, W) into steps."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from gatedops.trace.step import Conv3d
from gatedops.trace.step_builder import Arguments, Converter, StepBuilder
from gatedops.trace.step_layers import require_images, resample, weights_of

aten = torch.ops.aten


def _conv3d(builder: StepBuilder, node: Node, a: Arguments) -> None:
    require_images(builder, node, a["input"], 3)
    weights = weights_of(builder, node, a)
    stride, dilation = _three(a["stride"]), _three(a["dilation"])
    sides = _sides(a["padding"], tuple(weights["weight"].shape[2:]), dilation)
    fields = {"stride": stride, "padding": sides, "dilation": dilation, "groups": a["groups"]}
    builder.add(node, Conv3d, a["input"], **weights, **fields)


def _three(value: Any) -> tuple[int, int, int]:
    """torch's number or list of one or three numbers as (depth, height, width)."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return (numbers[0], numbers[len(numbers) // 2], numbers[-1])


def _sides(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, int, int]) -> tuple[int, ...]:
    """A convolution's padding argument as (left, right, top, bottom, front, back)."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # torch puts the odd voxel behind.
        return tuple(side for t in reversed(total) for side in (t // 2, t - t // 2))
    depth, height, width = _three(0 if padding == "valid" else padding)
    return (width, width, height, height, depth, depth)


def _average(builder: StepBuilder, node: Node, a: Arguments) -> None:
    require_images(builder, node, a["self"], 3)
    resample(builder, node, a)


VOLUMES: dict[Any, Converter] = {
    aten.conv3d.default: _conv3d,
    aten.conv3d.padding: _conv3d,
    aten.avg_pool3d.default: _average,
    aten.adaptive_avg_pool3d.default: _average,
    aten.upsample_trilinear3d.vec: resample,
}
