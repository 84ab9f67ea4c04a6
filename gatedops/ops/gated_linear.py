"""Gated layers: wrapper, arguments, fake kernels and derivatives of gated_linear (docs/math.md, section 8).

With fixed gates G the layer y = G o (x W^T + b) is bilinear, and so is its backward. So the two ops gated_linear and
gated_linear_backward are closed under differentiation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import linear

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer, layer_words
from gatedops.ops.checks import require_tensor
from gatedops.ops.differentiable import Differentiable, is_recorded, plus
from gatedops.ops.gates import pack_layer

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@overload
def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    gate: GateBits | Tensor | None = ...,
    *,
    return_gates: Literal[False] = ...,
) -> Tensor: ...
@overload
def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    gate: GateBits | Tensor | None = ...,
    *,
    return_gates: Literal[True],
) -> tuple[Tensor, GateBits]: ...
def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: GateBits | Tensor | None = None,
    *,
    return_gates: bool = False,
) -> Tensor | tuple[Tensor, GateBits]:
    """Computes a gated layer, ``(x W^T + b) * gate`` (Lakshminarayanan & Singh 2020, arXiv 2006.10529; docs/math.md,
    section 8).

    For the backward of a hard gate only the input, the weight and one bit per gate are kept. On a CPU that backward
    needs scratch memory of the size of the gradient; the calling thread keeps up to 32 MiB of it for the next backward.

    Args:
        x: ``(..., in_features)`` float32, float64, bfloat16 or float16.
        weight: ``(out_features, in_features)``, of x's dtype.
        bias: ``(out_features,)`` or None.
        gate: None: the layer's own gates, so the result is ``relu(x W^T + b)``, on a CPU bit for bit torch's; a NaN is
            passed on and its gate is off. GateBits (one layer; rows in the order of x's leading dimensions) or bool
            ``(..., out_features)``: hard gates; where a gate is off the result is exactly 0, even if the product is
            infinite or NaN. Float ``(..., out_features)`` of x's dtype: soft gates.
        return_gates: also return the hard gates.

    Returns:
        ``(..., out_features)``, or this and its GateBits. The result is differentiable to any order in x, weight, bias
        and a soft gate; no gradient passes through a hard gate. Under autocast, all tensors are in autocast's dtype,
        except float64, which stays.

    Raises:
        TypeError, ValueError: raised before any work; the message names the argument.
    """
    x, weight, bias = layer_arguments(x, weight, bias)
    width = weight.shape[0]
    if gate is None:
        y, words = gated_relu(x, weight, bias)
        return (y, layer_bits(words, width)) if return_gates else y
    shape = (*x.shape[:-1], width)
    if not isinstance(gate, GateBits):
        require_tensor(gate, "gate")
        if gate.dtype != torch.bool:
            if return_gates:
                raise ValueError("return_gates: a soft gate has no bits to return")
            return gated_soft(x, weight, bias, soft_gate(gate, shape, x))[0]
    words, first = hard_gate(gate, shape, x.device)
    y = gated(x, weight, bias, words, first)
    if not return_gates:
        return y
    return y, gate if isinstance(gate, GateBits) else layer_bits(words, width)


# --- arguments --------------------------------------------------------------------------------------------------


def layer_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, names: Sequence[str] = ("x", "weight", "bias")
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checks a layer's input and parameters, and returns them in autocast's dtype if autocast is on. Errors call them
    by `names`."""
    require_tensor(x, names[0])
    require_tensor(weight, names[1])
    if x.dtype not in DTYPES:
        raise TypeError(f"{names[0]}: got {x.dtype}, needs float32, float64, bfloat16 or float16")
    size, shape = x.shape, weight.shape
    if len(size) == 0:
        raise ValueError(f"{names[0]}: got shape (), needs (..., in_features)")
    if len(shape) != 2 or shape[1] != size[-1] or shape[0] == 0:
        raise ValueError(
            f"{names[1]}: got shape {tuple(shape)}, needs (out_features, {size[-1]}) with at least one"
            f" out_feature, for {names[0]} of shape {tuple(size)}"
        )
    if bias is not None:
        require_tensor(bias, names[2])
        if bias.dim() != 1 or bias.shape[0] != shape[0]:
            raise ValueError(f"{names[2]}: got shape {tuple(bias.shape)}, needs ({shape[0]},)")
    if is_autocast(x):
        x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    device, dtype = x.device, x.dtype
    for tensor, name in ((weight, names[1]), (bias, names[2])):
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(f"{name}: is on {tensor.device}, {names[0]} is on {device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, {names[0]} is {dtype}; both need the same dtype")
    return x, weight, bias


def is_autocast(x: Tensor) -> bool:
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def autocast(tensor: Tensor) -> Tensor:
    """Returns the tensor as torch's autocast hands it to a linear layer, which leaves float64 as it is."""
    if tensor.dtype == torch.float64 or not is_autocast(tensor):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def hard_gate(gate: GateBits | Tensor, shape: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """Returns the words of a hard gate for an output of this shape, ``(..., w)``, and the index of its first word."""
    if isinstance(gate, Tensor):
        if gate.shape != torch.Size(shape):
            raise ValueError(f"gate: got shape {tuple(gate.shape)}, needs that of the output, {tuple(shape)}")
        _require_same_device(gate.device, device)
        return pack_layer(gate.reshape(math.prod(shape[:-1]), shape[-1])), 0
    if len(gate.layers) != 1:
        raise ValueError(f"gate: has {len(gate.layers)} layers, needs one; choose it with select_layers")
    _require_same_device(gate.device, device)
    layer = gate.layers[0]
    if layer.kind != "gate":
        raise ValueError("gate: holds the choices of a max-pool, needs gates")
    if len(layer.shape) == 1:
        if gate.n != math.prod(shape[:-1]) or layer.width != shape[-1]:
            raise ValueError(
                f"gate: has {gate.n} rows of {layer.width} gates, needs {math.prod(shape[:-1])} rows of {shape[-1]}"
            )
        return gate.words, layer.first_word
    if (gate.n, *layer.shape) != tuple(shape):
        raise ValueError(f"gate: got shape {(gate.n, *layer.shape)}, needs that of the output, {tuple(shape)}")
    return hard_gate(gate.unpack()[0], shape, device)


def soft_gate(gate: Tensor, shape: Sequence[int], x: Tensor) -> Tensor:
    """Checks a soft gate for an output of this shape, and returns it in autocast's dtype if autocast is on."""
    if not gate.dtype.is_floating_point:
        raise TypeError(f"gate: got {gate.dtype}, needs a GateBits, a bool tensor (hard) or a float tensor (soft)")
    if gate.shape != torch.Size(shape):
        raise ValueError(f"gate: got shape {tuple(gate.shape)}, needs that of the output, {tuple(shape)}")
    _require_same_device(gate.device, x.device)
    gate = autocast(gate)
    if gate.dtype != x.dtype:
        raise TypeError(f"gate: got {gate.dtype}, x is {x.dtype}; a soft gate needs the same dtype")
    return gate


def layer_bits(words: Tensor, width: int) -> GateBits:
    """Makes the GateBits of one fully connected layer."""
    return GateBits(words, _layers(width) if not torch.compiler.is_compiling() else (GateLayer("0", (width,)),))


@functools.lru_cache(maxsize=256)
def _layers(width: int) -> tuple[GateLayer]:
    """Caches the record of a layer: making and checking it takes longer than the rest of a small layer's GateBits."""
    return (GateLayer("0", (width,)),)


def _require_same_device(gate: torch.device, x: torch.device) -> None:
    if gate != x:
        raise ValueError(f"gate: is on {gate}, x is on {x}")


# --- fake kernels -----------------------------------------------------------------------------------------------


def _output(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _words(y: Tensor) -> Tensor:
    rows = y.numel() // y.shape[-1]
    return y.new_empty((rows, layer_words(1, y.shape[-1])), dtype=torch.int32)


def fake_gradients(dv: Tensor, x: Tensor | None, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns fake gradients of x, weight and bias for dv ``(..., w)``; those that nothing asks for are empty."""
    width = dv.shape[-1]
    dx = dv.new_empty(0) if weight is None else dv.new_empty((*dv.shape[:-1], weight.shape[1]))
    dw = dv.new_empty(0) if x is None else dv.new_empty((width, x.shape[-1]))
    return dx, dw, dv.new_empty(width if bias else 0)


@torch.library.register_fake("gatedops::gated_linear")
def _(x, weight, bias, words, first):  # type: ignore[no-untyped-def]
    return _output(x, weight)


@torch.library.register_fake("gatedops::gated_linear_relu")
def _(x, weight, bias):  # type: ignore[no-untyped-def]
    y = _output(x, weight)
    return y, _words(y)


@torch.library.register_fake("gatedops::gated_linear_soft")
def _(x, weight, bias, gate):  # type: ignore[no-untyped-def]
    return _output(x, weight), _output(x, weight)


@torch.library.register_fake("gatedops::gated_linear_backward")
def _(grad, x, weight, words, first, bias):  # type: ignore[no-untyped-def]
    return fake_gradients(grad, x, weight, bias)


@torch.library.register_fake("gatedops::gated_linear_soft_backward")
def _(grad, x, weight, gate, product, bias):  # type: ignore[no-untyped-def]
    dgate = grad.new_empty(0) if product is None else grad.new_empty(grad.shape)
    return *fake_gradients(grad, x, weight, bias), dgate


# --- what the derivatives share ---------------------------------------------------------------------------------


def product_tangent(
    x: Tensor, weight: Tensor, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, words: Tensor | None, first: int
) -> Tensor | None:
    """Returns ``G o (tx W^T + x tw^T + tb)``, without G if words is None; None if all tangents are None."""
    terms = []
    if tx is not None:
        terms.append((tx, weight, tb))
    if tw is not None:
        terms.append((x, tw, tb if tx is None else None))
    if not terms and tb is not None:  # The product is empty: it has no in_features.
        terms.append((x.new_empty((*x.shape[:-1], 0)), x.new_empty((len(tb), 0)), tb))
    return plus(*(linear(*term) if words is None else gated(*term, words, first) for term in terms))


def keep_inputs(ctx: Any, needs: tuple[bool, ...], x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Returns the inputs that a backward needs: x for the gradient of the weight, the weight for that of x."""
    return x if needs[1] else None, weight if needs[0] else None


def only_needed(gradients: tuple, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Returns the gradients that are needed; the others, which are empty tensors, become None."""
    return tuple([gradient if need else None for gradient, need in zip(gradients, needs, strict=False)])


# --- hard gates: y = G o (x W^T + b) ----------------------------------------------------------------------------


def _save_gated(ctx: Any, inputs: tuple) -> None:
    x, weight, _, words, first = inputs
    ctx.save_for_backward(*keep_inputs(ctx, ctx.needs_input_grad, x, weight), words)
    ctx.save_for_forward(x, weight, words)
    ctx.first = first


def _gated_backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, words = ctx.saved_tensors
    needs = ctx.needs_input_grad
    gradients = gated_backward(grad, x, weight, words, ctx.first, needs[2])
    return *only_needed(gradients, needs[:3]), None, None


def _gated_jvp(ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, *_: None) -> Tensor | None:
    x, weight, words = ctx.saved_tensors
    return product_tangent(x, weight, tx, tw, tb, words, ctx.first)


def _save_gated_relu(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _ = inputs
    words = output[1]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*keep_inputs(ctx, ctx.needs_input_grad, x, weight), words)
    ctx.save_for_forward(x, weight, words)


def _gated_relu_backward(ctx: Any, grad: Tensor | None, _words: None) -> tuple:
    if grad is None:
        return None, None, None
    x, weight, words = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return only_needed(gated_backward(grad, x, weight, words, 0, needs[2]), needs)


def _gated_relu_jvp(ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None) -> tuple:
    x, weight, words = ctx.saved_tensors
    return product_tangent(x, weight, tx, tw, tb, words, 0), None


# --- their backward: dx = (G o grad) W, dW = (G o grad)^T x, db = column sums of G o grad -----------------------


def _save_gated_backward(ctx: Any, inputs: tuple) -> None:
    grad, x, weight, words, first, bias = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad, x, weight, words)
    ctx.save_for_forward(grad, x, weight, words)
    ctx.rest = (first, bias)


def _gated_backward_backward(ctx: Any, d_dx: Tensor | None, d_dw: Tensor | None, d_db: Tensor | None) -> tuple:
    """d_dx, d_dw and d_db are the cotangents of dx, dW and db."""
    grad, x, weight, words = ctx.saved_tensors
    first, bias = ctx.rest
    d_dx, d_dw, d_db = (None if weight is None else d_dx), (None if x is None else d_dw), (d_db if bias else None)
    dgrad = dx = dw = None
    if ctx.needs_input_grad[0]:
        dgrad = _masked_product(grad, x, weight, d_dx, d_dw, d_db, words, first)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dx, dw, _ = gated_backward(grad, d_dx, d_dw, words, first, False)
    return dgrad, None if d_dw is None else dx, None if d_dx is None else dw, None, None, None


def _masked_product(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    d_dx: Tensor | None,
    d_dw: Tensor | None,
    d_db: Tensor | None,
    words: Tensor | None,
    first: int,
) -> Tensor | None:
    """Returns ``G o (d_dx W^T + x d_dw^T + d_db)``."""
    left = grad.new_empty((*grad.shape[:-1], 0)) if x is None else x
    right = grad.new_empty((grad.shape[-1], 0)) if weight is None else weight
    return product_tangent(left, right, d_dx, d_dw, d_db, words, first)


def _gated_backward_jvp(
    ctx: Any, tgrad: Tensor | None, tx: Tensor | None, tw: Tensor | None, *_: None
) -> tuple[Tensor, ...]:
    grad, x, weight, words = ctx.saved_tensors
    first, bias = ctx.rest
    dx, dw, db = gated_backward(torch.zeros_like(grad) if tgrad is None else tgrad, x, weight, words, first, bias)
    by_weight, by_x, _ = gated_backward(grad, tx, tw, words, first, False)
    return dx if tw is None else dx + by_weight, dw if tx is None else dw + by_x, db


# --- soft gates: y = gate o v, v = x W^T + b --------------------------------------------------------------------


def _save_gated_soft(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, _, gate = inputs
    product = output[1]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *keep_inputs(ctx, ctx.needs_input_grad, x, weight),
        gate,
        product if ctx.needs_input_grad[3] else None,
    )
    ctx.save_for_forward(x, weight, gate, product)


def _gated_soft_backward(ctx: Any, grad: Tensor | None, grad_product: Tensor | None) -> tuple:
    """grad_product, the gradient of the second output v, comes from second derivatives only."""
    x, weight, gate, product = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if grad is not None and grad_product is None and not is_recorded(grad, gate, product, x, weight):
        return only_needed(gated_soft_backward(grad, x, weight, gate, product, needs[2]), needs)
    dv = plus(None if grad is None else grad * gate, grad_product)
    if dv is None:
        return None, None, None, None
    dgate = None if grad is None or product is None else grad * product
    return *only_needed(gated_backward(dv, x, weight, None, 0, needs[2]), needs[:3]), dgate


def _gated_soft_jvp(
    ctx: Any, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, tgate: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    x, weight, gate, product = ctx.saved_tensors
    tproduct = product_tangent(x, weight, tx, tw, tb, None, 0)
    if tproduct is None:
        tproduct = torch.zeros_like(product)
    return plus(tproduct * gate, None if tgate is None else tgate * product), tproduct


def save_nothing(ctx: Any, inputs: tuple) -> None:
    return None


def no_derivative(ctx: Any, *grads: Any) -> Any:
    """Refuses the derivative of a fused backward: callers that want one compute the backward by other ops."""
    raise RuntimeError("a fused backward has no derivative of its own: call the layer, not its ops")


gated = Differentiable("gated_linear", _save_gated, _gated_backward, _gated_jvp)
gated_relu = Differentiable(
    "gated_linear_relu", _save_gated_relu, _gated_relu_backward, _gated_relu_jvp, saves_output=True
)
gated_backward = Differentiable(
    "gated_linear_backward", _save_gated_backward, _gated_backward_backward, _gated_backward_jvp
)
gated_soft = Differentiable(
    "gated_linear_soft", _save_gated_soft, _gated_soft_backward, _gated_soft_jvp, saves_output=True
)
gated_soft_backward = Differentiable("gated_linear_soft_backward", save_nothing, no_derivative, no_derivative)
