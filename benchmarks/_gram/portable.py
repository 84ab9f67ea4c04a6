"""Grams and counts by the portable ops, called directly: of a device with kernels of its own gatedops calls those."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common.timing import interleaved_medians
from torch import Tensor

from _gram.entry import require_right
from gatedops import GateBits
from gatedops.ops.gram_args import layout_of
from gatedops.portable import gram
from gatedops.portable.workspace import edge_of

PORTABLE = "portable"
PROBE = 1024  # points that tell what the pairs of a cell take


def portable_gram(x: Tensor | None, bits: GateBits, out: Tensor) -> Callable[[], Tensor]:
    """The Gram, into `out`."""
    first, y_first, count = layout_of(bits, None)
    factors = [1 / width for width in bits.widths]

    def call() -> Tensor:
        gram.npk_gram_out(x, bits.words, None, None, None, None, first, y_first, count, factors, out=out)
        return out

    return call


def portable_lambda(bits: GateBits, out: Tensor) -> Callable[[], Tensor]:
    """Lambda alone, right on a sample. What another kernel left in `out` does not pass for its result."""
    call = portable_gram(None, bits, out)
    out.fill_(torch.nan)
    require_right(call, bits, f"{PORTABLE}, n={bits.n}")
    return call


def portable_counts(x: GateBits, y: GateBits) -> Tensor:
    """Counts of two sets of rows, a new ``(L, n, m)``."""
    first, y_first, count = layout_of(x, y)
    return gram.gate_overlap(x.words, y.words, first, y_first, count, list(x.widths), "both")


def portable_seconds(bits: GateBits) -> float:
    """About what Lambda takes, from that of some of the points. Blocks off the diagonal are computed once for both."""
    some = bits[: min(bits.n, PROBE)]
    call = portable_gram(None, some, torch.empty(some.n, some.n))
    best = interleaved_medians({PORTABLE: call}, 3, label=PORTABLE)[PORTABLE].best
    return best * _pairs(bits) / _pairs(some)


def _pairs(bits: GateBits) -> float:
    """Pairs of rows in the tiles of a symmetric Gram, which are those on and above the diagonal."""
    return bits.n * (bits.n + min(bits.n, edge_of(bits.device))) / 2
