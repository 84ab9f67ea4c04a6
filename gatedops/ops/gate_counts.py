"""Counts how often gates are on: for every gate over the inputs, and for every input, or pair of inputs, over the
gates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.gates import from_positions
from gatedops.ops.gram_args import layout_of

# This many words hold 2^23 gates, which float32 counts exactly.
_WORDS = 1 << 18


def gate_counts(bits: GateBits) -> list[Tensor]:
    """Counts for how many inputs each gate is on (docs/math.md, section 12), in one pass over the words.

    Returns:
        int64 ``(*shape)``, one tensor per layer, exact.

    Raises:
        TypeError, ValueError: bits is not a GateBits.
    """
    first, _, count = layout_of(bits, None, "bits")
    begin = min(first)
    end = max(start + words for start, words in zip(first, count, strict=True))
    counts = torch.ops.gatedops.gate_counts(bits.words[:, begin:end])
    return [_of_layer(counts, layer, begin) for layer in bits.layers]


def on_per_input(bits: GateBits) -> Tensor:
    """Counts the gates of each layer that are on for each input: int32 ``(L, n)``, exact. Errors are those of
    :func:`gate_counts`."""
    first, _, count = layout_of(bits, None, "bits")
    counts = bits.words.new_zeros((len(bits.layers), bits.n))
    for row, begin, size in zip(counts, first, count, strict=True):
        for start in range(begin, begin + size, _WORDS):
            # The kernel of a row with itself is the number of its gates that are on.
            words = min(_WORDS, begin + size - start)
            row += torch.ops.gatedops.npk_diag(bits.words, [start], [words], [1.0], torch.float32).to(torch.int32)
    return counts


def on_in_both(a: GateBits, b: GateBits) -> Tensor:
    """Counts for each i the gates of each layer that are on both in row i of a and in row i of b: int32 ``(L, n)``,
    exact.

    Raises:
        TypeError, ValueError: a or b is not a GateBits, or their layers, devices or numbers of rows differ.
    """
    layout_of(a, b, "a", "b")
    if a.n != b.n:
        raise ValueError(f"b: has {b.n} rows, a has {a.n}; needs one for each row of a")
    # Both then have the same layout.
    a, b = a.compact(), b.compact()
    return on_per_input(replace(a, words=a.words & b.words))


def _of_layer(counts: Tensor, layer: GateLayer, begin: int) -> Tensor:
    """Returns the counts of a layer's gates, without those of the padding bits."""
    start = 32 * (layer.first_word - begin)
    by_position = counts[start : start + 32 * layer.words].view(1, layer.positions, -1)
    return from_positions(by_position[..., : layer.channels], layer).squeeze(0).contiguous()


@torch.library.register_fake("gatedops::gate_counts")
def _(words: Tensor) -> Tensor:
    return words.new_empty((32 * words.shape[1],), dtype=torch.int64)
