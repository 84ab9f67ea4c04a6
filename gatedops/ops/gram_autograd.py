"""Fake kernels and derivatives of the gram family (docs/math.md, section 7).

Three ops are closed under differentiation: the Gram K = (X Y^T) * Lambda (its rows and columns scaled), its backward
(G * Lambda) Y, and the trilinear T(X, Y, V) = ((X Y^T) * Lambda) V. In the symmetric case (y_words None) the
backward is ((G + G^T) * Lambda) Y.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatedops.ops.differentiable import Differentiable


@torch.library.register_fake("gatedops::npk_gram")
def _(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    factor: Tensor | None,
    y_factor: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return words.new_empty((words.shape[0], _rows(words, y_words)), dtype=dtype)


@torch.library.register_fake("gatedops::npk_gram_out")
def _(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    factor: Tensor | None,
    y_factor: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    *,
    out: Tensor,
) -> None:
    return None


@torch.library.register_fake("gatedops::npk_gram_backward")
def _(
    grad: Tensor,
    words: Tensor,
    y: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
) -> Tensor:
    return grad.new_empty((words.shape[0], y.shape[1]))


@torch.library.register_fake("gatedops::npk_matvec")
def _(
    x: Tensor | None,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    v: Tensor,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
) -> Tensor:
    return v.new_empty((words.shape[0], v.shape[1]))


@torch.library.register_fake("gatedops::npk_diag")
def _(words: Tensor, first: list[int], count: list[int], scale: list[float], dtype: torch.dtype) -> Tensor:
    return words.new_empty((words.shape[0],), dtype=dtype)


def _rows(words: Tensor, y_words: Tensor | None) -> int:
    return words.shape[0] if y_words is None else y_words.shape[0]


def _save(ctx: Any, tensors: tuple, rest: tuple) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest


def _sum(*terms: Tensor | None) -> Tensor:
    """The sum of the terms that are there."""
    total: Tensor | None = None
    for term in terms:
        total = term if total is None else total if term is None else total + term
    assert total is not None
    return total


# --- K_ij = f_i g_j ((X Y^T) * Lambda)_ij, factors f, g optional; g = f and Y = X in the symmetric case --------------


def _save_gram(ctx: Any, inputs: tuple) -> None:
    x, words, y, y_words, factor, y_factor, first, y_first, count, scale, dtype = inputs
    _save(ctx, (x, words, y, y_words, factor, y_factor), (first, y_first, count, scale, dtype))


def _gram_backward(ctx: Any, grad: Tensor) -> tuple:
    x, words, y, y_words, f, g = ctx.saved_tensors
    first, y_first, count, scale, _ = ctx.rest
    needs_x, _, needs_y, _, needs_f, needs_g = ctx.needs_input_grad[:6]
    dx = dy = df = dg = None
    if needs_x or needs_f:
        right = _times(x, f) if y_words is None else _times(y, g)
        back = gram_backward(grad, words, right, y_words, first, y_first, count, scale)
        dx, df = _side_gradients(back, x, f, needs_x, needs_f)
    if needs_y or needs_g:
        back = gram_backward(grad.mT, y_words, _times(x, f), words, y_first, first, count, scale)
        dy, dg = _side_gradients(back, y, g, needs_y, needs_g)
    return dx, None, dy, None, df, dg, None, None, None, None, None


def _times(rows: Tensor, factor: Tensor | None) -> Tensor:
    return rows if factor is None else rows * factor.unsqueeze(1)


def _side_gradients(
    back: Tensor, rows: Tensor, factor: Tensor | None, needs_rows: bool, needs_factor: bool
) -> tuple[Tensor | None, Tensor | None]:
    """d rows_i = factor_i back_i and d factor_i = <rows_i, back_i>."""
    d_rows = _times(back, factor).to(rows.dtype) if needs_rows else None
    d_factor = None if factor is None or not needs_factor else (rows.to(factor.dtype) * back).sum(1)
    return d_rows, d_factor


def _gram_jvp(
    ctx: Any, tx: Tensor | None, _w: None, ty: Tensor | None, _yw: None, tf: Tensor | None, tg: Tensor | None, *_: None
) -> Tensor:
    x, words, y, y_words, f, g = ctx.saved_tensors
    rest = ctx.rest
    if y_words is None:
        by_x = None if tx is None else gram(tx, words, x, words, f, f, *rest)
        by_f = None if tf is None else gram(x, words, x, words, tf, f, *rest)
        half = _sum(by_x, by_f)
        return half + half.mT
    return _sum(
        None if tx is None else gram(tx, words, y, y_words, f, g, *rest),
        None if ty is None else gram(x, words, ty, y_words, f, g, *rest),
        None if tf is None else gram(x, words, y, y_words, tf, g, *rest),
        None if tg is None else gram(x, words, y, y_words, f, tg, *rest),
    )


# --- (G * Lambda) Y ---------------------------------------------------------------------------------------------


def _save_gram_backward(ctx: Any, inputs: tuple) -> None:
    grad, words, y, y_words, first, y_first, count, scale = inputs
    _save(ctx, (grad, words, y, y_words), (first, y_first, count, scale))


def _gram_backward_backward(ctx: Any, cotangent: Tensor) -> tuple:
    grad, words, y, y_words = ctx.saved_tensors
    first, y_first, count, scale = ctx.rest
    dgrad = dy = None
    if ctx.needs_input_grad[0]:
        right = words if y_words is None else y_words
        dgrad = gram(cotangent, words, y, right, None, None, first, y_first, count, scale, grad.dtype)
        dgrad = dgrad + dgrad.mT if y_words is None else dgrad
    if ctx.needs_input_grad[2] and y_words is None:
        dy = gram_backward(grad, words, cotangent, None, first, y_first, count, scale).to(y.dtype)
    elif ctx.needs_input_grad[2]:
        dy = gram_backward(grad.mT, y_words, cotangent, words, y_first, first, count, scale).to(y.dtype)
    return dgrad, None, dy, None, None, None, None, None


def _gram_backward_jvp(ctx: Any, tgrad: Tensor | None, _w: None, ty: Tensor | None, *_: None) -> Tensor:
    grad, words, y, y_words = ctx.saved_tensors
    first, y_first, count, scale = ctx.rest
    left = None if tgrad is None else gram_backward(tgrad, words, y, y_words, first, y_first, count, scale)
    right = None if ty is None else gram_backward(grad, words, ty, y_words, first, y_first, count, scale)
    return _sum(left, right)


# --- T(X, Y, V) = ((X Y^T) * Lambda) V --------------------------------------------------------------------------


def _save_matvec(ctx: Any, inputs: tuple) -> None:
    x, words, y, y_words, v, first, y_first, count, scale = inputs
    _save(ctx, (x, words, y, y_words, v), (first, y_first, count, scale))


def _matvec_backward(ctx: Any, u: Tensor) -> tuple:
    x, words, y, y_words, v = ctx.saved_tensors
    first, y_first, count, scale = ctx.rest
    dx = dy = dv = None
    if ctx.needs_input_grad[0] and y_words is None:
        left, right = torch.cat([u, v], 1), torch.cat([v, u], 1)
        dx = matvec(left, words, right, words, x.to(v.dtype), first, y_first, count, scale).to(x.dtype)
    elif ctx.needs_input_grad[0]:
        dx = matvec(u, words, v, y_words, y.to(v.dtype), first, y_first, count, scale).to(x.dtype)
    if ctx.needs_input_grad[2]:
        dy = matvec(v, y_words, u, words, x.to(v.dtype), y_first, first, count, scale).to(y.dtype)
    if ctx.needs_input_grad[4] and y_words is None:
        dv = matvec(x, words, None, None, u, first, y_first, count, scale)
    elif ctx.needs_input_grad[4]:
        dv = matvec(y, y_words, x, words, u, y_first, first, count, scale)
    return dx, None, dy, None, dv, None, None, None, None


def _matvec_jvp(
    ctx: Any, tx: Tensor | None, _w: None, ty: Tensor | None, _yw: None, tv: Tensor | None, *_: None
) -> Tensor:
    x, words, y, y_words, v = ctx.saved_tensors
    layout = ctx.rest
    by_v = None if tv is None else matvec(x, words, y, y_words, tv, *layout)
    if y_words is None:
        if tx is None:
            return _sum(by_v)
        left, right = torch.cat([tx, x], 1), torch.cat([x, tx], 1)
        return _sum(matvec(left, words, right, words, v, *layout), by_v)
    by_x = None if tx is None else matvec(tx, words, y, y_words, v, *layout)
    by_y = None if ty is None else matvec(x, words, ty, y_words, v, *layout)
    return _sum(by_x, by_y, by_v)


gram = Differentiable("npk_gram", _save_gram, _gram_backward, _gram_jvp)
gram_backward = Differentiable("npk_gram_backward", _save_gram_backward, _gram_backward_backward, _gram_backward_jvp)
matvec = Differentiable("npk_matvec", _save_matvec, _matvec_backward, _matvec_jvp)
