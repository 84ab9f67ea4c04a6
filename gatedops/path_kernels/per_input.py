"""Makes what a program of the conv_gram family reads of each input: columns of real numbers and packed masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer, layer_words
from gatedops.ops.gates import pack_layer, unpack_layer
from gatedops.path_kernels.canonical import Layout, Network
from gatedops.path_kernels.features import FeatureStep
from gatedops.path_kernels.mask_words import are_whole_words, packed_words
from gatedops.path_kernels.masks import Indices, Mask
from gatedops.path_kernels.network import recorded_of
from gatedops.trace.pooling import Pair

# At most this many gates of a mask are unpacked at a time.
_UNPACKED = 1 << 28

# A Shape is (channels, height, width).
Shape = tuple[int, int, int]


class PerInput:
    """Gives each mask and each chain of features that a program uses its place, and later fills the places.

    Args:
        network: the network, whose input and recorded layers it turns into images.
    """

    def __init__(self, network: Network) -> None:
        self._input = network.layouts[0]
        self._layouts = [layout for _, layout in recorded_of(network)]
        self._columns: dict[tuple[FeatureStep, ...], int] = {}
        self._words: dict[tuple[tuple[Mask, ...], int, Pair], int] = {}
        self._column_count = 0
        self._word_count = 0

    def first_column(self, steps: tuple[FeatureStep, ...], shape: Shape) -> int:
        """The first column of the features that the steps make of the input."""
        if steps not in self._columns:
            self._columns[steps] = self._column_count
            self._column_count += math.prod(shape)
        return self._columns[steps]

    def first_word(self, masks: tuple[Mask, ...], units: int, size: Pair) -> int:
        """The first word of some masks side by side, as one mask of all their units.

        Args:
            units: how many each mask has.
            size: the (height, width) of their output pixels.
        """
        key = (masks, units, size)
        if key not in self._words:
            self._words[key] = self._word_count
            self._word_count += layer_words(masks[0].places * math.prod(size), len(masks) * units)
        return self._words[key]

    def rows(self, x: Tensor, bits: GateBits | None, dtype: torch.dtype, batch_size: int) -> tuple[Tensor, Tensor]:
        """The columns ``(n, D)`` of dtype and the words ``(n, W)`` of inputs ``(n, ...)`` with their recorded gates."""
        columns = x.new_empty((len(x), self._column_count), dtype=dtype)
        words = x.new_empty((len(x), self._word_count), dtype=torch.int32)
        batch_size = max(1, min(batch_size, _UNPACKED // self._most_unpacked()))
        for start in range(0, len(x), batch_size):
            batch = slice(start, start + batch_size)
            recorded = _Recorded(x[batch], None if bits is None else bits[batch], self._layouts)
            self._fill_columns(columns[batch], x[batch], recorded)
            self._fill_words(words[batch], recorded)
        return columns, words

    def _most_unpacked(self) -> int:
        """The most gates that one mask of one input has while it is made."""
        sizes = (mask.unpacked * units * math.prod(size) for masks, units, size in self._words for mask in masks)
        return max(sizes, default=1)

    def _fill_columns(self, columns: Tensor, x: Tensor, recorded: _Recorded) -> None:
        for steps, first in self._columns.items():
            features = self._input.to_images(x.detach().to(columns.dtype))
            for step in steps:
                features = step.of(features, recorded)
            columns[:, first : first + features[0].numel()] = features.flatten(1)

    def _fill_words(self, words: Tensor, recorded: _Recorded) -> None:
        for (masks, units, size), first in self._words.items():
            packed = recorded.packed(masks, units, size)
            words[:, first : first + packed.shape[1]] = packed


class _Recorded:
    """The recorded layers of some inputs, each unpacked once."""

    def __init__(self, x: Tensor, bits: GateBits | None, layouts: list[Layout]) -> None:
        self._x, self._bits, self._layouts = x, bits, layouts
        self._masks: dict[int, Tensor] = {}

    def __call__(self, layer: int) -> Tensor:
        """The masks of a recorded layer: bool ``(n, C, H, W)``, or ``(n, K, C, H, W)`` for a max-pool."""
        if layer not in self._masks:
            bits, place = self._layer(layer)
            masks = unpack_layer(bits.words, place)
            self._masks[layer] = masks if place.kind == "select" else self._layouts[layer].to_images(masks)
        return self._masks[layer]

    def ones(self, units: int, size: Pair) -> Tensor:
        return self._x.new_ones((1, 1, 1, 1), dtype=torch.bool).expand(len(self._x), units, *size)

    def packed(self, masks: tuple[Mask, ...], units: int, size: Pair) -> Tensor:
        """The words of masks side by side. Gates of whole words are taken as they are."""
        leaves = masks[0].bare if len(masks) == 1 else None
        if self._bits is not None and leaves and all(map(self._is_by_word, leaves)):
            return packed_words(self._bits.words, [(self._bits.layers[layer], units) for layer, units in leaves])
        return pack_layer(torch.cat([mask.of(self, units, size) for mask in masks], -3))

    def _is_by_word(self, leaf: tuple[int, Indices]) -> bool:
        """Whether these channels are whole words at each pixel of their recorded layer."""
        index, channels = leaf
        _, layer = self._layer(index)
        layout = self._layouts[index]
        # Rows of gates (C, T) or (H, W, C) hold other gates side by side.
        by_pixel = layer.kind == "select" or layout.axis == {1: 0, 2: 1, 3: 0, 4: 0}[len(layout.shape)]
        return by_pixel and are_whole_words(channels)

    def _layer(self, index: int) -> tuple[GateBits, GateLayer]:
        if self._bits is None:
            raise RuntimeError("a program without gates asks for some")
        return self._bits, self._bits.layers[index]
