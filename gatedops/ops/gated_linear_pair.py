"""One layer of a deep gated network: wrapper, fake kernels and derivatives of gated_linear_pair (docs/math.md,
section 8)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import layer_words
from gatedops.ops.checks import require_option, require_tensor
from gatedops.ops.differentiable import Differentiable, is_recorded, plus
from gatedops.ops.gated_linear import (
    fake_gradients,
    gated_backward,
    keep_inputs,
    layer_arguments,
    layer_bits,
    no_derivative,
    only_needed,
    product_tangent,
    save_nothing,
)


def gated_linear_pair(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    gate: Literal["hard", "soft"] = "hard",
    beta: float = 4.0,
    gain: float = 1.0,
    feature: Literal["relu", "linear"] = "relu",
    gates_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, GateBits]:
    """Computes one layer of both networks of a deep gated network (Lakshminarayanan, Singh & Rajkumar 2021, arXiv
    2110.03403; docs/math.md, section 8): the pre-activation ``q = h w_f^T + b_f`` of the feature network gates the
    product ``v = z w_v^T + b_v`` of the value network.

    For the backward of a hard gate only the inputs, the weights and one bit per gate are kept. If the feature network
    needs no gradient, nothing of it is kept, and its results need no gradient either.

    Args:
        h: ``(..., in_f)`` float32, float64, bfloat16 or float16: the feature network's activations.
        w_f, b_f: ``(out, in_f)`` and ``(out,)`` or None, of h's dtype.
        z: ``(..., in_v)`` of h's dtype and leading dimensions: the value network's activations.
        w_v, b_v: ``(out, in_v)`` and ``(out,)`` or None.
        gate: "hard": the gate is 1 if q > 0, else 0; where it is 0 the result is exactly 0, and no gradient passes
            through it. "soft": the gate is ``gain * sigmoid(beta q)``, and gradients reach both networks.
        beta, gain: positive numbers, for soft gates.
        feature: "relu": the next features are relu(q); "linear": they are q itself (deep linear gated networks).
        gates_out: int32 ``(n, W)`` for n rows and W = 8 * ceil(out / 256) words, the words of a row contiguous: a slice
            of the words of a GateBits, into which the gates are written. Allowed only if nothing needs a gradient.

    Returns:
        Next features ``(..., out)``, gated values ``(..., out)``, and the hard gates 1{q > 0} as GateBits.

    Raises:
        TypeError, ValueError: raised before any work; the message names the argument.
    """
    h, w_f, b_f = layer_arguments(h, w_f, b_f, ("h", "w_f", "b_f"))
    z, w_v, b_v = layer_arguments(z, w_v, b_v, ("z", "w_v", "b_v"))
    _require_pair(h, w_f, z, w_v)
    soft, linear_feature = _require_kind(gate, beta, gain, feature)
    width = w_f.shape[0]
    if gates_out is not None:
        return _without_gradient(h, w_f, b_f, z, w_v, b_v, soft, beta, gain, linear_feature, gates_out)
    if soft:
        h_next, z_next, words, _, _ = pair_soft(h, w_f, b_f, z, w_v, b_v, beta, gain, linear_feature)
    else:
        h_next, z_next, words = pair(h, w_f, b_f, z, w_v, b_v, linear_feature)
    if h_next.requires_grad and not is_recorded(h, w_f, b_f):
        h_next = h_next.detach()
    if z_next.requires_grad and not soft and not is_recorded(z, w_v, b_v):
        z_next = z_next.detach()
    return h_next, z_next, layer_bits(words, width)


def _require_pair(h: Tensor, w_f: Tensor, z: Tensor, w_v: Tensor) -> None:
    if z.shape[:-1] != h.shape[:-1]:
        raise ValueError(f"z: got shape {tuple(z.shape)}, needs the leading dimensions of h, {tuple(h.shape)}")
    if z.dtype != h.dtype:
        raise TypeError(f"z: got {z.dtype}, h is {h.dtype}; both need the same dtype")
    if z.device != h.device:
        raise ValueError(f"z: is on {z.device}, h is on {h.device}")
    if w_v.shape[0] != w_f.shape[0]:
        raise ValueError(f"w_v: has {w_v.shape[0]} out_features, w_f has {w_f.shape[0]}; both need the same")


def _require_kind(gate: str, beta: float, gain: float, feature: str) -> tuple[bool, bool]:
    """Whether the gate is soft, and whether the feature network is linear."""
    require_option("gate", gate, ("hard", "soft"))
    require_option("feature", feature, ("relu", "linear"))
    if gate == "soft":
        for value, name in ((beta, "beta"), (gain, "gain")):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value}, a soft gate needs a positive finite number")
    return gate == "soft", feature == "linear"


def _without_gradient(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    soft: bool,
    beta: float,
    gain: float,
    linear_feature: bool,
    gates_out: Tensor,
) -> tuple[Tensor, Tensor, GateBits]:
    require_tensor(gates_out, "gates_out")
    shape = (*h.shape[:-1], w_f.shape[0])
    needed = (math.prod(shape[:-1]), layer_words(1, shape[-1]))
    if gates_out.dtype != torch.int32:
        raise TypeError(f"gates_out: got {gates_out.dtype}, needs torch.int32")
    if tuple(gates_out.shape) != needed or gates_out.stride(1) != 1:
        raise ValueError(
            f"gates_out: got shape {tuple(gates_out.shape)} with strides {gates_out.stride()}, needs {needed},"
            " the words of a row contiguous"
        )
    if gates_out.device != h.device:
        raise ValueError(f"gates_out: is on {gates_out.device}, h is on {h.device}")
    if is_recorded(h, w_f, b_f, z, w_v, b_v):
        raise ValueError("gates_out: is for calls without gradients: use torch.no_grad(), or detach the arguments")
    h_next, z_next = h.new_empty(shape), h.new_empty(shape)
    rows = (needed[0], -1) if h.dim() > 2 else (*shape[:-1], -1)
    torch.ops.gatedops.gated_linear_pair_out(
        h.reshape(*rows[:-1], h.shape[-1]), w_f, b_f, z.reshape(*rows[:-1], z.shape[-1]), w_v, b_v,
        soft, beta, gain, linear_feature,
        h_next=h_next.view(*rows[:-1], shape[-1]), z_next=z_next.view(*rows[:-1], shape[-1]), gates_out=gates_out,
    )  # fmt: skip
    return h_next, z_next, layer_bits(gates_out, shape[-1])


# --- fake kernels -----------------------------------------------------------------------------------------------


def _fake_pair(h: Tensor, w_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h_next, z_next = (h.new_empty((*h.shape[:-1], w_f.shape[0])) for _ in range(2))
    rows = math.prod(h.shape[:-1])
    return h_next, z_next, h.new_empty((rows, layer_words(1, w_f.shape[0])), dtype=torch.int32)


@torch.library.register_fake("gatedops::gated_linear_pair")
def _(h, w_f, b_f, z, w_v, b_v, linear_feature):  # type: ignore[no-untyped-def]
    return _fake_pair(h, w_f)


@torch.library.register_fake("gatedops::gated_linear_pair_backward")
def _(grad_h, grad_z, h, w_f, b_f, z, w_v, b_v, words, linear_feature):  # type: ignore[no-untyped-def]
    return *fake_gradients(grad_h, h, w_f, b_f), *fake_gradients(grad_z, z, w_v, b_v)


@torch.library.register_fake("gatedops::gated_linear_pair_soft")
def _(h, w_f, b_f, z, w_v, b_v, beta, gain, linear_feature):  # type: ignore[no-untyped-def]
    h_next, z_next, words = _fake_pair(h, w_f)
    return h_next, z_next, words, h.new_empty(0) if linear_feature else h.new_empty(h_next.shape), z_next.clone()


@torch.library.register_fake("gatedops::gated_linear_pair_soft_backward")
def _(grad_h, grad_z, q, v, h, w_f, b_f, z, w_v, b_v, beta, gain, linear_feature):  # type: ignore[no-untyped-def]
    return *fake_gradients(q, h, w_f, b_f), *fake_gradients(q, z, w_v, b_v)


@torch.library.register_fake("gatedops::gated_linear_pair_out")
def _(h, w_f, b_f, z, w_v, b_v, soft, beta, gain, linear_feature, *, h_next, z_next, gates_out):  # type: ignore[no-untyped-def]
    return None


# --- hard gates: z' = 1{q > 0} o v ------------------------------------------------------------------------------


def _save_pair(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, w_f, _, z, w_v, _, linear_feature = inputs
    words, needs = output[2], ctx.needs_input_grad
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*keep_inputs(ctx, needs, h, w_f), *keep_inputs(ctx, needs[3:], z, w_v), words)
    ctx.save_for_forward(h, w_f, z, w_v, words)
    ctx.linear_feature = linear_feature


def _pair_backward(ctx: Any, grad_h: Tensor | None, grad_z: Tensor | None, _words: None) -> tuple:
    h, w_f, z, w_v, words = ctx.saved_tensors
    needs, linear_feature = ctx.needs_input_grad, ctx.linear_feature
    trains_h, trains_z = grad_h is not None and any(needs[:3]), grad_z is not None and any(needs[3:6])
    if trains_h and trains_z and not is_recorded(grad_h, grad_z, h, w_f, z, w_v):
        gradients = pair_backward(grad_h, grad_z, h, w_f, needs[2], z, w_v, needs[5], words, linear_feature)
        return *only_needed(gradients, needs[:6]), None
    feature: tuple[Tensor | None, ...] = (None, None, None)
    value = feature
    if trains_h:
        mask = None if linear_feature else words
        feature = only_needed(gated_backward(grad_h, h, w_f, mask, 0, needs[2]), needs[:3])
    if trains_z:
        value = only_needed(gated_backward(grad_z, z, w_v, words, 0, needs[5]), needs[3:6])
    return *feature, *value, None


def _pair_jvp(
    ctx: Any,
    th: Tensor | None,
    tw_f: Tensor | None,
    tb_f: Tensor | None,
    tz: Tensor | None,
    tw_v: Tensor | None,
    tb_v: Tensor | None,
    *_: None,
) -> tuple:
    h, w_f, z, w_v, words = ctx.saved_tensors
    feature = product_tangent(h, w_f, th, tw_f, tb_f, None if ctx.linear_feature else words, 0)
    value = product_tangent(z, w_v, tz, tw_v, tb_v, words, 0)
    return _zeros_for_none(h, w_f, feature), _zeros_for_none(z, w_v, value), None


def _zeros_for_none(x: Tensor, weight: Tensor, tangent: Tensor | None) -> Tensor:
    return x.new_zeros((*x.shape[:-1], weight.shape[0])) if tangent is None else tangent


# --- soft gates: z' = gain sigmoid(beta q) o v ------------------------------------------------------------------


def _save_pair_soft(ctx: Any, inputs: tuple, output: tuple) -> None:
    h, w_f, _, z, w_v, _, beta, gain, linear_feature = inputs
    h_next, _, _, q, v = output
    activation = h_next if linear_feature else q
    needs = ctx.needs_input_grad
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *keep_inputs(ctx, needs, h, w_f),
        *keep_inputs(ctx, needs[3:], z, w_v),
        activation,
        v if any(needs[:3]) else None,
    )
    ctx.save_for_forward(h, w_f, z, w_v, activation, v)
    ctx.rest = (beta, gain, linear_feature)


def _pair_soft_backward(
    ctx: Any, grad_h: Tensor | None, grad_z: Tensor | None, _words: None, grad_q: Tensor | None, grad_v: Tensor | None
) -> tuple:
    """grad_q and grad_v, the gradients of the outputs q and v, come from second derivatives only."""
    h, w_f, z, w_v, q, v = ctx.saved_tensors
    needs = ctx.needs_input_grad
    beta, gain, linear_feature = ctx.rest
    rest = (None, None, None)
    second = grad_q is not None or grad_v is not None
    if second or is_recorded(grad_h, grad_z, q, v, h, w_f, z, w_v):
        dq, dv = soft_gradients(grad_h, grad_z, q, v, *ctx.rest)
        if not linear_feature:  # With linear features, q is the first output and has no output of its own.
            dq = plus(dq, grad_q)
        return *_layer_gradients(dq, h, w_f, needs), *_layer_gradients(plus(dv, grad_v), z, w_v, needs[3:]), *rest
    gradients = pair_soft_backward(grad_h, grad_z, q, v, h, w_f, needs[2], z, w_v, needs[5], beta, gain, linear_feature)
    return *only_needed(gradients, needs[:6]), *rest


def soft_gradients(
    grad_h: Tensor | None, grad_z: Tensor | None, q: Tensor, v: Tensor | None, beta: float, gain: float, linear: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of q and v, by ops that have derivatives themselves. v is None if q needs no gradient."""
    by_h = None if grad_h is None else grad_h if linear else grad_h * (q > 0)
    if grad_z is None:
        return by_h, None
    gate = torch.sigmoid(beta * q)
    by_gate = None if v is None else grad_z * v * (gain * beta * gate * (1 - gate))
    return plus(by_gate, by_h), grad_z * (gain * gate)


def _layer_gradients(dv: Tensor | None, x: Tensor | None, weight: Tensor | None, needs: tuple[bool, ...]) -> tuple:
    """Returns the gradients of x, weight and bias for the gradient dv of their product."""
    if dv is None or not any(needs[:3]):
        return None, None, None
    return only_needed(gated_backward(dv, x, weight, None, 0, needs[2]), needs[:3])


def _pair_soft_jvp(
    ctx: Any,
    th: Tensor | None,
    tw_f: Tensor | None,
    tb_f: Tensor | None,
    tz: Tensor | None,
    tw_v: Tensor | None,
    tb_v: Tensor | None,
    *_: None,
) -> tuple:
    h, w_f, z, w_v, q, v = ctx.saved_tensors
    beta, gain, linear_feature = ctx.rest
    tq = _zeros_for_none(h, w_f, product_tangent(h, w_f, th, tw_f, tb_f, None, 0))
    tv = _zeros_for_none(z, w_v, product_tangent(z, w_v, tz, tw_v, tb_v, None, 0))
    gate = torch.sigmoid(beta * q)
    tz_next = tv * (gain * gate) + v * (gain * beta * gate * (1 - gate)) * tq
    if linear_feature:
        return tq, tz_next, None, tq.new_empty(0), tv
    return tq * (q > 0), tz_next, None, tq, tv


pair = Differentiable("gated_linear_pair", _save_pair, _pair_backward, _pair_jvp, saves_output=True)
pair_backward = Differentiable("gated_linear_pair_backward", save_nothing, no_derivative, no_derivative)
pair_soft = Differentiable(
    "gated_linear_pair_soft", _save_pair_soft, _pair_soft_backward, _pair_soft_jvp, saves_output=True
)
pair_soft_backward = Differentiable("gated_linear_pair_soft_backward", save_nothing, no_derivative, no_derivative)
