"""Packs, unpacks and counts gates in plain torch (docs/math.md, sections 6 and 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.gatebits import GateBits
from gatedops.layout import LAYER_WORDS, GateLayer

# A position starts on a boundary of this many bits.
POSITION_GATES = 64


def gates_on(q: Tensor) -> Tensor:
    """Returns the bool gates of pre-activations q: on means q > 0; 0, -0.0 and NaN are off. A bool q is unchanged."""
    return q if q.dtype == torch.bool else q > 0


def by_position(masks: Tensor, kind: str = "gate") -> Tensor:
    """Turns (n, *shape) into (n, P, C): the C gates of a position lie side by side, positions in row-major order.

    The shape (w,) is one position, (T, C) has T, (C, H, W) has H*W, and (C, D, H, W) has D*H*W. The kind "select", of
    shape (K, C, H, W), has H*W*K: the K masks of one output position follow each other.
    """
    if kind == "select":
        n, k, c, h, w = masks.shape
        return masks.permute(0, 3, 4, 1, 2).reshape(n, h * w * k, c)
    if masks.dim() == 4:
        n, c, h, w = masks.shape
        return masks.permute(0, 2, 3, 1).reshape(n, h * w, c)
    if masks.dim() == 5:
        n, c, d, h, w = masks.shape
        return masks.permute(0, 2, 3, 4, 1).reshape(n, d * h * w, c)
    return masks if masks.dim() == 3 else masks.unsqueeze(1)


def from_positions(masks: Tensor, shape: Sequence[int], kind: str = "gate") -> Tensor:
    """Turns (n, P, C) back into (n, *shape); the inverse of `by_position`."""
    n = masks.shape[0]
    if kind == "select":
        k, c, h, w = shape
        return masks.reshape(n, h, w, k, c).permute(0, 3, 4, 1, 2)
    if len(shape) == 3:
        c, h, w = shape
        return masks.reshape(n, h, w, c).permute(0, 3, 1, 2)
    if len(shape) == 4:
        c, d, h, w = shape
        return masks.reshape(n, d, h, w, c).permute(0, 4, 1, 2, 3)
    return masks.reshape(n, *shape)


def words_of_layer(masks: Tensor) -> Tensor:
    """Turns bool (n, P, C) into int32 (n, words), where words is a multiple of 8. Gate j of a position is bit j % 32 of
    its word j // 32."""
    n, positions, channels = masks.shape
    unit = 32 if positions == 1 else POSITION_GATES
    masks = pad(masks, (0, -channels % unit)).reshape(n, positions * math.ceil(channels / unit) * unit)
    masks = pad(masks, (0, -masks.shape[1] % (32 * LAYER_WORDS)))
    bits = masks.reshape(n, masks.shape[1] // 32, 32).to(torch.int64)
    value = (bits << torch.arange(32, device=masks.device)).sum(-1)
    return torch.where(value < 2**31, value, value - 2**32).to(torch.int32)


def gates_of_layer(words: Tensor, positions: int, channels: int) -> Tensor:
    """Turns int32 (n, words) into bool (n, P, C) without the padding; the inverse of `words_of_layer`."""
    unit = 32 if positions == 1 else POSITION_GATES
    stride = math.ceil(channels / unit) * unit
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    bits = bits.reshape(words.shape[0], words.shape[1] * 32)[:, : positions * stride]
    return bits.reshape(words.shape[0], positions, stride)[:, :, :channels].bool()


def words_from_bool(
    masks: Sequence[Tensor], kinds: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[GateLayer, ...]]:
    """Turns bool tensors (n, *shape), one per layer, into the int32 words (n, W) and the layer records of GateBits."""
    kinds = kinds or ["select" if mask.dim() == 5 else "gate" for mask in masks]
    names = names or [str(index) for index in range(len(masks))]
    words: list[Tensor] = []
    layers: list[GateLayer] = []
    first = 0
    for mask, kind, name in zip(masks, kinds, names, strict=True):
        words.append(words_of_layer(by_position(mask, kind)))
        layers.append(GateLayer(name, tuple(mask.shape[1:]), kind, first))
        first += words[-1].shape[1]
    return torch.cat(words, 1), tuple(layers)


def pack_gates(q: Tensor) -> GateBits:
    """Turns pre-activations or bool gates (n, *shape) into GateBits of one layer."""
    return GateBits(*words_from_bool([gates_on(q)]))


def unpack_gates(bits: GateBits) -> list[Tensor]:
    """Turns GateBits into one bool tensor (n, *shape) per layer."""
    masks = []
    for layer in bits.layers:
        _, positions, channels = by_position(torch.empty(1, *layer.shape, device="meta"), layer.kind).shape
        unit = 32 if positions == 1 else POSITION_GATES
        last = layer.first_word + positions * math.ceil(channels / unit) * unit // 32
        gates = gates_of_layer(bits.words[:, layer.first_word : last], positions, channels)
        masks.append(from_positions(gates, layer.shape, layer.kind))
    return masks


def gate_counts(bits: GateBits) -> list[Tensor]:
    """Counts for how many inputs each gate is on: int64 (*shape), one tensor per layer."""
    return [gates.sum(0) for gates in unpack_gates(bits)]
