"""Says why an operation is not a step, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch.fx import Node

from gatedops.trace.graph import op_of

BY_RELU = "put nn.ReLU in its place"
# What steps understands, by the names that torch.export uses.
UNDERSTOOD = (
    "linear, conv1d, conv2d, relu under all its names, leaky_relu, prelu, rrelu, abs, relu6, hardtanh, clamp,"
    " max_pool2d, avg_pool, adaptive_avg_pool, batch_norm and dropout in evaluation mode, cat, add, mul and div by"
    " constants, mean, padding, slices, changes of shape and order, interpolate, softmax at the end"
)
_ACTIVATIONS = frozenset(
    [
        *["celu", "elu", "fmax", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "log_sigmoid", "mish"],
        *["clamp", "clamp_max", "clamp_min", "clip", "masked_fill", "maximum", "minimum", "fmin"],
        *["rrelu_with_noise", "selu", "silu", "softplus", "softshrink", "softsign", "threshold", "where"],
    ]
)
_COMPARISONS = frozenset(["gt", "greater", "ge", "greater_equal", "lt", "less", "le", "less_equal", "heaviside"])
_CONVERSIONS = frozenset(["to_copy", "to", "type_as", "bitwise_not", "logical_not", "rsub"])
_PRODUCTS = frozenset(["mul", "multiply", "glu", "addcmul", "bilinear"])
_MATRIX_PRODUCTS = frozenset(["matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "einsum"])
_QUOTIENTS = frozenset(["div", "divide", "true_divide", "reciprocal", "addcdiv"])
_POWERS = frozenset(["pow", "square", "sqrt", "rsqrt", "float_power"])
_NORMS = frozenset(["layer_norm", "group_norm", "instance_norm", "rms_norm"])
_RECURRENT = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)
# torch.export writes a change in place of a slice, such as x[:, 1] = y, as one of these.
_WRITES = frozenset(["slice_scatter", "select_scatter", "copy", "as_strided_scatter"])
_UNRECORDED = frozenset(
    f"{kind}_max_pool{axes}d" for kind in ("adaptive", "fractional") for axes in (1, 2, 3)
) | frozenset(["max_pool3d"])


def mixes_signals(node: Node, signals: Collection[Node]) -> bool:
    """Whether a call is attention or a matrix product of signals, however the network arranges its arguments."""
    op = op_of(node)
    return op == "scaled_dot_product_attention" or (op in _MATRIX_PRODUCTS and _count(signals, node.args) > 1)


def reason_of(node: Node, is_constant: Callable[[Any], bool], otherwise: str) -> str:
    """Says what a call that is not a step is, and what to do about it.

    Args:
        is_constant: says whether no input changes an argument.
        otherwise: what to do about an operation that has no remedy of its own.
    """
    op = op_of(node)
    signals = [source for source in node.all_input_nodes if not is_constant(source)]
    if op == "scaled_dot_product_attention":
        return f"attention, a product of two signals; {otherwise}"
    if op == "glu" or (op in _PRODUCTS | _MATRIX_PRODUCTS and _count(signals, node.args) > 1):
        return f"a product of two signals; {otherwise}"
    if op in _MATRIX_PRODUCTS:
        return "a product with a matrix that no input changes; write it as F.linear(x, matrix.T)"
    if op in _QUOTIENTS and (op == "reciprocal" or node.args[1] in signals):
        return f"a division by a signal; {otherwise}"
    if op in _POWERS:
        return f"a power of a signal; {otherwise}"
    if op in _NORMS:
        return f"a norm by statistics of the input itself; {otherwise}"
    if op in _RECURRENT:
        return f"a recurrent layer; {otherwise}"
    if op in _UNRECORDED:
        return "a max-pool whose choices record_gates does not record; use F.max_pool1d or F.max_pool2d"
    if op in _WRITES:
        return (
            "a change in place of a part of a tensor; compute the parts without changing that tensor, and put them"
            " together by torch.cat"
        )
    if op == "stack":
        return "a stack along a new axis; write it as torch.cat([a.unsqueeze(1), b.unsqueeze(1)], 1)"
    is_activation = op in _ACTIVATIONS or (op in _COMPARISONS and _masks_an_activation(node))
    # The larger of two tensors; torch.max over an axis is another operation of this name.
    is_activation |= op == "max" and getattr(node.target, "_overloadname", "") == "other"
    return f"none of the steps understood: {UNDERSTOOD}; {BY_RELU if is_activation else otherwise}"


def _count(signals: Collection[Node], arguments: Any) -> int:
    """How often signals occur among arguments, also inside lists and tuples."""
    if isinstance(arguments, (list, tuple)):
        return sum(_count(signals, argument) for argument in arguments)
    return int(isinstance(arguments, Node) and arguments in signals)


def _masks_an_activation(comparison: Node) -> bool:
    """Whether a product, where or masked_fill reads a comparison."""
    uses = [use for user in comparison.users for use in (user.users if op_of(user) in _CONVERSIONS else [user])]
    return any(op_of(use) in ("mul", "where", "masked_fill", "index_put") for use in uses)
