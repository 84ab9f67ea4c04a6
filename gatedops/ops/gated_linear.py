"""Gated layers: wrapper, fake kernels and derivatives of gated_linear (docs/math.md, section 8).

With fixed gates G the layer y = G o (x W^T + b) is bilinear, and so is its backward: the two ops
gated_linear and gated_linear_backward are closed under differentiation.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import linear

from gatedops.gatebits import GateBits
from gatedops.layout import layer_words
from gatedops.ops.checks import require_tensor
from gatedops.ops.differentiable import Differentiable, is_recorded
from gatedops.ops.gated_linear_args import hard_gate, layer_arguments, layer_bits, soft_gate


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
    """A gated layer, ``(x W^T + b) * gate`` (Lakshminarayanan & Singh 2020, arXiv 2006.10529; docs/math.md,
    section 8).

    The backward of a hard gate keeps the input, the weight and one bit per gate, nothing else. On a CPU it works in
    memory of the size of the gradient, up to 32 MiB of which stay with the calling thread for the next one.

    Args:
        x: ``(..., in_features)`` float32, float64, bfloat16 or float16.
        weight: ``(out_features, in_features)``, of x's dtype.
        bias: ``(out_features,)`` or None.
        gate: None: the layer's own gates, which is ``relu(x W^T + b)``, bit for bit torch's on a CPU; NaN passes on and
            its gate is off. GateBits (one layer; rows in the order of x's leading dimensions) or bool ``(...,
            out_features)``: hard gates; where one is off the result is exactly 0, even if the product is infinite
            or NaN. Float ``(..., out_features)`` of x's dtype: soft gates.
        return_gates: also return the hard gates.

    Returns:
        ``(..., out_features)``, or this and its GateBits. Differentiable in x, weight, bias and a soft gate, any order;
        no gradient passes through a hard gate. Under autocast everything is in autocast's dtype (float64 stays).

    Raises:
        TypeError, ValueError: naming the argument, before any work.
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


# --- fake kernels -----------------------------------------------------------------------------------------------


def _output(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _words(y: Tensor) -> Tensor:
    rows = y.numel() // y.shape[-1]
    return y.new_empty((rows, layer_words(1, y.shape[-1])), dtype=torch.int32)


def fake_gradients(dv: Tensor, x: Tensor | None, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias for dv ``(..., w)``; empty where they are not asked for."""
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


# --- sums of terms that may be absent ---------------------------------------------------------------------------


def plus(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are there; None where none is."""
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total if term is None else total + term
    return total


def product_tangent(
    x: Tensor, weight: Tensor, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None, words: Tensor | None, first: int
) -> Tensor | None:
    """``G o (tx W^T + x tw^T + tb)``; words None: without G. None where all tangents are."""
    terms = []
    if tx is not None:
        terms.append((tx, weight, tb))
    if tw is not None:
        terms.append((x, tw, tb if tx is None else None))
    if not terms and tb is not None:  # a product of nothing: no in_features
        terms.append((x.new_empty((*x.shape[:-1], 0)), x.new_empty((len(tb), 0)), tb))
    return plus(*(linear(*term) if words is None else gated(*term, words, first) for term in terms))


def keep_inputs(ctx: Any, needs: tuple[bool, ...], x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What a backward needs of a layer's inputs: x for the gradient of the weight, the weight for that of x."""
    return x if needs[1] else None, weight if needs[0] else None


def asked(gradients: tuple, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that are asked for; the others are empty tensors."""
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
    return *asked(gradients, needs[:3]), None, None


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
    return asked(gated_backward(grad, x, weight, words, 0, needs[2]), needs)


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


def _gated_backward_backward(ctx: Any, a: Tensor | None, b: Tensor | None, c: Tensor | None) -> tuple:
    """a, b, c: the cotangents of dx, dW and db."""
    grad, x, weight, words = ctx.saved_tensors
    first, bias = ctx.rest
    a, b, c = (None if weight is None else a), (None if x is None else b), (c if bias else None)
    dgrad = dx = dw = None
    if ctx.needs_input_grad[0]:
        dgrad = _masked_product(grad, x, weight, a, b, c, words, first)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        dx, dw, _ = gated_backward(grad, a, b, words, first, False)
    return dgrad, None if b is None else dx, None if a is None else dw, None, None, None


def _masked_product(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    c: Tensor | None,
    words: Tensor | None,
    first: int,
) -> Tensor | None:
    """``G o (a W^T + x b^T + c)``."""
    left = grad.new_empty((*grad.shape[:-1], 0)) if x is None else x
    right = grad.new_empty((grad.shape[-1], 0)) if weight is None else weight
    return product_tangent(left, right, a, b, c, words, first)


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
    """grad_product, of v as a result, comes from second derivatives only."""
    x, weight, gate, product = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if grad is not None and grad_product is None and not is_recorded(grad, gate, product, x, weight):
        return asked(gated_soft_backward(grad, x, weight, gate, product, needs[2]), needs)
    dv = plus(None if grad is None else grad * gate, grad_product)
    if dv is None:
        return None, None, None, None
    dgate = None if grad is None or product is None else grad * product
    return *asked(gated_backward(dv, x, weight, None, 0, needs[2]), needs[:3]), dgate


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
    """Of a fused backward: where a derivative of it is wanted, its formula is computed by other ops."""
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
