"""Turns each operation of an exported graph into a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gatedops.trace.operations import BATCH_NORM, GATED_LINEAR
from gatedops.trace.pooling import Pair, Window, pair
from gatedops.trace.provenance import Sources
from gatedops.trace.step import Add, AddConstant, AvgPool, BatchNorm, Conv2d, Gate, Linear, MaxPool, Mean
from gatedops.trace.step_builder import Sides, StepBuilder

aten = torch.ops.aten

Arguments = dict[str, Any]


def _weights(builder: StepBuilder, node: Node, a: Arguments) -> dict[str, Any]:
    """The weight and the bias of a layer. A bias of zeros that is not a parameter counts as None."""
    bias, bias_made_of = builder.optional(a["bias"], node), builder.made_of(a["bias"], node)
    bias_drawn = builder.drawn(a["bias"], node)
    if bias is not None and _is_everywhere(bias, 0, bias_made_of):
        bias, bias_made_of, bias_drawn = None, (), None
    return {
        "weight": builder.constant(a["weight"], node),
        "bias": bias,
        "weight_made_of": builder.made_of(a["weight"], node),
        "bias_made_of": bias_made_of,
        "weight_drawn": builder.drawn(a["weight"], node),
        "bias_drawn": bias_drawn,
    }


def _is_everywhere(value: Any, number: float, made_of: Sources) -> bool:
    """Whether a constant is this number everywhere, and no parameter in it can change that."""
    if not isinstance(value, Tensor):
        return bool(value == number)
    return not value.is_meta and not any(s.is_parameter for s in made_of) and bool((value == number).all())


def _linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Linear, a["input"], **_weights(builder, node, a))


def _gated_linear(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Linear, a["x"], **_weights(builder, node, a))
    builder.add(node, Gate, node)


def _conv2d(builder: StepBuilder, node: Node, a: Arguments) -> None:
    weights = _weights(builder, node, a)
    stride, dilation = pair(a["stride"]), pair(a["dilation"])
    sides = _own_padding(a["padding"], pair(weights["weight"].shape[-2:]), dilation)
    source, mode = a["input"], "zeros"
    padded = builder.padding_of(source)
    if padded is not None:
        source, before, mode = padded
        if mode == "circular" and any(sides):
            builder.refuse(
                node, "a convolution that pads a circularly padded image with zeros; give the convolution padding=0"
            )
        sides = (before[0] + sides[0], before[1] + sides[1], before[2] + sides[2], before[3] + sides[3])
    fields = {"stride": stride, "padding": sides, "dilation": dilation, "groups": a["groups"], "padding_mode": mode}
    builder.add(node, Conv2d, source, **weights, **fields)


def _own_padding(padding: Any, kernel: Pair, dilation: Pair) -> Sides:
    """A convolution's padding argument as (left, right, top, bottom)."""
    if padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        # torch puts the odd pixel to the right and to the bottom.
        (top, bottom), (left, right) = [(t // 2, t - t // 2) for t in total]
        return (left, right, top, bottom)
    down, across = (0, 0) if padding == "valid" else pair(padding)
    return (across, across, down, down)


def _pad(builder: StepBuilder, node: Node, a: Arguments) -> None:
    source, sides, mode = a["self"], tuple(a["pad"]), a.get("mode", "constant")
    value = a.get("value") or 0
    if mode not in ("constant", "circular") or value != 0 or len(sides) != 4 or min(sides) < 0:
        builder.refuse(
            node,
            f"{mode} padding by {sides} with {value}; pad images with zeros or circularly instead, which are steps",
        )
    if builder.padding_of(source) is not None:
        builder.refuse(node, "padding of an image that is padded already; pad once, by the sum of the two")
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
        builder.refuse(
            node, f"to {wanted} for images of {given}, which {wanted} does not divide evenly; resize x so that it does"
        )
    kernel = (given[0] // wanted[0], given[1] // wanted[1])
    window = Window(kernel, kernel, (0, 0), (1, 1))
    builder.add(node, AvgPool, a["self"], window=window, count_include_pad=True, divisor=None)


def _batch_norm(builder: StepBuilder, node: Node, a: Arguments) -> None:
    mean, var = builder.constant(a["running_mean"], node), builder.constant(a["running_var"], node)
    weight, bias = builder.optional(a["weight"], node), builder.optional(a["bias"], node)
    shift = builder.made_of(a["running_mean"], node) + builder.made_of(a["bias"], node)
    fields = {"mean": mean, "var": var, "weight": weight, "bias": bias, "eps": a["eps"], "shift_made_of": shift}
    builder.add(node, BatchNorm, a["input"], **fields)


def _convert(builder: StepBuilder, node: Node, a: Arguments) -> None:
    before, after = a["self"].meta["val"], node.meta["val"]
    if (before.dtype, before.device) != (after.dtype, after.device):
        builder.refuse(
            node,
            f"a conversion from {before.dtype} to {after.dtype}, but a network of steps has one dtype; remove it and"
            f" convert the model: model.to({before.dtype})",
        )
    builder.alias(node, a["self"])


def _mean(builder: StepBuilder, node: Node, a: Arguments) -> None:
    dimensions = len(builder.shape(a["self"])) + 1
    axes = tuple(sorted(axis % dimensions - 1 for axis in a["dim"] or range(dimensions)))
    if -1 in axes or a["dtype"] is not None:
        builder.refuse(
            node, "over the inputs too, or to another dtype; take it over the axes of one input, as in x.mean((2, 3))"
        )
    builder.add(node, Mean, a["self"], axes=axes, keepdim=a["keepdim"])


def _add(builder: StepBuilder, node: Node, a: Arguments) -> None:
    left, right, sign = a["self"], a["other"], -1 if node.target is aten.sub.Tensor else 1
    if builder.is_constant(left) and sign == 1 and a["alpha"] == 1:
        left, right = right, left
    if builder.is_constant(right) and not builder.is_constant(left):
        _add_constant(builder, node, left, right, sign * a["alpha"])
        return
    if builder.is_constant(left) or sign * a["alpha"] != 1 or builder.shape(left) != builder.shape(right):
        builder.refuse(
            node,
            "not the plain sum of two outputs of one shape or of an output and a constant; put the sign or factor into"
            " the layer before it",
        )
    builder.add(node, Add, left, right)


def _add_constant(builder: StepBuilder, node: Node, source: Node, value: Any, factor: float) -> None:
    given, made_of = _constant(builder, node, value)
    if factor == 0 or _is_everywhere(given, 0, made_of):
        _unchanged(builder, node, source)
        return
    shape, result = builder.shape(source), node.meta["val"]
    constant = torch.as_tensor(given, dtype=result.dtype, device=result.device)
    if constant.dim() > len(shape):
        if constant.shape[0] != 1 and (constant.is_meta or not constant.eq(constant[:1]).all()):
            builder.refuse(node, "adding a different constant to each input; add the same constant to all")
        constant = constant[0]
    if builder.shape(node) != shape:
        builder.refuse(node, f"adding a constant whose shape does not fit {shape}; give the constant that shape")
    constant = constant if factor == 1 else constant * factor
    drawn = builder.drawn(value, node) if isinstance(value, Node) else None
    builder.add(node, AddConstant, source, constant=constant, made_of=made_of, drawn=drawn)


def _multiply(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts a product or quotient with 1 and a first power, which change nothing; refuses all others."""
    source, factor = a["self"], a["exponent"] if "exponent" in a else a["other"]
    if builder.is_constant(source) and node.target is aten.mul.Tensor:
        source, factor = factor, source
    if builder.is_constant(source) or not builder.is_constant(factor) or a.get("rounding_mode") is not None:
        builder.refuse(node)
    given, made_of = _constant(builder, node, factor)
    if not _is_everywhere(given, 1, made_of):
        builder.refuse(node)
    _unchanged(builder, node, source)


def _constant(builder: StepBuilder, node: Node, value: Any) -> tuple[Any, Sources]:
    """A number or tensor that no input changes, and the sources that it was computed from."""
    return (builder.constant(value, node), builder.made_of(value, node)) if isinstance(value, Node) else (value, ())


def _unchanged(builder: StepBuilder, node: Node, source: Node) -> None:
    """Makes `node` an alias of its source, if an operation with a constant keeps shape and dtype; else refuses it."""
    before, after = source.meta["val"], node.meta["val"]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        builder.refuse(node)
    builder.alias(node, source)


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
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _multiply,
    aten.pow.Tensor_Scalar: _multiply,
}
