"""Says what to do about an operation that is not a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.fx import Node

from gatedops.trace.graph import arguments, op_of

AS_RELU = "it computes a ReLU: write it as F.relu(q)"
BY_RELU = "put nn.ReLU in its place"
_ACTIVATIONS = frozenset(
    ["celu", "elu", "gelu", "leaky_relu", "mish", "prelu", "prelu_kernel", "relu6", "rrelu", "selu"]
)
_ACTIVATIONS |= {
    "clamp",
    "clamp_max",
    "clamp_min",
    "hardswish",
    "hardtanh",
    "masked_fill",
    "maximum",
    "minimum",
    "silu",
}
_ACTIVATIONS |= {"rrelu_with_noise", "softplus", "threshold", "where"}
_ABOVE, _BELOW = ("gt", "ge"), ("lt", "le")
_CONVERSIONS = ("to_copy", "to", "type_as")


def remedy_of(node: Node, is_zero: Callable[[Any], bool], otherwise: str) -> str:
    """Says what to do about a call.

    Args:
        is_zero: says whether an argument is 0, or a constant that is 0 throughout.
        otherwise: the answer for an operation that is not an activation.
    """
    op, a = op_of(node), arguments(node)
    computes_relu = {
        "clamp": lambda: is_zero(a["min"]) and a["max"] is None,
        "clamp_min": lambda: is_zero(a["min"]),
        "threshold": lambda: is_zero(a["threshold"]) and is_zero(a["value"]),
        "hardtanh": lambda: is_zero(a["min_val"]) and a["max_val"] == math.inf,
        "leaky_relu": lambda: is_zero(a["negative_slope"]),
        "maximum": lambda: is_zero(a["self"]) or is_zero(a["other"]),
    }
    if op in computes_relu and computes_relu[op]():
        return AS_RELU
    if op in _ACTIVATIONS:
        return BY_RELU
    if op in _ABOVE + _BELOW:
        uses = [use for user in node.users for use in (user.users if op_of(user) in _CONVERSIONS else [user])]
        masks = [use for use in uses if op_of(use) in ("mul", "where", "masked_fill")]
        if masks and is_zero(a["other"]) and all(_is_relu(use, node, a["self"], is_zero) for use in masks):
            return AS_RELU
        return BY_RELU if masks else otherwise
    return otherwise


def _is_relu(use: Node, mask: Node, q: Any, is_zero: Callable[[Any], bool]) -> bool:
    """Whether a call multiplies q by the mask of its positive numbers, or replaces its other numbers by 0."""
    above = op_of(mask) in _ABOVE
    if op_of(use) == "mul":
        return above and q in use.args
    if op_of(use) == "masked_fill":
        return not above and use.args[0] is q and is_zero(use.args[2])
    on, off = use.args[1:3] if above else use.args[2:0:-1]
    return on is q and is_zero(off)
