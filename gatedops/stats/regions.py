"""Counts the linear regions that inputs fall into: distinct activation patterns (docs/math.md, section 12)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatedops.gatebits import GateBits
from gatedops.stats.checks import require_gates
from gatedops.tables import ShownAsTable, Table, counted, whole

# This many words are hashed or compared at a time: 2 MiB as 64-bit integers.
_BLOCK_WORDS = 1 << 18
# The multipliers of the hash are drawn with this seed.
_SEED = 0

_Words = NDArray[np.int32]
_Hashes = NDArray[np.uint64]


@dataclass(frozen=True, repr=False)
class RegionCounts(ShownAsTable):
    """The numbers of distinct activation patterns among the inputs.

    Args:
        inputs: the number n of inputs; no count exceeds it.
        names: the names of the layers.
        layers: the number of distinct patterns of each layer by itself.
        net: the number of distinct patterns of all layers together.
    """

    inputs: int
    names: tuple[str, ...]
    layers: tuple[int, ...]
    net: int

    def table(self) -> Table:
        """The count of every layer and of the net."""
        counts = zip((*self.names, "net"), (*self.layers, self.net), strict=True)
        rows = tuple((name, whole(count)) for name, count in counts)
        return Table(f"RegionCounts of {counted(self.inputs, 'input')}", ("layer", "regions"), rows)


def count_regions(bits: GateBits, layers: Sequence[str | int] | None = None) -> RegionCounts:
    """Counts the linear regions that the inputs fall into: distinct activation patterns (docs/math.md, section 12).

    The counts are exact: inputs are sorted by a 64-bit hash of their words, and words with equal hashes are compared.
    The memory is that of a few 64-bit numbers for each input.

    Args:
        bits: gates of at least one input.
        layers: names or indices; default all. ``net`` counts the patterns of these layers together.

    Raises:
        TypeError, ValueError, IndexError: bits is not a GateBits or has no inputs; there is no such layer.
    """
    require_gates(bits)
    chosen = bits if layers is None else bits.select_layers(layers)
    words = chosen.words.cpu().numpy()
    multipliers = _odd_numbers(words.shape[1])
    spans = [slice(layer.first_word, layer.first_word + layer.words) for layer in chosen.layers]
    of_net = np.zeros(chosen.n, dtype=np.uint64)
    counts = []
    for span in spans:
        of_layer = _hashes(words[:, span], multipliers[span])
        of_net += of_layer
        counts.append(_distinct(words, [span], of_layer))
    net = counts[0] if len(spans) == 1 else _distinct(words, spans, of_net)
    return RegionCounts(chosen.n, tuple(layer.name for layer in chosen.layers), tuple(counts), net)


def _odd_numbers(count: int) -> _Hashes:
    numbers = np.random.default_rng(_SEED).integers(0, 2**64, count, dtype=np.uint64)
    return numbers | np.ones(count, dtype=np.uint64)


def _hashes(words: _Words, multipliers: _Hashes) -> _Hashes:
    """The sum, modulo 2^64, of the words of each row times odd numbers."""
    hashes = np.empty(len(words), dtype=np.uint64)
    for rows in _blocks(len(words), words.shape[1]):
        hashes[rows] = words[rows].view(np.uint32).astype(np.uint64) @ multipliers
    return hashes


def _distinct(words: _Words, spans: list[slice], hashes: _Hashes) -> int:
    """The number of different rows in these spans. Equal rows must have equal hashes."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    if len(starts) == len(order):
        return len(order)
    # For each row this holds one row with the same hash.
    representatives = np.empty_like(order)
    representatives[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    count = len(starts)
    # If words with equal hashes differ, we sort the patterns of that hash themselves.
    for collided in np.unique(hashes[_differ(words, spans, representatives)]):
        rows = np.flatnonzero(hashes == collided)
        patterns = np.concatenate([words[rows, span] for span in spans], axis=1)
        count += len(np.unique(patterns, axis=0)) - 1
    return count


def _differ(words: _Words, spans: list[slice], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether row i differs from row others[i]."""
    differ = np.zeros(len(words), dtype=np.bool_)
    for span in spans:
        used = words[:, span]
        for rows in _blocks(*used.shape):
            differ[rows] |= (used[rows] != used[others[rows]]).any(1)
    return differ


def _blocks(rows: int, row_words: int) -> Iterator[slice]:
    step = max(1, _BLOCK_WORDS // row_words)
    return (slice(start, start + step) for start in range(0, rows, step))
