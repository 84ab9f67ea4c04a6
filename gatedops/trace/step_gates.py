"""Turns ReLU under all its names, and other activations with two slopes or two bounds, into gates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.fx import Node

from gatedops.trace.step import Gate, Squash
from gatedops.trace.step_builder import Arguments, Converter, StepBuilder

aten = torch.ops.aten


def rectify(builder: StepBuilder, node: Node, q: Node) -> None:
    """Adds the ReLU of q, which `node` computes in some way; record_gates calls all of them relu."""
    before, after = q.meta["val"], node.meta["val"]
    if (before.shape, before.dtype) != (after.shape, after.dtype):
        builder.refuse(node)
    builder.add(node, Gate, q, op="relu")


def is_masked_by(builder: StepBuilder, q: Any, mask: Any, positive: bool) -> bool:
    """Whether a mask is on exactly where q is positive, or exactly where it is not. q = 0 may be on either side."""
    found = builder.mask_of(mask)
    return found is not None and found[0] is builder.resolved(q) and found[1] == positive


# --- activations that are one call --------------------------------------------------------------------------


def _relu(builder: StepBuilder, node: Node, a: Arguments) -> None:
    rectify(builder, node, a["self"])


def _clamp(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _bound(builder, node, a["self"], a.get("min"), a.get("max"))


def _hardtanh(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _bound(builder, node, a["self"], a["min_val"], a["max_val"])


def _relu6(builder: StepBuilder, node: Node, a: Arguments) -> None:
    _bound(builder, node, a["self"], 0.0, 6.0)


def _bound(builder: StepBuilder, node: Node, q: Node, low: Any, high: Any) -> None:
    """Bounds q from below by 0, or from both sides."""
    least, most = _number(builder, low), _number(builder, high)
    if builder.is_zero(low) and (high is None or most == math.inf):
        rectify(builder, node, q)
    elif least is not None and most is not None and -math.inf < least < most < math.inf:
        builder.add(node, Gate, q, inside=(least, most))
    else:
        builder.refuse(node)


def _number(builder: StepBuilder, value: Any) -> float | None:
    """A number, also as a tensor of one number that no input changes."""
    if isinstance(value, Node):
        given = builder.constant(value, value) if builder.is_constant(value) else None
        return float(given) if given is not None and given.dim() == 0 and not given.is_meta else None
    return None if value is None else float(value)


def _threshold(builder: StepBuilder, node: Node, a: Arguments) -> None:
    if not builder.is_zero(a["threshold"]) or not builder.is_zero(a["value"]):
        builder.refuse(node)
    rectify(builder, node, a["self"])


def _leaky_relu(builder: StepBuilder, node: Node, a: Arguments) -> None:
    if a["negative_slope"] == 0:
        rectify(builder, node, a["self"])
    else:
        builder.add(node, Gate, a["self"], slope=float(a["negative_slope"]))


def _prelu(builder: StepBuilder, node: Node, a: Arguments) -> None:
    slope = builder.constant(a["weight"], node)
    if slope.numel() == 1 and slope.is_meta:
        builder.refuse(node, "with a slope that has no value, on the device meta; move the model to another device")
    builder.add(node, Gate, a["self"], slope=slope.detach().item() if slope.numel() == 1 else slope)


def _rrelu(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Gate, a["self"], slope=(float(a["lower"]) + float(a["upper"])) / 2)


def _abs(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Gate, a["self"], slope=-1.0)


# --- a ReLU made of a comparison and another call -----------------------------------------------------------


def _compare(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Notes a comparison with 0, which is not a step."""
    left, right, above = a["self"], a["other"], node.target in _ABOVE
    if not builder.is_constant(left) and builder.is_zero(right):
        builder.compare(node, left, above)
    elif isinstance(right, Node) and not builder.is_constant(right) and builder.is_zero(left):
        builder.compare(node, right, not above)
    else:
        builder.refuse(node)


def _heaviside(builder: StepBuilder, node: Node, a: Arguments) -> None:
    if not builder.is_constant(a["values"]):
        builder.refuse(node)
    builder.compare(node, a["self"], True)


def _not(builder: StepBuilder, node: Node, a: Arguments) -> None:
    mask = builder.mask_of(a["self"])
    if mask is None:
        builder.refuse(node)
    builder.compare(node, mask[0], not mask[1])


def _maximum(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts the larger of q and 0."""
    for q, zero in ((a["self"], a["other"]), (a["other"], a["self"])):
        if not builder.is_constant(q) and builder.is_zero(zero):
            rectify(builder, node, q)
            return
    builder.refuse(node)


def _where(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts where(q > 0, q, 0) and where(q <= 0, 0, q)."""
    for q, zero, positive in ((a["self"], a["other"], True), (a["other"], a["self"], False)):
        if is_masked_by(builder, q, a["condition"], positive) and builder.is_zero(zero):
            rectify(builder, node, q)
            return
    builder.refuse(node)


def _fill(builder: StepBuilder, node: Node, a: Arguments) -> None:
    """Accepts q.masked_fill(q <= 0, 0) and q[q <= 0] = 0."""
    mask, value = (a["mask"], a["value"]) if "mask" in a else (a["indices"], a["values"])
    mask = mask[0] if isinstance(mask, (list, tuple)) and len(mask) == 1 else mask
    if a.get("accumulate") or not is_masked_by(builder, a["self"], mask, False) or not builder.is_zero(value):
        builder.refuse(node)
    rectify(builder, node, a["self"])


# --- functions of all outputs -------------------------------------------------------------------------------


def _softmax(builder: StepBuilder, node: Node, a: Arguments) -> None:
    source: Node = a["self"]
    if a["dim"] in (0, -source.meta["val"].dim()):
        builder.refuse(node, "over the inputs of a batch; take it over an axis of one input, as in x.softmax(1)")
    if source.meta["val"].dtype != node.meta["val"].dtype:
        builder.refuse(node, f"a conversion to {node.meta['val'].dtype}; leave its argument dtype out")
    builder.add(node, Squash, source, function="log_softmax" if node.target is _LOG_SOFTMAX else "softmax")


def _sigmoid(builder: StepBuilder, node: Node, a: Arguments) -> None:
    builder.add(node, Squash, a["self"], function="sigmoid")


def _overloads(*names: str) -> list[Any]:
    """The operations of these names that compare two tensors, or a tensor and a number."""
    return [getattr(getattr(aten, name), overload) for name in names for overload in ("Tensor", "Scalar")]


_LOG_SOFTMAX = aten.log_softmax.int
_ABOVE = frozenset(_overloads("gt", "greater", "ge", "greater_equal"))
_BELOW = frozenset(_overloads("lt", "less", "le", "less_equal"))

GATES: dict[Any, Converter] = {
    aten.relu.default: _relu,
    **dict.fromkeys([aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor], _clamp),
    **dict.fromkeys([aten.clamp_min.default, aten.clamp_min.Tensor], _clamp),
    aten.hardtanh.default: _hardtanh,
    aten.relu6.default: _relu6,
    aten.threshold.default: _threshold,
    aten.leaky_relu.default: _leaky_relu,
    aten.prelu.default: _prelu,
    aten.rrelu.default: _rrelu,
    aten.abs.default: _abs,
    aten.absolute.default: _abs,
    **dict.fromkeys(_ABOVE | _BELOW, _compare),
    aten.heaviside.default: _heaviside,
    aten.logical_not.default: _not,
    aten.bitwise_not.default: _not,
    **dict.fromkeys([aten.maximum.default, aten.max.other, aten.fmax.default], _maximum),
    **dict.fromkeys([aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf], _where),
    **dict.fromkeys([aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.index_put.default], _fill),
    aten.softmax.int: _softmax,
    _LOG_SOFTMAX: _softmax,
    aten.sigmoid.default: _sigmoid,
}
