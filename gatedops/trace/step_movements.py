"""Turns padding and concatenation into steps; StepBuilder itself treats the other operations that move numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from gatedops.trace.operations import PADDING
from gatedops.trace.step import Concat
from gatedops.trace.step_builder import Arguments, Converter, StepBuilder

aten = torch.ops.aten


def _pad(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Notes padding of images with zeros or circularly, which a convolution behind it can take over, and any other
    padding as a rearrangement."""
    source, sides, mode = a["self"], tuple(a["pad"]), a.get("mode", "constant")
    value = a.get("value") or 0
    if value != 0:
        builder.refuse(node, f"padding with {value}; pad with zeros")
    axes = len(builder.shape(source)) - 1
    if mode in ("constant", "circular") and len(sides) <= 2 * axes <= 4 and min(sides) >= 0:
        left, right, top, bottom = (*sides, 0, 0, 0, 0)[:4]
        builder.pad(node, source, (left, right, top, bottom), "zeros" if mode == "constant" else mode)
    else:
        builder.move(node)


def _concat(builder: StepBuilder, node: Node, a: Arguments) -> None:
    parts, axis = a["tensors"], a["dim"] % node.meta["val"].dim()
    if axis == 0:
        builder.refuse(node, "along the axis of the inputs; concatenate along another axis, as in torch.cat([a, b], 1)")
    for place, part in enumerate(parts):
        if builder.is_constant(part):
            builder.refuse(
                node,
                f"a concatenation whose part {place} is a constant, which no input changes; pad the other parts with"
                " zeros (F.pad) and add the constant",
            )
    if len(parts) == 1:
        builder.alias(node, parts[0])
    else:
        builder.add(node, Concat, *parts, axis=axis - 1)


MOVEMENTS: dict[Any, Converter] = {
    **dict.fromkeys(PADDING, _pad),
    **dict.fromkeys([aten.cat.default, aten.concat.default, aten.concatenate.default], _concat),
}
