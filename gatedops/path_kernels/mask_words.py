"""Packs masks of some channels by operations on words, where these channels are whole words of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.layout import GateLayer, layer_words, words_used
from gatedops.path_kernels.masks import Indices


def are_whole_words(channels: Indices) -> bool:
    """Whether channels follow each other and begin with the first bit of a word."""
    return channels[0] % 32 == 0 and channels == tuple(range(channels[0], channels[0] + len(channels)))


def packed_words(words: Tensor, layers: Sequence[tuple[GateLayer, Indices]]) -> Tensor:
    """The AND of the gates of some channels of layers, packed as a layer of its own, ``(n, W)``.

    Args:
        words: ``(n, words)`` of all layers.
        layers: of one number of positions each, with channels that :func:`are_whole_words`, as many in each.
    """
    units, positions = len(layers[0][1]), layers[0][0].positions
    count = -(-units // 32)
    parts = []
    for layer, channels in layers:
        pitch, first = words_used(positions, layer.channels) // positions, channels[0] // 32
        rows = words[:, layer.first_word : layer.first_word + positions * pitch].unflatten(1, (positions, pitch))
        parts.append(rows[..., first : first + count])
    both = reduce(torch.bitwise_and, parts)
    if units % 32 and any(channels[-1] + 1 < layer.channels for layer, channels in layers):
        both = both.clone() if len(parts) == 1 else both
        both[..., -1] &= (1 << units % 32) - 1
    pitch = words_used(positions, units) // positions
    flat = pad(both, (0, pitch - count)).flatten(1)
    return pad(flat, (0, layer_words(positions, units) - flat.shape[1]))
