"""How much memory a portable op takes beside its result: bounded, whatever the size of the problem."""

from __future__ import annotations

from collections.abc import Iterator

import torch

WORKSPACE = 256 << 20  # bytes
PIECE = 16 << 20  # gates, or bytes, of a step at a time
EDGE = 2048  # rows and columns of a tile of a Gram, which takes 16 MiB in float32
# On a CPU, where large tensors leave the caches.
_CPU_PIECE, _CPU_EDGE = 4 << 20, 512


def piece_of(device: torch.device) -> int:
    """Gates that a step of a layer takes at a time."""
    return _CPU_PIECE if device.type == "cpu" else PIECE


def edge_of(device: torch.device) -> int:
    """Rows and columns of a tile of a Gram."""
    return _CPU_EDGE if device.type == "cpu" else EDGE


def pieces(total: int, each: int, multiple: int = 1, size: int = PIECE) -> Iterator[slice]:
    """Slices of ``range(total)`` whose members, of size `each`, together have at most `size`; each slice but the last
    is a multiple of `multiple` long."""
    step = max(multiple, size // max(1, each) // multiple * multiple)
    return blocks(total, step)


def blocks(total: int, step: int) -> Iterator[slice]:
    """Slices of ``range(total)``, `step` long, the last one shorter."""
    for begin in range(0, total, step):
        yield slice(begin, min(begin + step, total))
