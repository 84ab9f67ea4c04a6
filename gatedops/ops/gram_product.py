"""The Gram of neural path features times vectors with sums in float64, for solvers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.gram_args import layout_of, with_widths


def kernel_product(
    x: Tensor | None,
    bits: GateBits,
    v: Tensor,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    factors: Sequence[float],
    slopes: Sequence[float] = (),
    dtype: torch.dtype = torch.float32,
    digits: bool = False,
) -> Tensor:
    """Returns ``K v`` in float64, for the K of :func:`gatedops.npk_gram` with entries in `dtype`; not differentiable.

    Args:
        x, bits, y, y_bits: as in npk_gram; checked by the caller.
        v: ``(m, c)`` float32 or float64. Both keep all their digits; float64 takes about 1.3 times as long.
        factors, slopes: of the layers, as gram_args makes them.
        digits: whether Sigma of float32 rows may be computed from three digits of 8 bits for each number, on units that
            multiply bytes. Its error is then relative to the largest number of each row.
    """
    first, y_first, count = layout_of(bits, y_bits)
    y_words = None if y_bits is None else y_bits.words
    layout = (first, y_first, count, list(factors), *with_widths(list(slopes), bits))
    parts = [v.to(dtype)]
    if v.dtype == torch.float64 and dtype == torch.float32:
        parts.append((v - parts[0]).to(dtype))
    products = [torch.ops.gatedops.npk_matvec(x, bits.words, y, y_words, part, *layout) for part in parts]
    return sum((product.to(torch.float64) for product in products[1:]), products[0].to(torch.float64))
