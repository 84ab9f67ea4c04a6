"""Bounds the memory that a portable op takes beside its result, whatever the size of the problem."""

from __future__ import annotations

from collections.abc import Iterator

import torch

# An op takes at most this many bytes.
WORKSPACE = 256 << 20
# A step takes this many gates, or bytes, at a time.
PIECE = 16 << 20
# A tile of a Gram has this many rows and columns; in float32 it takes 16 MiB.
EDGE = 2048
# On a CPU both are smaller, because large tensors do not fit its caches.
_CPU_PIECE, _CPU_EDGE = 4 << 20, 512


def piece_of(device: torch.device) -> int:
    """Returns how many gates a step of a layer takes at a time."""
    return _CPU_PIECE if device.type == "cpu" else PIECE


def edge_of(device: torch.device) -> int:
    """Returns how many rows and columns a tile of a Gram has."""
    return _CPU_EDGE if device.type == "cpu" else EDGE


def pieces(total: int, each: int, multiple: int = 1, size: int = PIECE) -> Iterator[slice]:
    """Yields slices of ``range(total)`` whose members, of size `each`, have at most `size` together. The length of each
    slice but the last is a multiple of `multiple`."""
    step = max(multiple, size // max(1, each) // multiple * multiple)
    return blocks(total, step)


def blocks(total: int, step: int) -> Iterator[slice]:
    """Yields slices of ``range(total)`` of length `step`; the last one may be shorter."""
    for begin in range(0, total, step):
        yield slice(begin, min(begin + step, total))
