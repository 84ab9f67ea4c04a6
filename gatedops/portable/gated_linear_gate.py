"""Computes gate_relu and gate_select by torch operations. The arguments are those of the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.layout import words_used
from gatedops.ops.gated_linear_gate import empty_activations
from gatedops.portable.checks import LAYER_DTYPES, require, require_one_device, require_words
from gatedops.portable.gates import gate_pieces, gates_at, words_of
from gatedops.portable.select import select


def gate_relu(q: Tensor) -> tuple[Tensor, Tensor]:
    """Computes relu(q) and the words of its gates."""
    _require_activations(q)
    z = empty_activations(q)
    # This is relu. torch's own form of relu with `out` makes a copy first.
    torch.clamp(q, min=0, out=z)
    return z, words_of(q)


def gate_select(q: Tensor, words: Tensor, first: int) -> Tensor:
    """Returns q where the gates are on, else 0."""
    _require_activations(q)
    n, positions, channels = q.shape
    require_row_gates(words, first, n, words_used(positions, channels))
    require_one_device(q, words)
    z = empty_activations(q)
    for rows, here, cut in gate_pieces(n, positions, channels, q.device):
        on = gates_at(words[rows], first, positions, channels, here, cut)
        select(q[rows, here, cut], on, out=z[rows, here, cut])
    return z


def require_row_gates(words: Tensor, first: int, rows: int, used: int) -> None:
    """Raises ValueError unless the words hold a layer of `used` words from word `first` on in each of the rows."""
    require_words(words, "words")
    fits = words.shape[0] == rows and first >= 0 and first + used <= words.shape[1]
    require(
        fits,
        lambda: f"words: got shape {tuple(words.shape)}, needs {rows} rows that hold {used} words from word {first} on",
    )


def _require_activations(q: Tensor) -> None:
    require(q.dtype in LAYER_DTYPES, lambda: f"q: got {q.dtype}, needs float32, float64, bfloat16 or float16")
    require(q.dim() == 3, lambda: f"q: got shape {tuple(q.shape)}, needs (n, positions, channels)")
    require(min(q.shape[1:]) >= 1, lambda: f"q: got shape {tuple(q.shape)}, needs at least one gate")
