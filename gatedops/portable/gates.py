"""Computes pack_gates, pack_gates_out, unpack_gates and gate_counts by torch operations.

The arguments of the ops are those of their schemas.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gatedops.layout import layer_words, words_used
from gatedops.portable.bits import collect, spread
from gatedops.portable.checks import LAYER_DTYPES, require, require_one_device, require_words
from gatedops.portable.select import compare
from gatedops.portable.workspace import piece_of, pieces


def pack_gates(q: Tensor) -> Tensor:
    """Returns the words, ``(n, W)``, of gates ``(n, positions, channels)``."""
    _require_gates(q)
    return words_of(q)


def pack_gates_out(q: Tensor, *, out: Tensor) -> None:
    """Writes the words of gates ``(n, positions, channels)`` into `out`."""
    _require_gates(q)
    require_words(out, "out")
    require_one_device(q, out)
    needed = (q.shape[0], layer_words(*q.shape[1:]))
    require(tuple(out.shape) == needed, lambda: f"out: got shape {tuple(out.shape)}, needs {needed}")
    pack_into(out, q)


def unpack_gates(words: Tensor, positions: int, channels: int) -> Tensor:
    """Returns the gates, bool ``(n, positions, channels)``."""
    require_words(words, "words")
    require(positions >= 1 and channels >= 1, "positions, channels: need at least 1")
    used = words_used(positions, channels)
    require(used <= words.shape[1], lambda: f"words: got {words.shape[1]} words in a row, needs {used}")
    out = words.new_empty((words.shape[0], positions, channels), dtype=torch.bool)
    for rows, here, cut in gate_pieces(words.shape[0], positions, channels, words.device):
        out[rows, here, cut] = gates_at(words[rows], 0, positions, channels, here, cut)
    return out


def gate_counts(words: Tensor) -> Tensor:
    """Counts in how many rows each bit is set, int64 ``(32 W)``."""
    require_words(words, "words")
    counts = words.new_zeros(32 * words.shape[1], dtype=torch.int64)
    for columns in pieces(words.shape[1], 32 * 64):
        here = slice(32 * columns.start, 32 * columns.stop)
        for rows in pieces(words.shape[0], 32 * (columns.stop - columns.start)):
            counts[here] += spread(words[rows, columns]).sum(0)
    return counts


def words_of(q: Tensor) -> Tensor:
    """Returns the words, ``(n, W)``, of gates or pre-activations q ``(n, positions, channels)``."""
    words = layer_words(*q.shape[1:])
    if q.shape[0] * 32 * words <= piece_of(q.device):
        return collect(_padded(q, words))
    out = q.new_empty((q.shape[0], words), dtype=torch.int32)
    pack_into(out, q)
    return out


def pack_into(out: Tensor, q: Tensor) -> None:
    """Writes the words of gates or pre-activations q ``(n, positions, channels)`` into `out`, ``(n, W)``."""
    n, positions, channels = q.shape
    used = words_used(positions, channels)
    out[:, used:] = 0
    for rows, here, cut in gate_pieces(n, positions, channels, q.device):
        words = _words_at(positions, channels, here, cut)
        out[rows, words] = collect(_padded(q[rows, here, cut], words.stop - words.start))


def _padded(q: Tensor, words: int) -> Tensor:
    """Returns the gates of q, ``(n, positions, channels)``, at their places in rows of this many words, bool
    ``(n, 32 words)``."""
    n, positions, channels = q.shape
    each = 32 * words_used(positions, channels) // positions
    padded = q.new_empty((n, 32 * words), dtype=torch.bool)
    if positions == 1:
        inside = padded[:, None, :channels]
    else:
        whole = padded[:, : positions * each].view(n, positions, each)
        whole[..., channels:] = False
        inside = whole[..., :channels]
    behind = channels if positions == 1 else positions * each
    if behind < 32 * words:
        padded[:, behind:] = False
    compare(q, inside)
    return padded


def gates_at(words: Tensor, first: int, positions: int, channels: int, here: slice, cut: slice) -> Tensor:
    """Returns the gates at the positions `here` and channels `cut` of a layer that begins at word `first`, bool
    ``(n, len(here), len(cut))``. `cut` begins at a word; if there are several positions, it is all channels."""
    span = _words_at(positions, channels, here, cut)
    gates = spread(words[:, first + span.start : first + span.stop])
    return gates.unflatten(1, (here.stop - here.start, -1))[..., : cut.stop - cut.start]


def _words_at(positions: int, channels: int, here: slice, cut: slice) -> slice:
    """Returns the words of some positions and channels of a layer."""
    if positions == 1:
        return slice(cut.start // 32, -(-cut.stop // 32))
    each = words_used(positions, channels) // positions
    return slice(each * here.start, each * here.stop)


def gate_pieces(n: int, positions: int, channels: int, device: torch.device) -> Iterator[tuple[slice, slice, slice]]:
    """Yields slices of the rows, the positions and the channels that have as many gates as are handled at a time. If
    there are several positions, each slice has all channels."""
    padded, size = 32 * words_used(positions, channels) // positions, piece_of(device)
    for here in pieces(positions, padded, size=size):
        for cut in pieces(channels, 1, 32, size) if positions == 1 else (slice(0, channels),):
            gates = (here.stop - here.start) * (padded if positions > 1 else cut.stop - cut.start)
            for rows in pieces(n, gates, size=size):
                yield rows, here, cut


def _require_gates(q: Tensor) -> None:
    require(q.dim() == 3, lambda: f"q: got shape {tuple(q.shape)}, needs (n, positions, channels)")
    require(min(q.shape[1:]) >= 1, lambda: f"q: got shape {tuple(q.shape)}, needs at least one gate")
    known = q.dtype == torch.bool or q.dtype in LAYER_DTYPES
    require(known, lambda: f"q: got {q.dtype}, needs float32, float64, bfloat16, float16 or bool")
