"""Fake kernels and derivatives of npk_gram, npk_gram_backward, npk_matvec and npk_diag (docs/math.md, section 7).

Three ops are closed under differentiation: the Gram K = (X Y^T) * Lambda (its rows and columns scaled), its backward
(G * Lambda) Y, and the trilinear T(X, Y, V) = ((X Y^T) * Lambda) V. In the symmetric case (y_words None) the
backward is ((G + G^T) * Lambda) Y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops.ops.differentiable import Differentiable, plus


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
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
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
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
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
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
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
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    return v.new_empty((words.shape[0], v.shape[1]))


@torch.library.register_fake("gatedops::npk_diag")
def _(
    words: Tensor,
    first: list[int],
    count: list[int],
    scale: list[float],
    dtype: torch.dtype,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    return words.new_empty((words.shape[0],), dtype=dtype)


def _rows(words: Tensor, y_words: Tensor | None) -> int:
    return words.shape[0] if y_words is None else y_words.shape[0]


def _save(ctx: Any, tensors: tuple, rest: tuple) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.rest = rest


# --- K_ij = f_i g_j ((X Y^T) * Lambda)_ij, factors f, g optional; g = f and Y = X in the symmetric case --------------


def _save_gram(ctx: Any, inputs: tuple) -> None:
    x, words, y, y_words, factor, y_factor, *rest = inputs
    _save(ctx, (x, words, y, y_words, factor, y_factor), tuple(rest))


def _gram_backward(ctx: Any, grad: Tensor) -> tuple:
    x, words, y, y_words, f, g = ctx.saved_tensors
    first, y_first, count, scale, _, *slopes = ctx.rest
    needs_x, _, needs_y, _, needs_f, needs_g = ctx.needs_input_grad[:6]
    dx = dy = df = dg = None
    if needs_x or needs_f:
        right = _times(x, f) if y_words is None else _times(y, g)
        back = _backward_op(grad, words, right, y_words, first, y_first, count, scale, *slopes)
        dx, df = _side_gradients(back, x, f, needs_x, needs_f)
    if needs_y or needs_g:
        back = _backward_op(grad.mT, y_words, _times(x, f), words, y_first, first, count, scale, *slopes)
        dy, dg = _side_gradients(back, y, g, needs_y, needs_g)
    return dx, None, dy, None, df, dg, None, None, None, None, None, None, None


def _times(rows: Tensor, factor: Tensor | None) -> Tensor:
    return rows if factor is None else rows * factor.unsqueeze(1)


def _side_gradients(
    back: Tensor, rows: Tensor, factor: Tensor | None, needs_rows: bool, needs_factor: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Returns d rows_i = factor_i back_i and d factor_i = <rows_i, back_i>."""
    d_rows = _times(back, factor).to(rows.dtype) if needs_rows else None
    d_factor = None if factor is None or not needs_factor else (rows.to(factor.dtype) * back).sum(1)
    return d_rows, d_factor


def _gram_jvp(
    ctx: Any, tx: Tensor | None, _w: None, ty: Tensor | None, _yw: None, tf: Tensor | None, tg: Tensor | None, *_: None
) -> Tensor | None:
    x, words, y, y_words, f, g = ctx.saved_tensors
    rest = ctx.rest
    if y_words is None:
        by_x = None if tx is None else gram_op(tx, words, x, words, f, f, *rest)
        by_f = None if tf is None else gram_op(x, words, x, words, tf, f, *rest)
        half = plus(by_x, by_f)
        return None if half is None else half + half.mT
    return plus(
        None if tx is None else gram_op(tx, words, y, y_words, f, g, *rest),
        None if ty is None else gram_op(x, words, ty, y_words, f, g, *rest),
        None if tf is None else gram_op(x, words, y, y_words, tf, g, *rest),
        None if tg is None else gram_op(x, words, y, y_words, f, tg, *rest),
    )


# --- (G * Lambda) Y ---------------------------------------------------------------------------------------------


def _save_gram_backward(ctx: Any, inputs: tuple) -> None:
    grad, words, y, y_words, *rest = inputs
    _save(ctx, (grad, words, y, y_words), tuple(rest))


def _gram_backward_backward(ctx: Any, cotangent: Tensor) -> tuple:
    grad, words, y, y_words = ctx.saved_tensors
    first, y_first, count, scale, *slopes = ctx.rest
    dgrad = dy = None
    if ctx.needs_input_grad[0]:
        right = words if y_words is None else y_words
        dgrad = gram_op(cotangent, words, y, right, None, None, first, y_first, count, scale, grad.dtype, *slopes)
        dgrad = dgrad + dgrad.mT if y_words is None else dgrad
    if ctx.needs_input_grad[2] and y_words is None:
        dy = _backward_op(grad, words, cotangent, None, first, y_first, count, scale, *slopes).to(y.dtype)
    elif ctx.needs_input_grad[2]:
        dy = _backward_op(grad.mT, y_words, cotangent, words, y_first, first, count, scale, *slopes).to(y.dtype)
    return dgrad, None, dy, None, None, None, None, None, None, None


def _gram_backward_jvp(ctx: Any, tgrad: Tensor | None, _w: None, ty: Tensor | None, *_: None) -> Tensor | None:
    grad, words, y, y_words = ctx.saved_tensors
    left = None if tgrad is None else _backward_op(tgrad, words, y, y_words, *ctx.rest)
    right = None if ty is None else _backward_op(grad, words, ty, y_words, *ctx.rest)
    return plus(left, right)


# --- T(X, Y, V) = ((X Y^T) * Lambda) V --------------------------------------------------------------------------


def _save_matvec(ctx: Any, inputs: tuple) -> None:
    x, words, y, y_words, v, *rest = inputs
    _save(ctx, (x, words, y, y_words, v), tuple(rest))


def _matvec_backward(ctx: Any, u: Tensor) -> tuple:
    x, words, y, y_words, v = ctx.saved_tensors
    first, y_first, *rest = ctx.rest
    dx = dy = dv = None
    if ctx.needs_input_grad[0] and y_words is None:
        left, right = torch.cat([u, v], 1), torch.cat([v, u], 1)
        dx = matvec_op(left, words, right, words, x.to(v.dtype), first, y_first, *rest).to(x.dtype)
    elif ctx.needs_input_grad[0]:
        dx = matvec_op(u, words, v, y_words, y.to(v.dtype), first, y_first, *rest).to(x.dtype)
    if ctx.needs_input_grad[2]:
        dy = matvec_op(v, y_words, u, words, x.to(v.dtype), y_first, first, *rest).to(y.dtype)
    if ctx.needs_input_grad[4] and y_words is None:
        dv = matvec_op(x, words, None, None, u, first, y_first, *rest)
    elif ctx.needs_input_grad[4]:
        dv = matvec_op(y, y_words, x, words, u, y_first, first, *rest)
    return dx, None, dy, None, dv, None, None, None, None, None, None


def _matvec_jvp(
    ctx: Any, tx: Tensor | None, _w: None, ty: Tensor | None, _yw: None, tv: Tensor | None, *_: None
) -> Tensor | None:
    x, words, y, y_words, v = ctx.saved_tensors
    layout = ctx.rest
    by_v = None if tv is None else matvec_op(x, words, y, y_words, tv, *layout)
    if y_words is None:
        if tx is None:
            return by_v
        left, right = torch.cat([tx, x], 1), torch.cat([x, tx], 1)
        return plus(matvec_op(left, words, right, words, v, *layout), by_v)
    by_x = None if tx is None else matvec_op(tx, words, y, y_words, v, *layout)
    by_y = None if ty is None else matvec_op(x, words, ty, y_words, v, *layout)
    return plus(by_x, by_y, by_v)


gram_op = Differentiable("npk_gram", _save_gram, _gram_backward, _gram_jvp)
_backward_op = Differentiable("npk_gram_backward", _save_gram_backward, _gram_backward_backward, _gram_backward_jvp)
matvec_op = Differentiable("npk_matvec", _save_matvec, _matvec_backward, _matvec_jvp)
