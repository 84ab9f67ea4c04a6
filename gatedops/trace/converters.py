"""How each operation of an exported graph becomes a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from gatedops.trace.pooling import Pair, Window, pair
from gatedops.trace.step import Add, AddConstant, AvgPool, BatchNorm, Conv2d, Flatten, Gate, Linear, MaxPool, Mean

if TYPE_CHECKING:
    from gatedops.trace.step_builder import Sides, StepBuilder

aten = torch.ops.aten

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
ASSERTION = aten._assert_tensor_metadata.default  # of a dtype, beside a conversion; has no result
GATED_LINEAR = torch.ops.gatedops.gated_linear_relu.default
IDENTITIES = frozenset([aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default])

Arguments = dict[str, Any]


def _linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    weight, bias = builder.constant(a["weight"], node), builder.optional(a["bias"], node)
    builder.add(node, Linear, a["input"], weight=weight, bias=bias)


def _gated_linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    weight, bias = builder.constant(a["weight"], node), builder.optional(a["bias"], node)
    builder.add(node, Linear, a["x"], weight=weight, bias=bias)
    builder.add(node, Gate, node)


def _conv2d(builder: StepBuilder, node: Node, a: Arguments) -> None:
    weight, bias = builder.constant(a["weight"], node), builder.optional(a["bias"], node)
    stride, dilation = pair(a["stride"]), pair(a["dilation"])
    sides = _own_padding(a["padding"], pair(weight.shape[-2:]), dilation)
    source, mode = a["input"], "zeros"
    padded = builder.padding_of(source)
    if padded is not None:
        source, before, mode = padded
        if mode == "circular" and any(sides):
            builder.refuse(node, "a convolution that pads with zeros what is padded circularly")
        sides = (before[0] + sides[0], before[1] + sides[1], before[2] + sides[2], before[3] + sides[3])
    fields = {"stride": stride, "padding": sides, "dilation": dilation, "groups": a["groups"], "padding_mode": mode}
    builder.add(node, Conv2d, source, weight=weight, bias=bias, **fields)


def _own_padding(padding: Any, kernel: Pair, dilation: Pair) -> Sides:
    """(left, right, top, bottom) of a convolution's padding argument."""
    if padding == "same":  # torch puts the odd pixel to the right and the bottom
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in total]
        return (left, right, top, bottom)
    down, across = (0, 0) if padding == "valid" else pair(padding)
    return (across, across, down, down)


def _pad(builder: StepBuilder, node: Node, a: Arguments) -> None:
    source, sides, mode = a["self"], tuple(a["pad"]), a.get("mode", "constant")
    value = a.get("value") or 0
    if mode not in ("constant", "circular") or value != 0 or len(sides) != 4 or min(sides) < 0:
        builder.refuse(node, f"{mode} padding by {sides} with {value}; only zeros and circular around images are steps")
    if builder.padding_of(source) is not None:
        builder.refuse(node, "padding of what is padded already")
    builder.pad(node, source, sides, "zeros" if mode == "constant" else mode)


def _gate(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Gate, a["self"])


def _max_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, MaxPool, a["self"], window=_window(a))


def _avg_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    fields = {"count_include_pad": a["count_include_pad"], "divisor": a["divisor_override"]}
    builder.add(node, AvgPool, a["self"], window=_window(a), **fields)


def _window(a: Arguments) -> Window:
    kernel = pair(a["kernel_size"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    return Window(kernel, stride, pair(a["padding"]), pair(a.get("dilation", 1)), a["ceil_mode"])


def _adaptive_avg_pool(builder: StepBuilder, node: Node, a: Arguments) -> None:
    given, wanted = builder.shape(a["self"])[-2:], pair(a["output_size"])
    if any(size % parts for size, parts in zip(given, wanted, strict=True)):
        builder.refuse(node, f"to {wanted} of images of {given}, which it does not divide evenly")
    kernel = (given[0] // wanted[0], given[1] // wanted[1])
    window = Window(kernel, kernel, (0, 0), (1, 1))
    builder.add(node, AvgPool, a["self"], window=window, count_include_pad=True, divisor=None)


def _batch_norm(builder: StepBuilder, node: Node, a: Arguments) -> None:
    mean, var = builder.constant(a["running_mean"], node), builder.constant(a["running_var"], node)
    weight, bias = builder.optional(a["weight"], node), builder.optional(a["bias"], node)
    builder.add(node, BatchNorm, a["input"], mean=mean, var=var, weight=weight, bias=bias, eps=a["eps"])


def _flatten(builder: StepBuilder, node: Node, a: Arguments) -> None:
    source = builder.source_of(a["self"])
    before, after = builder.shape(source), builder.shape(node)
    if before == after:
        builder.alias(node, source)
    elif after == (math.prod(before),):
        builder.add(node, Flatten, source)
    else:
        builder.reshape(node, source)


def _convert(builder: StepBuilder, node: Node, a: Arguments) -> None:
    before, after = a["self"].meta["val"], node.meta["val"]
    if (before.dtype, before.device) != (after.dtype, after.device):
        builder.refuse(node, f"a conversion from {before.dtype} to {after.dtype}; a network of steps has one dtype")
    builder.alias(node, a["self"])


def _mean(builder: StepBuilder, node: Node, a: Arguments) -> None:
    dimensions = len(builder.shape(a["self"])) + 1
    axes = tuple(sorted(axis % dimensions - 1 for axis in a["dim"] or range(dimensions)))
    if -1 in axes or a["dtype"] is not None:
        builder.refuse(node, "over the inputs too, or to another dtype; it may only be over the axes of one input")
    builder.add(node, Mean, a["self"], axes=axes, keepdim=a["keepdim"])


def _add(builder: StepBuilder, node: Node, a: Arguments) -> None:
    left, right, sign = a["self"], a["other"], -1 if node.target is aten.sub.Tensor else 1
    if builder.is_constant(left) and sign == 1 and a["alpha"] == 1:
        left, right = right, left
    if builder.is_constant(right) and not builder.is_constant(left):
        _add_constant(builder, node, left, right, sign * a["alpha"])
        return
    if builder.is_constant(left) or sign * a["alpha"] != 1 or builder.shape(left) != builder.shape(right):
        builder.refuse(node, "not the plain sum of two outputs of one shape or of an output and a constant")
    builder.add(node, Add, left, right)


def _add_constant(builder: StepBuilder, node: Node, source: Node, value: Any, factor: float) -> None:
    shape, result = builder.shape(source), node.meta["val"]
    given = builder.constant(value, node) if isinstance(value, Node) else value
    constant = torch.as_tensor(given, dtype=result.dtype, device=result.device)
    if constant.dim() > len(shape):
        if constant.shape[0] != 1:
            builder.refuse(node, "adding another constant to each input")
        constant = constant[0]
    if builder.shape(node) != shape:
        builder.refuse(node, f"a constant of another shape than the {shape} it is added to")
    builder.add(node, AddConstant, source, constant=constant if factor == 1 else constant * factor)


CONVERTERS: dict[Any, Callable[[StepBuilder, Node, Arguments], None]] = {
    aten.linear.default: _linear,
    GATED_LINEAR: _gated_linear,
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.relu.default: _gate,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    BATCH_NORM: _batch_norm,
    aten._to_copy.default: _convert,
    aten.to.dtype: _convert,
    aten.mean.dim: _mean,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _add,
    **dict.fromkeys(
        [
            aten.flatten.using_ints,
            aten.view.default,
            aten.reshape.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
        ],
        _flatten,
    ),
}
