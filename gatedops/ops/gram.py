"""Gate overlaps and the Gram of neural path features: wrappers of the gram family."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.gatebits import GateBits, require_same_layers
from gatedops.ops.checks import require_dtype, require_supported, require_tensor
from gatedops.ops.gram_autograd import gram, matvec

_DTYPES = (torch.float32, torch.float64)
_X_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)
_ROWS = 4096  # rows of x squared at a time by npk_diag


def gate_overlap(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts, layer by layer, the gates that are on for both inputs of every pair (docs/math.md, section 2).

    Args:
        a: gates of n inputs. b: gates of m inputs, same layers; default a, and each unordered pair is counted once.

    Returns:
        int32 ``(L, n, m)``, exact.

    Raises:
        TypeError, ValueError: a or b is no GateBits, their layers or devices differ.
    """
    first, y_first, count = _layout(a, b, "a", "b")
    return torch.ops.gatedops.gate_overlap(a.words, None if b is None else b.words, first, y_first, count)


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
    first, y_first, count = _layout(bits, y_bits, "bits", "y_bits")
    require_dtype(dtype, "dtype", _DTYPES)
    factors = _factors(scale, bits, dtype)
    _require_inputs(x, bits, y, y_bits)
    if normalize:
        x, y = _normalized(x, bits, y, y_bits, factors, dtype)
    y_words = None if y_bits is None else y_bits.words
    if out is None:
        return gram(x, bits.words, y, y_words, first, y_first, count, factors, dtype)
    _require_out(out, (bits.n, bits.n if y_bits is None else y_bits.n), dtype, [x, y, bits.words, y_words])
    with torch.no_grad():
        torch.ops.gatedops.npk_gram_out(
            x, bits.words, y, y_words, first, y_first, count, factors, out=out
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
    first, _, count = _layout(bits, None, "bits", "y_bits")
    require_dtype(dtype, "dtype", _DTYPES)
    factors = _factors(scale, bits, dtype)
    _require_inputs(x, bits, None, None)
    diag = torch.ops.gatedops.npk_diag(bits.words, first, count, factors, dtype)
    return diag if x is None else _squared_norms(x, dtype) * diag


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
    first, y_first, count = _layout(bits, y_bits, "bits", "y_bits")
    require_dtype(dtype, "dtype", _DTYPES)
    factors = _factors(scale, bits, dtype)
    _require_inputs(x, bits, y, y_bits)
    require_tensor(v, "v")
    m = bits.n if y_bits is None else y_bits.n
    if not v.dtype.is_floating_point:
        raise TypeError(f"v: got {v.dtype}, needs a float dtype")
    if v.dim() not in (1, 2) or v.shape[0] != m:
        raise ValueError(f"v: got shape {tuple(v.shape)}, needs ({m},) or ({m}, c)")
    _require_same_device(v, bits, "v")
    columns = (v.unsqueeze(1) if v.dim() == 1 else v).to(dtype)
    y_words = None if y_bits is None else y_bits.words
    product = matvec(x, bits.words, y, y_words, columns, first, y_first, count, factors)
    return product.squeeze(1) if v.dim() == 1 else product


def _layout(
    bits: GateBits, y_bits: GateBits | None, name: str, y_name: str
) -> tuple[list[int], list[int], list[int]]:
    """First word of each layer on both sides and the words it uses; checks both arguments."""
    for value, argument in ((bits, name), (y_bits, y_name)):
        if not isinstance(value, GateBits) and not (value is None and argument == y_name):
            raise TypeError(f"{argument}: got {type(value).__name__}, needs a GateBits")
    if not bits.layers:
        raise ValueError(f"{name}: has no layers, needs at least one")
    require_supported(bits.words, "gate_overlap", name)
    if y_bits is not None:
        require_same_layers(y_bits, bits, y_name, name)
    first = [layer.first_word for layer in bits.layers]
    y_first = first if y_bits is None else [layer.first_word for layer in y_bits.layers]
    return first, y_first, [layer.words for layer in bits.layers]


def _factors(scale: str | Sequence[float], bits: GateBits, dtype: torch.dtype) -> list[float]:
    """The multiplier of each layer's count."""
    if isinstance(scale, str):
        if scale == "width":
            return [1.0 / w for w in bits.widths]
        if scale != "none":
            raise ValueError(f"scale: got {scale!r}, needs 'width', 'none' or one number per layer")
        if math.prod(bits.widths) > torch.finfo(dtype).max:
            raise ValueError(
                f"scale: 'none' overflows {dtype}, the widths {bits.widths} multiply to more than it holds;"
                " use 'width' or dtype=torch.float64"
            )
        return [1.0] * len(bits.widths)
    factors = [float(s) for s in scale]
    if len(factors) != len(bits.widths):
        raise ValueError(f"scale: got {len(factors)} numbers, needs one for each of {len(bits.widths)} layers")
    if not all(math.isfinite(s) for s in factors):
        raise ValueError(f"scale: got {factors}, needs finite numbers")
    return factors


def _require_inputs(x: Tensor | None, bits: GateBits, y: Tensor | None, y_bits: GateBits | None) -> None:
    if x is not None:
        _require_rows(x, bits, "x")
        if (y is None) != (y_bits is None):
            missing, given = ("y", "y_bits") if y is None else ("y_bits", "y")
            raise ValueError(f"{missing}: is missing, {given} needs it")
    if y is None:
        return
    if x is None or y_bits is None:
        raise ValueError(f"{'x' if x is None else 'y_bits'}: is missing, y needs it")
    _require_rows(y, y_bits, "y")
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"y: has {y.shape[1]} columns, x has {x.shape[1]}")
    if (x.dtype == torch.uint8) != (y.dtype == torch.uint8):
        raise TypeError(f"y: got {y.dtype} beside x of {x.dtype}; either both are uint8 or neither")


def _require_rows(x: Tensor, bits: GateBits, name: str) -> None:
    require_tensor(x, name)
    require_dtype(x.dtype, name, _X_DTYPES)
    if x.dim() != 2 or x.shape[0] != bits.n:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, needs ({bits.n}, d): one row per row of gates")
    _require_same_device(x, bits, name)


def _require_same_device(t: Tensor, bits: GateBits, name: str) -> None:
    if t.device != bits.device:
        raise ValueError(f"{name}: is on {t.device}, the gates are on {bits.device}")


def _require_out(out: Tensor, shape: tuple[int, int], dtype: torch.dtype, inputs: list[Tensor | None]) -> None:
    require_tensor(out, "out")
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)}, needs {dtype} {shape}")
    given = [t for t in inputs if t is not None]
    if out.device != given[-1].device:
        raise ValueError(f"out: is on {out.device}, the gates are on {given[-1].device}")
    if shape[0] > 1 and out.stride(0) < shape[1] or shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out: has strides {out.stride()}, needs contiguous rows that do not overlap")
    if torch.is_grad_enabled() and any(t.requires_grad for t in [out, *given]):
        raise ValueError("out: is not differentiable; call without it, or under torch.no_grad()")
    if not torch.compiler.is_compiling() and any(_overlaps(out, t) for t in given):
        raise ValueError("out: overlaps an input in memory, needs its own")


def _overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether the memory spans of two tensors meet."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    spans = []
    for t in (a, b):
        extent = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        spans.append((t.data_ptr(), t.data_ptr() + (extent + 1) * t.element_size()))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]


def _squared_norms(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``<x_i, x_i>``; of uint8 rows exact, rounded once."""
    if x.dtype != torch.uint8:
        return x.to(dtype).square().sum(1)
    # float64 holds these integers exactly; some rows at a time, to copy little.
    parts = [rows.to(torch.float64).square().sum(1) for rows in x.split(_ROWS)]
    return torch.cat(parts).to(dtype) if parts else x.new_empty(0, dtype=dtype)


def _normalized(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None,
    y_bits: GateBits | None,
    factors: list[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """x and y with rows scaled by ``K_ii ** -0.5``, so that their Gram is the normalized one. x None stands for a
    column of ones. In float64, where K_ii of a deep net does not underflow."""
    sides = [(x, bits)] if y_bits is None else [(x, bits), (y, y_bits)]
    scaled: list[Tensor] = []
    for rows, gates in sides:
        diag = npk_diag(rows, gates, scale=factors, dtype=torch.float64)
        on = diag > 0
        factor = torch.where(on, diag, 1.0).rsqrt() * on
        column = factor.unsqueeze(1)
        scaled.append((column if rows is None else rows.to(torch.float64) * column).to(dtype))
    return scaled[0], None if y_bits is None else scaled[1]
