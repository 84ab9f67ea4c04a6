"""The Gram of neural path features: wrappers, fake kernels and derivatives of npk_gram, npk_diag and npk_matvec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.ops.differentiable import Differentiable, is_recorded, plus
from gatedops.ops.gram_args import (
    factors_of,
    layout_of,
    require_inputs,
    require_out,
    require_result_dtype,
    require_same_device,
)
from gatedops.ops.gram_range import Pass, check_range, passes_of, sign_of, squared_norms

# This many entries of a Gram are computed at a time and multiplied into another Gram.
_BLOCK = 1 << 21


def npk_gram(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Computes the neural path kernel of all pairs, ``K = Sigma * prod_l scale_l <G_l, G'_l>`` (Lakshminarayanan &
    Singh 2020, arXiv 2006.10529; docs/math.md, section 2), in one pass: nothing of size n x m exists beside the output.

    Args:
        x: ``(n, d)``, a tensor or numpy array of float32, float64, bfloat16 or float16 (converted to `dtype` tile by
            tile), or uint8 (Sigma is an exact integer, rounded once). None: the result is Lambda alone.
        bits: gates of the n inputs.
        y, y_bits: the m inputs of the other side; give both or neither (only y_bits if x is None). Without them the
            Gram is that of the n inputs: each unordered pair is computed once, and the result is bitwise symmetric.
        scale: the multiplier of each layer's count: "width" (1 / w_l), "none" (1), or L numbers.
        normalize: divide by ``sqrt(K_ii K_jj)``. The result is right for any number of layers, and only the signs of
            `scale` matter. Inputs with ``K_ii = 0`` give 0.
        dtype: float32 or float64, for the arithmetic and the result.
        out: ``(n, m)`` of `dtype` with contiguous rows, into which the result is written. Not allowed with inputs that
            need a gradient.

    Returns:
        ``(n, m)``; differentiable in x and y, to any order. For every pair Lambda is computed as
        ``((c_1 s_1) (c_2 s_2)) ...`` in `dtype`, layers in order, so its bits are the same on every machine.

    Raises:
        TypeError, ValueError: raised before any work; the message names the argument. Without `normalize`, scale="none"
            is refused if the product of the widths exceeds the range of `dtype`, and numbers as scale if the kernel
            does.

    Warns:
        UserWarning: on each side some input has a gate on in every layer, yet the whole Gram underflows.
    """
    x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype, normalize=normalize)
    require_inputs(x, bits, y, y_bits)
    y_words = None if y_bits is None else y_bits.words
    if out is not None:
        require_out(out, (bits.n, bits.n if y_bits is None else y_bits.n), dtype, [x, y, bits.words, y_words])
    if normalize:
        return _normalized(x, bits, y, y_bits, factors, dtype, out)
    check_range([bits, y_bits], [x, y], factors, dtype, "normalize=True")
    layout = (first, y_first, count, factors)
    if out is None:
        return _gram_op(x, bits.words, y, y_words, None, None, *layout, dtype)
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(x, bits.words, y, y_words, None, None, *layout, out=out)
    return out


def npk_diag(
    x: Tensor | None,
    bits: GateBits,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the diagonal ``K_ii`` of :func:`npk_gram`, ``(n,)``; differentiable in x.

    Arguments and errors are those of :func:`npk_gram`.
    """
    x = None if x is None else as_tensor(x, "x")
    first, _, count = layout_of(bits, None)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype)
    require_inputs(x, bits, None, None)
    check_range([bits], [x], factors, dtype)
    diag = torch.ops.gatedops.npk_diag(bits.words, first, count, factors, dtype)
    return diag if x is None else squared_norms(x).to(dtype) * diag


def npk_matvec(
    x: Tensor | None,
    bits: GateBits,
    v: Tensor,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the Gram times v without storing the Gram (docs/math.md, section 7).

    Args:
        v: ``(m,)`` or ``(m, c)`` of a float dtype; converted to `dtype`.
        x, bits, y, y_bits, scale, dtype: as in :func:`npk_gram`.

    Returns:
        ``(n,)`` or ``(n, c)``; differentiable in x, y and v, to any order. The bits are the same for any number of
        threads.
    """
    x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
    v = as_tensor(v, "v")
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype)
    require_inputs(x, bits, y, y_bits)
    m = bits.n if y_bits is None else y_bits.n
    if not v.dtype.is_floating_point:
        raise TypeError(f"v: got {v.dtype}, needs a float dtype")
    if v.dim() not in (1, 2) or v.shape[0] != m:
        raise ValueError(f"v: got shape {tuple(v.shape)}, needs ({m},) or ({m}, c)")
    require_same_device(v, bits, "v")
    check_range([bits, y_bits], [x, y], factors, dtype)
    columns = (v.unsqueeze(1) if v.dim() == 1 else v).to(dtype)
    y_words = None if y_bits is None else y_bits.words
    product = _matvec_op(x, bits.words, y, y_words, columns, first, y_first, count, factors)
    return product.squeeze(1) if v.dim() == 1 else product


def _normalized(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None,
    y_bits: GateBits | None,
    factors: Sequence[float],
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """Computes ``K_ij / sqrt(K_ii K_jj)`` as a product of normalized Grams, each of some layers; mostly one Gram takes
    all layers."""
    sides = [bits] if y_bits is None else [bits, y_bits]
    norms = [squared_norms(side) for side in (x, y) if side is not None]
    *others, last = passes_of(sides, norms, dtype)
    gram = _run(x, bits, y, y_bits, last, norms, factors, dtype, out)
    if not others:
        return gram
    if torch.compiler.is_compiling() or is_recorded(gram):
        for part in others:
            gram = gram * _run(None, bits, None, y_bits, part, [], (), dtype, None)
        return gram
    rows = max(1, _BLOCK // max(1, gram.shape[1]))
    for part in others:
        for start in range(0, bits.n, rows):
            block = slice(start, start + rows)
            gram[block].mul_(_run(None, bits[block], None, sides[-1], part, [], (), dtype, None))
    return gram


def _run(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None,
    y_bits: GateBits | None,
    part: Pass,
    norms: Sequence[Tensor],
    factors: Sequence[float],
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """Computes the normalized Gram of some layers. Only the sign of the product of `factors` remains."""
    chosen = [part.of(side) for side in (bits, y_bits) if side is not None]
    roots = [inverse_roots(part.squares(side), norm) for side, norm in zip_longest(chosen, norms)]
    sign = sign_of(factors)
    if sign == 0:
        roots = [0.0 * root for root in roots]
    scale = [-part.scale[0], *part.scale[1:]] if sign < 0 else part.scale
    first, y_first, count = layout_of(chosen[0], chosen[-1])
    y_words, y_root = (None, None) if y_bits is None else (y_bits.words, roots[-1])
    layout = (first, y_first, count, scale)
    if out is None:
        return _gram_op(x, bits.words, y, y_words, roots[0], y_root, *layout, dtype)
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(x, bits.words, y, y_words, roots[0], y_root, *layout, out=out)
    return out


def inverse_roots(squares: Tensor, norm: Tensor | None = None) -> Tensor:
    """Returns ``K_ii ** -0.5``, or 0 if ``K_ii`` is 0."""
    diag = squares if norm is None else norm * squares
    on = diag > 0
    return torch.where(on, diag, 1.0).rsqrt() * on


# --- fake kernels and derivatives (docs/math.md, section 7) -----------------------------------------------------
#
# Three ops are closed under differentiation: the Gram K = (X Y^T) * Lambda (its rows and columns scaled), its backward
# (G * Lambda) Y, and the trilinear T(X, Y, V) = ((X Y^T) * Lambda) V. In the symmetric case (y_words None) the
# backward is ((G + G^T) * Lambda) Y.


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
        back = _backward_op(grad, words, right, y_words, first, y_first, count, scale)
        dx, df = _side_gradients(back, x, f, needs_x, needs_f)
    if needs_y or needs_g:
        back = _backward_op(grad.mT, y_words, _times(x, f), words, y_first, first, count, scale)
        dy, dg = _side_gradients(back, y, g, needs_y, needs_g)
    return dx, None, dy, None, df, dg, None, None, None, None, None


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
        by_x = None if tx is None else _gram_op(tx, words, x, words, f, f, *rest)
        by_f = None if tf is None else _gram_op(x, words, x, words, tf, f, *rest)
        half = plus(by_x, by_f)
        return None if half is None else half + half.mT
    return plus(
        None if tx is None else _gram_op(tx, words, y, y_words, f, g, *rest),
        None if ty is None else _gram_op(x, words, ty, y_words, f, g, *rest),
        None if tf is None else _gram_op(x, words, y, y_words, tf, g, *rest),
        None if tg is None else _gram_op(x, words, y, y_words, f, tg, *rest),
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
        dgrad = _gram_op(cotangent, words, y, right, None, None, first, y_first, count, scale, grad.dtype)
        dgrad = dgrad + dgrad.mT if y_words is None else dgrad
    if ctx.needs_input_grad[2] and y_words is None:
        dy = _backward_op(grad, words, cotangent, None, first, y_first, count, scale).to(y.dtype)
    elif ctx.needs_input_grad[2]:
        dy = _backward_op(grad.mT, y_words, cotangent, words, y_first, first, count, scale).to(y.dtype)
    return dgrad, None, dy, None, None, None, None, None


def _gram_backward_jvp(ctx: Any, tgrad: Tensor | None, _w: None, ty: Tensor | None, *_: None) -> Tensor | None:
    grad, words, y, y_words = ctx.saved_tensors
    first, y_first, count, scale = ctx.rest
    left = None if tgrad is None else _backward_op(tgrad, words, y, y_words, first, y_first, count, scale)
    right = None if ty is None else _backward_op(grad, words, ty, y_words, first, y_first, count, scale)
    return plus(left, right)


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
        dx = _matvec_op(left, words, right, words, x.to(v.dtype), first, y_first, count, scale).to(x.dtype)
    elif ctx.needs_input_grad[0]:
        dx = _matvec_op(u, words, v, y_words, y.to(v.dtype), first, y_first, count, scale).to(x.dtype)
    if ctx.needs_input_grad[2]:
        dy = _matvec_op(v, y_words, u, words, x.to(v.dtype), y_first, first, count, scale).to(y.dtype)
    if ctx.needs_input_grad[4] and y_words is None:
        dv = _matvec_op(x, words, None, None, u, first, y_first, count, scale)
    elif ctx.needs_input_grad[4]:
        dv = _matvec_op(y, y_words, x, words, u, y_first, first, count, scale)
    return dx, None, dy, None, dv, None, None, None, None


def _matvec_jvp(
    ctx: Any, tx: Tensor | None, _w: None, ty: Tensor | None, _yw: None, tv: Tensor | None, *_: None
) -> Tensor | None:
    x, words, y, y_words, v = ctx.saved_tensors
    layout = ctx.rest
    by_v = None if tv is None else _matvec_op(x, words, y, y_words, tv, *layout)
    if y_words is None:
        if tx is None:
            return by_v
        left, right = torch.cat([tx, x], 1), torch.cat([x, tx], 1)
        return plus(_matvec_op(left, words, right, words, v, *layout), by_v)
    by_x = None if tx is None else _matvec_op(tx, words, y, y_words, v, *layout)
    by_y = None if ty is None else _matvec_op(x, words, ty, y_words, v, *layout)
    return plus(by_x, by_y, by_v)


_gram_op = Differentiable("npk_gram", _save_gram, _gram_backward, _gram_jvp)
_backward_op = Differentiable("npk_gram_backward", _save_gram_backward, _gram_backward_backward, _gram_backward_jvp)
_matvec_op = Differentiable("npk_matvec", _save_matvec, _matvec_backward, _matvec_jvp)
