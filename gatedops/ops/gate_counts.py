"""How often gates are on: counts over inputs for every gate, and over gates for every input."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.gates import from_positions
from gatedops.ops.gram import npk_diag
from gatedops.ops.gram_args import layout_of


def gate_counts(bits: GateBits) -> list[Tensor]:
    """For how many inputs each gate is on (docs/math.md, section 12), in one pass over the words.

    Returns:
        int64 ``(*shape)``, one tensor per layer, exact.

    Raises:
        TypeError, ValueError: bits is no GateBits, or on a device without a kernel.
    """
    first, _, count = layout_of("gate_counts", bits, None, "bits")
    begin = min(first)
    end = max(start + words for start, words in zip(first, count, strict=True))
    counts = torch.ops.gatedops.gate_counts(bits.words[:, begin:end])
    return [_of_layer(counts, layer, begin) for layer in bits.layers]


def on_per_input(bits: GateBits) -> Tensor:
    """How many gates of each layer are on for each input: int32 ``(L, n)``, exact; errors as :func:`gate_counts`."""
    layout_of("on_per_input", bits, None, "bits")
    counts = bits.words.new_empty((len(bits.layers), bits.n))
    for index, row in enumerate(counts):
        # The kernel of one layer with itself is the number of its gates, which float64 holds exactly.
        row.copy_(npk_diag(None, bits.layers_of([index]), scale="none", dtype=torch.float64))
    return counts


def _of_layer(counts: Tensor, layer: GateLayer, begin: int) -> Tensor:
    """The counts of a layer's gates, without those of the padding bits."""
    start = 32 * (layer.first_word - begin)
    by_position = counts[start : start + 32 * layer.words].view(1, layer.positions, -1)
    return from_positions(by_position[..., : layer.channels], layer).squeeze(0).contiguous()


@torch.library.register_fake("gatedops::gate_counts")
def _(words: Tensor) -> Tensor:
    return words.new_empty((32 * words.shape[1],), dtype=torch.int64)
