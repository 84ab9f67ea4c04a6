"""Packs gates into words: wrappers and fake kernels of pack_gates and unpack_gates."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.layout import GateLayer, layer_words

SOURCES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool)


def pack_layer(q: Tensor, kind: str | None = None) -> Tensor:
    """Returns the words ``(n, W)`` of one layer, given as ``(n, *shape)``; if kind is None, five dimensions mean
    "select"."""
    return torch.ops.gatedops.pack_gates(by_position(q.detach(), kind))


def by_position(q: Tensor, kind: str | None = None) -> Tensor:
    """Returns ``(n, *shape)`` as ``(n, positions, channels)``, a view if the strides allow one."""
    if q.dim() == 5 and kind == "gate":
        return q.permute(0, 2, 3, 4, 1).flatten(1, 3)
    if q.dim() == 2:
        return q.unsqueeze(1)
    if q.dim() == 4:
        return q.permute(0, 2, 3, 1).flatten(1, 2)
    return q.permute(0, 3, 4, 1, 2).flatten(1, 3) if q.dim() == 5 else q


def unpack_layer(words: Tensor, layer: GateLayer) -> Tensor:
    """Returns the gates of one layer of packed rows, bool ``(n, *shape)``."""
    span = words[:, layer.first_word : layer.first_word + layer.words]
    gates = torch.ops.gatedops.unpack_gates(span, layer.positions, layer.channels)
    return from_positions(gates, layer)


def from_positions(values: Tensor, layer: GateLayer) -> Tensor:
    """Returns values, ``(n, positions, channels)``, as ``(n, *shape)``; the inverse of :func:`by_position`."""
    if len(layer.shape) == 1:
        return values.squeeze(1)
    if len(layer.shape) == 2:
        return values
    if len(layer.shape) == 3:
        return values.unflatten(1, layer.shape[1:]).permute(0, 3, 1, 2)
    if layer.kind == "gate":
        return values.unflatten(1, layer.shape[1:]).permute(0, 4, 1, 2, 3)
    masks, _, height, width = layer.shape
    return values.unflatten(1, (height, width, masks)).permute(0, 3, 4, 1, 2)


@torch.library.register_fake("gatedops::pack_gates")
def _(q: Tensor) -> Tensor:
    return q.new_empty((q.shape[0], layer_words(q.shape[1], q.shape[2])), dtype=torch.int32)


@torch.library.register_fake("gatedops::pack_gates_out")
def _(q: Tensor, *, out: Tensor) -> None:
    return None


@torch.library.register_fake("gatedops::unpack_gates")
def _(words: Tensor, positions: int, channels: int) -> Tensor:
    return words.new_empty((words.shape[0], positions, channels), dtype=torch.bool)
