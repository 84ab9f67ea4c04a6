"""The Gram of neural path features times vectors with sums in float64, for solvers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.devices import most_precise
from gatedops.gatebits import GateBits
from gatedops.ops.gram_args import layout_of, with_widths

# torch.ldexp multiplies by a power of two, which must be in the range of float64.
_RANGE = 1000


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
        v: ``(m, c)`` float32 or float64. Both keep all their digits. Sums are in float64; if v is float32 and has more
            than 24 columns, those over a tile of 256 columns of K are in float32. With float64 v, 10 columns take about
            1.4 times as long, and 96 columns four times.
        factors, slopes: of the layers, as gram_args makes them.
        digits: whether Sigma of float32 rows may be computed from three digits of 8 bits for each number, on units that
            multiply bytes. Its error is then relative to the largest number of each row (docs/math.md, section 15).
    """
    first, y_first, count = layout_of(bits, y_bits)
    y_words = None if y_bits is None else y_bits.words
    layout = (first, y_first, count, list(factors))
    sloped = with_widths(list(slopes), bits)
    with torch.no_grad():
        if dtype == torch.float32:
            v, exponents = _in_range(v)
            product = torch.ops.gatedops.npk_product(x, bits.words, y, y_words, v, *layout, digits, *sloped)
            return product if exponents is None else torch.ldexp(product, exponents)
        return torch.ops.gatedops.npk_matvec(x, bits.words, y, y_words, v.to(dtype), *layout, *sloped)


def _in_range(v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns v with each column divided by a power of two, and the exponents. The op writes a float64 number as the
    sum of two float32 numbers, which have a smaller range."""
    if v.dtype != torch.float64 or not len(v):
        return v, None
    largest = v.abs().amax(0)
    exponents = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent.clamp(-_RANGE, _RANGE)
    return torch.ldexp(v, -exponents), exponents


@torch.library.register_fake("gatedops::npk_product")
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
    digits: bool,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> Tensor:
    return v.new_empty((words.shape[0], v.shape[1]), dtype=most_precise(v.device))
