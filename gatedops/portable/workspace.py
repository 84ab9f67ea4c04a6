"""How much memory a portable op takes beside its result: bounded, whatever the size of the problem."""

from __future__ import annotations

from collections.abc import Iterator

WORKSPACE = 256 << 20  # bytes
PIECE = 16 << 20  # bytes of the largest tensor of a step; a step has a dozen of them at most


def pieces(total: int, bytes_each: int, multiple: int = 1, size: int = PIECE) -> Iterator[slice]:
    """Slices of ``range(total)`` whose members, `bytes_each` bytes each, take at most `size` bytes; each slice but the
    last is a multiple of `multiple` long."""
    step = max(multiple, size // max(1, bytes_each) // multiple * multiple)
    return blocks(total, step)


def blocks(total: int, step: int) -> Iterator[slice]:
    """Slices of ``range(total)``, `step` long, the last one shorter."""
    for begin in range(0, total, step):
        yield slice(begin, min(begin + step, total))
