"""Overlaps, agreement, neighbours and the neural path kernel in plain torch (docs/math.md, sections 2, 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.reference.gates import unpack_gates


def gate_overlap(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts how many gates of layer l are on in both row i of a and row j of b (None: of a), int32 (L, n, m)."""
    left = unpack_gates(a)
    right = left if b is None else unpack_gates(b)
    # Every device has a product of float64 matrices, and it sums 0s and 1s exactly below 2^53.
    counts = [p.flatten(1).double() @ q.flatten(1).double().T for p, q in zip(left, right, strict=True)]
    return torch.stack(counts).to(torch.int32)


def multipliers(bits: GateBits, scale: str | Sequence[float], dtype: torch.dtype) -> list[float]:
    """Returns one factor per layer: 1/w_l ("width"), 1 ("none") or the given floats.

    Raises ValueError if scale is "none" and the largest Lambda, prod(w_l), is beyond the range of dtype.
    """
    widths = [math.prod(layer.shape) for layer in bits.layers]
    if scale == "width":
        return [1.0 / width for width in widths]
    if scale == "none":
        if math.prod(widths) > torch.finfo(dtype).max:
            raise ValueError(f"scale='none': the product of the widths is beyond {dtype}; use scale='width'")
        return [1.0] * len(widths)
    return [float(s) for s in scale]


def slopes_of(bits: GateBits, slope: float | Sequence[float]) -> list[float]:
    """Returns the slope of each layer where its gates are off."""
    return [float(slope)] * len(bits.layers) if isinstance(slope, (int, float)) else [float(a) for a in slope]


def gate_products(
    a: GateBits, b: GateBits | None, slope: float | Sequence[float], dtype: torch.dtype
) -> Sequence[Tensor]:
    """Computes <gamma, gamma'> of every pair of rows, (n, m) for each layer: gamma is 1 where a gate is on, and the
    layer's slope where it is off."""
    counts, slopes = gate_overlap(a, b), slopes_of(a, slope)
    if not any(slopes):
        return list(counts)
    left, right = ([mask.flatten(1).sum(1) for mask in unpack_gates(bits)] for bits in (a, a if b is None else b))
    sums = [on[:, None] + y_on for on, y_on in zip(left, right, strict=True)]
    return [weighted(*layer, dtype) for layer in zip(counts, sums, a.widths, slopes, strict=True)]


def weighted(both: Tensor, on: Tensor, width: int, slope: float, dtype: torch.dtype) -> Tensor:
    """Computes <gamma, gamma'> of pairs of rows from the counts of gates that are on in both, and in one plus in the
    other: dtype(both) + (a * dtype(differ) + a^2 * dtype(neither)).

    This is the order of arithmetic of docs/math.md, section 3, with each operation rounded. If the slope a is 0, the
    counts themselves are returned.
    """
    if slope == 0:
        return both
    differ = on - 2 * both
    neither = width - both - differ
    once, twice = (torch.tensor(factor, dtype=dtype) for factor in (slope, slope * slope))
    return both.to(dtype) + (once * differ.to(dtype) + twice * neither.to(dtype))


def scaled_product(counts: Sequence[Tensor] | Tensor, scales: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Turns counts (L, ...) into Lambda (...): p = dtype(c_1) * s_1, then p = p * (dtype(c_l) * s_l), s_l in dtype.

    This is the order of arithmetic of docs/math.md, section 3, with each operation rounded. Every backend gives the
    same bits.
    """
    factors = [count.to(dtype) * torch.tensor(s, dtype=dtype) for count, s in zip(counts, scales, strict=True)]
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product


def input_gram(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes Sigma = x y^T, (n, m), in dtype. For uint8 rows the products are exact integers, which float64 holds,
    and are rounded once to dtype."""
    if x.dtype == torch.uint8:
        return (x.double() @ y.double().T).to(dtype)
    return x.to(dtype) @ y.to(dtype).T


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
    """Computes K = Sigma * Lambda, (n, m) (docs/math.md, sections 2 and 3): Lambda alone if x is None, and x with
    itself if y is None."""
    if normalize:
        y = None if y_bits is None else unit_rows(y, y_bits, scale, dtype, slope)
        x = unit_rows(x, bits, scale, dtype, slope)
    gram = scaled_product(gate_products(bits, y_bits, slope, dtype), multipliers(bits, scale, dtype), dtype)
    if x is not None:
        gram = input_gram(x, x if y is None else y, dtype) * gram
    return gram if out is None else out.copy_(gram)


def unit_rows(
    x: Tensor | None,
    bits: GateBits,
    scale: str | Sequence[float],
    dtype: torch.dtype,
    slope: float | Sequence[float] = 0.0,
) -> Tensor:
    """Returns the rows x_i / sqrt(K_ii), or 0 if K_ii is 0. If x is None, a column of ones, (n, 1), takes its place."""
    diagonal = npk_diag(x, bits, scale=scale, slope=slope, dtype=dtype)
    rows = torch.ones_like(diagonal).unsqueeze(1) if x is None else x.to(dtype)
    # The inner where avoids 1/sqrt(0), whose derivative is NaN, in rows that are zero anyway.
    factor = torch.where(diagonal == 0, 0, 1 / torch.where(diagonal == 0, 1, diagonal).sqrt())
    return rows * factor.unsqueeze(1)


def npk_diag(
    x: Tensor | None,
    bits: GateBits,
    *,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes K_ii, (n,), in the arithmetic of `npk_gram`."""
    on = [mask.flatten(1).sum(1) for mask in unpack_gates(bits)]
    slopes = slopes_of(bits, slope)
    counts = [weighted(r, 2 * r, w, a, dtype) for r, w, a in zip(on, bits.widths, slopes, strict=True)]
    diagonal = scaled_product(counts, multipliers(bits, scale, dtype), dtype)
    if x is None:
        return diagonal
    if x.dtype == torch.uint8:
        return x.double().square().sum(1).to(dtype) * diagonal
    return x.to(dtype).square().sum(1) * diagonal


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
    """Computes K v with K of `npk_gram`: v (m, c) gives (n, c), and v (m,) gives (n,)."""
    return npk_gram(x, bits, y, y_bits, scale=scale, slope=slope, dtype=dtype) @ v.to(dtype)


def gate_agreement(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts how many gates of layer l are the same, on or off, in row i of a and row j of b, int32 (L, n, m)."""
    left = unpack_gates(a)
    right = left if b is None else unpack_gates(b)
    off = [(~p).flatten(1).double() @ (~q).flatten(1).double().T for p, q in zip(left, right, strict=True)]
    return gate_overlap(a, b) + torch.stack(off).to(torch.int32)


def gate_hamming(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts how many gates of layer l are on in row i of a and off in row j of b, or the other way round, int32
    (L, n, m)."""
    left = unpack_gates(a)
    right = left if b is None else unpack_gates(b)
    pairs = [(p.flatten(1).double(), q.flatten(1).double()) for p, q in zip(left, right, strict=True)]
    return torch.stack([p @ (1 - q).T + (1 - p) @ q.T for p, q in pairs]).to(torch.int32)


def gate_neighbors(
    bits: GateBits,
    k: int,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Returns the k largest Lambda of each row, (n, k), and their int64 indices, (n, k); equal ones in the order of
    their index. Without y_bits a row is not its own neighbour.
    """
    gram = npk_gram(None, bits, None, y_bits, scale=scale, slope=slope, dtype=dtype)
    index = torch.arange(gram.shape[1], device=gram.device).expand(gram.shape)
    if y_bits is None:
        others = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
        shape = (len(gram), max(len(gram) - 1, 0))
        gram, index = gram[others].reshape(shape), index[others].reshape(shape)
    values, order = gram.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index.gather(1, order[:, :k])


def soft_npk_gram(
    x: Tensor | None,
    gates: Sequence[Tensor],
    y: Tensor | None = None,
    y_gates: Sequence[Tensor] | None = None,
    *,
    scale: str | Sequence[float] = "width",
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes K = Sigma * prod_l s_l <g_l, g'_l> of real-valued gates, (n, m) (docs/math.md, section 5)."""
    left = [gate.flatten(1).to(dtype) for gate in gates]
    right = left if y_gates is None else [gate.flatten(1).to(dtype) for gate in y_gates]
    factors = [1.0 / gate.shape[1] if scale == "width" else 1.0 for gate in left]
    if not isinstance(scale, str):
        factors = [float(s) for s in scale]
    if x is not None:  # Sigma is one more factor.
        left, right = [*left, x.to(dtype)], [*right, (x if y is None else y).to(dtype)]
        factors = [*factors, 1.0]
    gram = torch.ones((), dtype=dtype, device=left[0].device)
    for p, q, s in zip(left, right, factors, strict=True):
        gram = gram * (p @ q.T * s)
    if not normalize:
        return gram
    return gram * soft_norms(left, factors).unsqueeze(1) * soft_norms(right, factors)


def soft_norms(rows: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Returns 1 / sqrt(K_ii), (n,), or 0 if K_ii is 0, for K_ii = prod_l s_l <r_l, r_l> of rows r_l (n, w_l)."""
    diagonal = torch.ones_like(rows[0][:, 0])
    for r, s in zip(rows, factors, strict=True):
        diagonal = diagonal * (r.square().sum(1) * s)
    return torch.where(diagonal == 0, 0, 1 / torch.where(diagonal == 0, 1, diagonal).sqrt())
