"""Makes what a program of the conv_gram family reads of each input: columns of real numbers and packed masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer, layer_words
from gatedops.ops.gates import pack_layer, unpack_layer
from gatedops.path_kernels.masks import FeatureStep, Mask
from gatedops.trace.pooling import Pair

# A Shape is (channels, height, width).
Shape = tuple[int, int, int]


class PerInput:
    """Gives each mask and each chain of features that a program uses its place, and later fills the places.

    Args:
        shape: the shape of an input as the program sees it.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._columns: dict[tuple[FeatureStep, ...], int] = {}
        self._words: dict[Mask, int] = {}
        self._column_count = 0
        self._word_count = 0

    def first_column(self, steps: tuple[FeatureStep, ...], shape: Shape) -> int:
        """The first column of the features that the steps make of the input."""
        if steps not in self._columns:
            self._columns[steps] = self._column_count
            self._column_count += math.prod(shape)
        return self._columns[steps]

    def first_word(self, mask: Mask, channels: int, size: Pair) -> int:
        """The first word of a mask; size is the (height, width) of its output pixels."""
        if mask not in self._words:
            self._words[mask] = self._word_count
            self._word_count += layer_words(mask.windows * math.prod(size), channels)
        return self._words[mask]

    def rows(self, x: Tensor, bits: GateBits | None, dtype: torch.dtype, batch_size: int) -> tuple[Tensor, Tensor]:
        """The columns ``(n, D)`` of dtype and the words ``(n, W)`` of inputs ``(n, ...)`` with their recorded gates."""
        columns = x.new_empty((len(x), self._column_count), dtype=dtype)
        words = x.new_empty((len(x), self._word_count), dtype=torch.int32)
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            recorded = _Recorded(None if bits is None else bits[batch])
            self._fill_columns(columns[batch], x[batch], recorded)
            self._fill_words(words[batch], recorded)
        return columns, words

    def _fill_columns(self, columns: Tensor, x: Tensor, recorded: _Recorded) -> None:
        for steps, first in self._columns.items():
            features = x.detach().to(columns.dtype).reshape(len(x), *self._shape)
            for step in steps:
                features = step.of(features, recorded)
            columns[:, first : first + features[0].numel()] = features.flatten(1)

    def _fill_words(self, words: Tensor, recorded: _Recorded) -> None:
        for mask, first in self._words.items():
            packed = recorded.packed(mask)
            words[:, first : first + packed.shape[1]] = packed


class _Recorded:
    """The recorded layers of some inputs, each unpacked once."""

    def __init__(self, bits: GateBits | None) -> None:
        self._bits = bits
        self._masks: dict[int, Tensor] = {}

    def __call__(self, index: int) -> Tensor:
        """The masks of a recorded layer: bool ``(n, C, H, W)``, or ``(n, K, C, H, W)`` for a max-pool."""
        if index not in self._masks:
            bits, layer = self._layer(index)
            masks = unpack_layer(bits.words, layer)
            self._masks[index] = masks[..., None, None] if masks.dim() == 2 else masks
        return self._masks[index]

    def packed(self, mask: Mask) -> Tensor:
        """The words of a mask. If it is a recorded layer, its words are taken as they are."""
        alone = mask.alone
        if alone is None:
            return pack_layer(mask.of(self))
        bits, layer = self._layer(alone)
        return bits.words[:, layer.first_word : layer.first_word + layer_words(layer.positions, layer.channels)]

    def _layer(self, index: int) -> tuple[GateBits, GateLayer]:
        if self._bits is None:
            raise RuntimeError("a program without gates asks for some")
        return self._bits, self._bits.layers[index]
