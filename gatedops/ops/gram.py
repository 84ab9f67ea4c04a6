"""The Gram of neural path features: npk_gram, npk_diag and npk_matvec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.ops.differentiable import is_recorded
from gatedops.ops.gram_args import (
    factors_of,
    layout_of,
    require_inputs,
    require_out,
    require_result_dtype,
    require_same_device,
    slopes_of,
    with_widths,
)
from gatedops.ops.gram_derivatives import gram_op, matvec_op
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
    slope: float | Sequence[float] = 0.0,
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
        slope: the slope that the activations have where their gates are off; where gates are on, it is 1. One number,
            or one per layer: 0 for ReLU, 0.01 for LeakyReLU, -1 for the absolute value. An entry of G_l is then 1 or
            the slope. A layer of kind "select" needs slope 0. K is not differentiable in it.
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
    slopes = slopes_of(slope, bits, dtype)
    factors = factors_of(scale, bits, dtype, slopes, normalize=normalize)
    require_inputs(x, bits, y, y_bits)
    y_words = None if y_bits is None else y_bits.words
    if out is not None:
        require_out(out, (bits.n, bits.n if y_bits is None else y_bits.n), dtype, [x, y, bits.words, y_words])
    if normalize:
        return _normalized(x, bits, y, y_bits, factors, slopes, dtype, out)
    check_range([bits, y_bits], [x, y], factors, dtype, "normalize=True", slopes=slopes)
    layout, sloped = (first, y_first, count, factors), with_widths(slopes, bits)
    if out is None:
        return gram_op(x, bits.words, y, y_words, None, None, *layout, dtype, *sloped)
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(x, bits.words, y, y_words, None, None, *layout, *sloped, out=out)
    return out


def npk_diag(
    x: Tensor | None,
    bits: GateBits,
    *,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the diagonal ``K_ii`` of :func:`npk_gram`, ``(n,)``; differentiable in x.

    Arguments and errors are those of :func:`npk_gram`.
    """
    x = None if x is None else as_tensor(x, "x")
    first, _, count = layout_of(bits, None)
    require_result_dtype(dtype, bits)
    slopes = slopes_of(slope, bits, dtype)
    factors = factors_of(scale, bits, dtype, slopes)
    require_inputs(x, bits, None, None)
    check_range([bits], [x], factors, dtype, slopes=slopes)
    diag = torch.ops.gatedops.npk_diag(bits.words, first, count, factors, dtype, *with_widths(slopes, bits))
    return diag if x is None else squared_norms(x).to(dtype) * diag


def npk_matvec(
    x: Tensor | None,
    bits: GateBits,
    v: Tensor,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the Gram times v without storing the Gram (docs/math.md, section 7).

    Args:
        v: ``(m,)`` or ``(m, c)`` of a float dtype; converted to `dtype`.
        x, bits, y, y_bits, scale, slope, dtype: as in :func:`npk_gram`.

    Returns:
        ``(n,)`` or ``(n, c)``; differentiable in x, y and v, to any order. The bits are the same for any number of
        threads.
    """
    x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
    v = as_tensor(v, "v")
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    slopes = slopes_of(slope, bits, dtype)
    factors = factors_of(scale, bits, dtype, slopes)
    require_inputs(x, bits, y, y_bits)
    m = bits.n if y_bits is None else y_bits.n
    if not v.dtype.is_floating_point:
        raise TypeError(f"v: got {v.dtype}, needs a float dtype")
    if v.dim() not in (1, 2) or v.shape[0] != m:
        raise ValueError(f"v: got shape {tuple(v.shape)}, needs ({m},) or ({m}, c)")
    require_same_device(v, bits, "v")
    check_range([bits, y_bits], [x, y], factors, dtype, slopes=slopes)
    columns = (v.unsqueeze(1) if v.dim() == 1 else v).to(dtype)
    y_words = None if y_bits is None else y_bits.words
    layout = (first, y_first, count, factors)
    product = matvec_op(x, bits.words, y, y_words, columns, *layout, *with_widths(slopes, bits))
    return product.squeeze(1) if v.dim() == 1 else product


def _normalized(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None,
    y_bits: GateBits | None,
    factors: Sequence[float],
    slopes: Sequence[float],
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """Computes ``K_ij / sqrt(K_ii K_jj)`` as a product of normalized Grams, each of some layers; mostly one Gram takes
    all layers."""
    sides = [bits] if y_bits is None else [bits, y_bits]
    norms = [squared_norms(side) for side in (x, y) if side is not None]
    *others, last = passes_of(sides, norms, dtype, slopes)
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
    layout, sloped = (first, y_first, count, scale), with_widths(part.slopes, chosen[0])
    if out is None:
        return gram_op(x, bits.words, y, y_words, roots[0], y_root, *layout, dtype, *sloped)
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(x, bits.words, y, y_words, roots[0], y_root, *layout, *sloped, out=out)
    return out


def inverse_roots(squares: Tensor, norm: Tensor | None = None) -> Tensor:
    """Returns ``K_ii ** -0.5``, or 0 if ``K_ii`` is 0."""
    diag = squares if norm is None else norm * squares
    on = diag > 0
    return torch.where(on, diag, 1.0).rsqrt() * on
