"""Counts gates in common, and finds neighbours by them: wrappers of gate_overlap and gate_neighbors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option
from gatedops.ops.gram_args import factors_of, layout_of, require_result_dtype, slopes_of, with_widths
from gatedops.ops.gram_range import check_range
from gatedops.scalars import whole_number


def gate_overlap(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts, layer by layer, the gates that are on for both inputs of every pair (docs/math.md, section 2).

    Args:
        a: gates of n inputs. b: gates of m inputs, same layers; by default a, and then each unordered pair is counted
            once.

    Returns:
        int32 ``(L, n, m)``, exact.

    Raises:
        TypeError, ValueError: a or b is not a GateBits, or their layers or devices differ.
    """
    return _count(a, b, "both")


def gate_agreement(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts, layer by layer, the gates that are the same for both inputs of every pair, on or off.

    Arguments, result and errors are those of :func:`gate_overlap`. Summed over layers this is the kernel of Mellor et
    al., "Neural architecture search without training" (ICML 2021).
    """
    return _count(a, b, "agree")


def gate_hamming(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Counts, layer by layer, the gates that differ between the inputs of every pair, on for one and off for the other.

    Arguments, result and errors are those of :func:`gate_overlap`. Summed over layers this is the Hamming distance of
    two activation patterns: 0 if both inputs lie in the same linear region.
    """
    return _count(a, b, "differ")


def gate_neighbors(
    bits: GateBits,
    k: int,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Finds for each input the k inputs with the largest ``Lambda``, without storing the Gram.

    Args:
        bits: gates of n inputs.
        k: number of neighbours, at least 1.
        y_bits: gates of the m candidates, same layers; by default bits, and then an input is not its own neighbour.
        scale, slope, dtype: as in :func:`gatedops.npk_gram`. Without a slope, gates that are on in both inputs make
            them near. With slope -1 and one layer, Lambda is the agreement less the Hamming distance, so the order is
            that of the Hamming distance.

    Returns:
        ``(Lambda (n, k) of dtype, indices (n, k) int64)``, the largest first, equal ones in the order of their index.

    Raises:
        TypeError, ValueError: as in :func:`gatedops.npk_gram`; also if k is below 1 or above the number of candidates.
    """
    first, y_first, count = layout_of(bits, y_bits)
    require_result_dtype(dtype, bits)
    slopes = slopes_of(slope, bits, dtype)
    factors = factors_of(scale, bits, dtype, slopes)
    check_range([bits, y_bits], [None, None], factors, dtype, slopes=slopes, refuse=False)
    candidates = bits.n - 1 if y_bits is None else y_bits.n
    wanted = whole_number(k)
    if wanted is None:
        raise TypeError(f"k: got {type(k).__name__}, needs an int")
    if wanted < 1 or (wanted > candidates and bits.n > 0):
        raise ValueError(f"k: got {k}, needs 1 to {candidates}")
    y_words = None if y_bits is None else y_bits.words
    layout = (first, y_first, count, factors)
    return torch.ops.gatedops.gate_neighbors(bits.words, y_words, *layout, wanted, dtype, *with_widths(slopes, bits))


def _count(a: GateBits, b: GateBits | None, measure: str) -> Tensor:
    first, y_first, count = layout_of(a, b, "a", "b")
    y_words = None if b is None else b.words
    return torch.ops.gatedops.gate_overlap(a.words, y_words, first, y_first, count, list(a.widths), measure)


@torch.library.register_fake("gatedops::gate_overlap")
def _(
    words: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    widths: list[int],
    measure: str,
) -> Tensor:
    require_option("measure", measure, ("both", "agree", "differ"))
    m = words.shape[0] if y_words is None else y_words.shape[0]
    return words.new_empty((len(count), words.shape[0], m), dtype=torch.int32)


@torch.library.register_fake("gatedops::gate_neighbors")
def _(
    words: Tensor,
    y_words: Tensor | None,
    first: list[int],
    y_first: list[int],
    count: list[int],
    scale: list[float],
    k: int,
    dtype: torch.dtype,
    slope: Sequence[float] = (),
    widths: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    shape = (words.shape[0], k)
    return words.new_empty(shape, dtype=dtype), words.new_empty(shape, dtype=torch.int64)
