"""The Gram of neural path features: wrappers of npk_gram, npk_diag and npk_matvec."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.devices import most_precise
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_tensor
from gatedops.ops.differentiable import is_recorded
from gatedops.ops.gram_args import (
    factors_of,
    layout_of,
    require_inputs,
    require_out,
    require_result_dtype,
    require_same_device,
)
from gatedops.ops.gram_autograd import gram, matvec

_COPIED = 1 << 20  # numbers of x converted at a time by npk_diag


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
    """The neural path kernel of all pairs, ``K = Sigma * prod_l scale_l <G_l, G'_l>`` (Lakshminarayanan & Singh 2020,
    arXiv 2006.10529; docs/math.md, section 2), in one pass: nothing of size n x m exists beside the output.

    Args:
        x: ``(n, d)`` float32, float64, bfloat16 or float16 (converted to `dtype` tile by tile), or uint8 (Sigma is an
            exact integer, rounded once). None: Lambda alone.
        bits: gates of the n inputs.
        y, y_bits: the m inputs of the other side; both or neither (only y_bits where x is None). Neither: the
            symmetric Gram, each unordered pair computed once, bitwise symmetric.
        scale: what each layer's count is multiplied by: "width" (1 / w_l), "none" (1), or L numbers.
        normalize: divide by ``sqrt(K_ii K_jj)``; inputs with ``K_ii = 0`` give 0.
        dtype: float32 or float64; of the arithmetic and the result.
        out: where to write, ``(n, m)`` of `dtype`, rows contiguous. Not with inputs that need a gradient.

    Returns:
        ``(n, m)``; differentiable in x and y, to any order. For every pair Lambda is
        ``((c_1 s_1) (c_2 s_2)) ...`` in `dtype`, layers in order: the same bits on every machine.

    Raises:
        TypeError, ValueError: naming the argument, before any work; also scale="none" where the product of the
            widths alone exceeds `dtype`.
    """
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype)
    require_inputs(x, bits, y, y_bits)
    y_words = None if y_bits is None else y_bits.words
    if out is not None:
        require_out(out, (bits.n, bits.n if y_bits is None else y_bits.n), dtype, [x, y, bits.words, y_words])
    factor = _inverse_roots(x, bits, factors) if normalize else None
    y_factor = _inverse_roots(y, y_bits, factors) if normalize and y_bits is not None else None
    if out is None:
        return gram(x, bits.words, y, y_words, factor, y_factor, first, y_first, count, factors, dtype)
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(
            x, bits.words, y, y_words, factor, y_factor, first, y_first, count, factors, out=out
        )
    return out


def npk_diag(
    x: Tensor | None,
    bits: GateBits,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The diagonal ``K_ii`` of :func:`npk_gram`, ``(n,)``; differentiable in x. Arguments and errors as there."""
    first, _, count = layout_of(bits, None)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype)
    require_inputs(x, bits, None, None)
    diag = torch.ops.gatedops.npk_diag(bits.words, first, count, factors, dtype)
    return diag if x is None else _squared_norms(x).to(dtype) * diag


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
    """The Gram times v, the Gram never stored (docs/math.md, section 7).

    Args:
        v: ``(m,)`` or ``(m, c)`` of a float dtype; converted to `dtype`.
        x, bits, y, y_bits, scale, dtype: as in :func:`npk_gram`.

    Returns:
        ``(n,)`` or ``(n, c)``; differentiable in x, y and v, to any order. The same bits for any number of threads.
    """
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    factors = factors_of(scale, bits, dtype)
    require_inputs(x, bits, y, y_bits)
    require_tensor(v, "v")
    m = bits.n if y_bits is None else y_bits.n
    if not v.dtype.is_floating_point:
        raise TypeError(f"v: got {v.dtype}, needs a float dtype")
    if v.dim() not in (1, 2) or v.shape[0] != m:
        raise ValueError(f"v: got shape {tuple(v.shape)}, needs ({m},) or ({m}, c)")
    require_same_device(v, bits, "v")
    columns = (v.unsqueeze(1) if v.dim() == 1 else v).to(dtype)
    y_words = None if y_bits is None else y_bits.words
    product = matvec(x, bits.words, y, y_words, columns, first, y_first, count, factors)
    return product.squeeze(1) if v.dim() == 1 else product


def _squared_norms(x: Tensor) -> Tensor:
    """``<x_i, x_i>``, of uint8 rows exact; some rows at a time where no derivative is wanted."""
    dtype = torch.int64 if x.dtype == torch.uint8 else most_precise(x.device)
    if torch.compiler.is_compiling() or is_recorded(x):
        return x.to(dtype).square().sum(1)
    norms = x.new_empty(x.shape[0], dtype=dtype)
    rows = max(1, _COPIED // max(1, x.shape[1]))
    copy = x.new_empty((min(rows, x.shape[0]), x.shape[1]), dtype=dtype)
    for i in range(0, x.shape[0], rows):
        part = copy[: min(rows, x.shape[0] - i)].copy_(x[i : i + rows])
        torch.sum(part.square_(), 1, out=norms[i : i + rows])
    return norms


def _inverse_roots(x: Tensor | None, bits: GateBits, factors: list[float]) -> Tensor:
    """``K_ii ** -0.5``, 0 where ``K_ii`` is 0; in float64, where K_ii of a deep net does not underflow, if possible."""
    diag = npk_diag(x, bits, scale=factors, dtype=most_precise(bits.device))
    on = diag > 0
    return torch.where(on, diag, 1.0).rsqrt() * on
