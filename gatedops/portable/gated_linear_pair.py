"""Computes gated_linear_pair, its variants and its backwards by torch operations (docs/math.md, section 8).

The arguments of the ops are those of their schemas.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.layout import layer_words
from gatedops.portable.checks import require, require_one_device, require_words
from gatedops.portable.gated_linear import (
    as_rows,
    gated_gradient,
    in_shape,
    product_rows,
    require_backward,
    require_like,
    require_linear,
    select_rows,
)
from gatedops.portable.gates import pack_into, words_of
from gatedops.portable.layer_gradients import layer_gradients
from gatedops.portable.rows import Rows
from gatedops.portable.select import select
from gatedops.portable.workspace import blocks, piece_of, pieces

Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def gated_linear_pair(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    linear_feature: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the next features, the gated values and the words of the gates."""
    _require_pair(h, w_f, b_f, z, w_v, b_v)
    q, v = product_rows(h, w_f, b_f), product_rows(z, w_v, b_v)
    words = words_of(q.unsqueeze(1))
    select_rows(v, words, 0)
    return in_shape(q if linear_feature else q.relu_(), h), in_shape(v, z), words


def gated_linear_pair_soft(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    beta: float,
    gain: float,
    linear_feature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Computes the next features, the gated values, the words, q and v. With linear features q is the first result
    already, and an empty tensor stands for it."""
    _require_pair(h, w_f, b_f, z, w_v, b_v)
    q, v = product_rows(h, w_f, b_f), product_rows(z, w_v, b_v)
    words, z_next = words_of(q.unsqueeze(1)), torch.empty_like(v)
    _gate_softly(q, v, beta, gain, z_next)
    if linear_feature:
        return in_shape(q, h), in_shape(z_next, z), words, q.new_empty(0), in_shape(v, z)
    return in_shape(q.relu(), h), in_shape(z_next, z), words, in_shape(q, h), in_shape(v, z)


def gated_linear_pair_out(
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
    *,
    h_next: Tensor,
    z_next: Tensor,
    gates_out: Tensor,
) -> None:
    """Writes the next features, the gated values and the words into given tensors."""
    _require_pair(h, w_f, b_f, z, w_v, b_v)
    shape = (*h.shape[:-1], w_f.shape[0])
    for out, name in ((h_next, "h_next"), (z_next, "z_next")):
        fits = tuple(out.shape) == shape and out.dtype == h.dtype and out.is_contiguous()
        require(fits, f"{name}: got {out.dtype} {tuple(out.shape)}, needs {h.dtype} {shape}, contiguous")
    require_words(gates_out, "gates_out")
    q, v = as_rows(h_next), as_rows(z_next)
    needed = (q.shape[0], layer_words(1, q.shape[1]))
    require(tuple(gates_out.shape) == needed, lambda: f"gates_out: got shape {tuple(gates_out.shape)}, needs {needed}")
    require_one_device(h, h_next, z_next, gates_out)
    _product_into(q, h, w_f, b_f)
    _product_into(v, z, w_v, b_v)
    pack_into(gates_out, q.unsqueeze(1))
    if soft:
        _gate_softly(q, v, beta, gain, v)
    else:
        select_rows(v, gates_out, 0)
    if not linear_feature:
        q.relu_()


def gated_linear_pair_backward(
    grad_h: Tensor,
    grad_z: Tensor,
    h: Tensor | None,
    w_f: Tensor | None,
    b_f: bool,
    z: Tensor | None,
    w_v: Tensor | None,
    b_v: bool,
    words: Tensor,
    linear_feature: bool,
) -> Six:
    """Computes the gradients of both layers' inputs, weights and biases."""
    require_backward(grad_h, h, w_f, ("grad_h", "h", "w_f"))
    require_backward(grad_z, z, w_v, ("grad_z", "z", "w_v"))
    feature = gated_gradient(grad_h, None if linear_feature else words, 0)
    value = gated_gradient(grad_z, words, 0)
    return *layer_gradients(feature, grad_h, h, w_f, b_f), *layer_gradients(value, grad_z, z, w_v, b_v)


def gated_linear_pair_soft_backward(
    grad_h: Tensor | None,
    grad_z: Tensor | None,
    q: Tensor,
    v: Tensor | None,
    h: Tensor | None,
    w_f: Tensor | None,
    b_f: bool,
    z: Tensor | None,
    w_v: Tensor | None,
    b_v: bool,
    beta: float,
    gain: float,
    linear_feature: bool,
) -> Six:
    """Computes the gradients of both layers' inputs, weights and biases; the gate's reach the feature network."""
    require_backward(q, h, w_f, ("q", "h", "w_f"))
    require_backward(q, z, w_v, ("q", "z", "w_v"))
    for value, name in ((grad_h, "grad_h"), (grad_z, "grad_z"), (v, "v")):
        if value is not None:
            require_like(value, q, name)
    asks_feature = h is not None or w_f is not None or b_f
    require(v is not None or not asks_feature, "v: is missing, the gradient of the feature network needs it")
    precise = torch.promote_types(q.dtype, torch.float32)
    by_h, by_z, product = (None if t is None else Rows(t) for t in (grad_h, grad_z, v))
    pre = Rows(q)

    def dq(rows: slice, columns: slice) -> Tensor:
        at = pre.at(rows, columns).to(precise)
        total = torch.zeros_like(at)
        if by_z is not None and product is not None:
            gate = torch.sigmoid(beta * at)
            slope = (1 - gate).mul_(gate).mul_(gain * beta)
            total = slope.mul_(by_z.at(rows, columns)).mul_(product.at(rows, columns))
        if by_h is not None:
            grad = by_h.at(rows, columns)
            total += grad if linear_feature else select(grad, at > 0)
        return total.to(q.dtype)

    def dv(rows: slice, columns: slice) -> Tensor:
        at = pre.at(rows, columns).to(precise)
        if by_z is None:
            return torch.zeros_like(at, dtype=q.dtype)
        return torch.sigmoid_(at.mul(beta)).mul_(gain).mul_(by_z.at(rows, columns)).to(q.dtype)

    return *layer_gradients(dq, q, h, w_f, b_f), *layer_gradients(dv, q, z, w_v, b_v)


def _gate_softly(q: Tensor, v: Tensor, beta: float, gain: float, out: Tensor) -> None:
    """Computes out = v * gain * sigmoid(beta q), in float32 at least; out may be v."""
    precise = torch.promote_types(q.dtype, torch.float32)
    for rows in pieces(q.shape[0], q.shape[1], size=piece_of(q.device) // 2):
        gate = q[rows].to(precise).mul(beta).sigmoid_().mul_(gain)
        out[rows] = gate.mul_(v[rows])


def _product_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Computes out = x W^T + b, some rows at a time."""
    left = Rows(x)
    for rows in blocks(left.n, max(1, left.at_once)):
        if bias is None:
            torch.mm(left.at(rows), weight.mT, out=out[rows])
        else:
            torch.addmm(bias, left.at(rows), weight.mT, out=out[rows])


def _require_pair(h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None) -> None:
    require_linear(h, w_f, b_f, ("h", "w_f", "b_f"))
    require_linear(z, w_v, b_v, ("z", "w_v", "b_v"))
    require(z.dtype == h.dtype, "z: needs the dtype of h")
    require(w_v.shape[0] == w_f.shape[0], lambda: f"w_v: has {w_v.shape[0]} rows, w_f has {w_f.shape[0]}")
    fits = z.shape[:-1] == h.shape[:-1]
    require(fits, lambda: f"z: got shape {tuple(z.shape)}, needs the leading dimensions of h, {tuple(h.shape)}")
    require_one_device(h, z)
