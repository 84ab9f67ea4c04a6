"""Counts the gates that change between two checkpoints of a net (docs/math.md, section 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.gate_counts import gate_counts
from gatedops.stats.checks import require_gates, require_same_inputs
from gatedops.tables import ShownAsTable, Table, counted, percent, whole

# This many bytes of words are compared at a time.
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False, repr=False)
class LayerChange(ShownAsTable):
    """The gates of one layer, or of the whole net, that differ between two checkpoints.

    Args:
        name: the name of the layer; "net" for all gates together.
        inputs: the number n of inputs.
        changed_per_gate: for how many inputs each gate differs, int64 ``(*shape)``; for the net ``(w,)``, layer after
            layer.
    """

    name: str
    inputs: int
    changed_per_gate: Tensor

    @property
    def distance(self) -> int:
        """The Hamming distance: the number of gates that differ, summed over the inputs."""
        return int(self.changed_per_gate.sum())

    @property
    def share(self) -> float:
        """The share of all gates, over all inputs, that differ."""
        return self.distance / (self.inputs * self.changed_per_gate.numel())

    def table(self) -> Table:
        """The numbers in a row."""
        return _table(f"LayerChange of {counted(self.inputs, 'input')}", [self])


@dataclass(frozen=True, eq=False, repr=False)
class GateChange(ShownAsTable):
    """The gates that differ between two checkpoints: in each layer, and in the whole net."""

    layers: tuple[LayerChange, ...]
    net: LayerChange

    def table(self) -> Table:
        """A row of numbers for every layer and for the net."""
        return _table(f"GateChange of {counted(self.net.inputs, 'input')}", [*self.layers, self.net])


def _table(title: str, parts: Sequence[LayerChange]) -> Table:
    rows = tuple(
        (part.name, whole(part.changed_per_gate.numel()), percent(part.share), whole(part.distance)) for part in parts
    )
    return Table(title, ("layer", "gates", "changed %", "distance"), rows)


def gate_change(a: GateBits, b: GateBits) -> GateChange:
    """Computes the Hamming distance between two checkpoints' gates of the same inputs, row i of a and row i of b.

    Counts are exact. A few megabytes of words are compared at a time, and no gate is unpacked.

    Args:
        a, b: gates of the same inputs, in the same order, with the same layers (names may differ).

    Raises:
        TypeError, ValueError: a or b is not a GateBits, has no inputs, or has other inputs or layers than the other.
    """
    require_gates(a, "a")
    require_gates(b, "b")
    require_same_inputs(b, a, "b", "a")
    rows = max(1, _BLOCK_BYTES // (4 * a.words.shape[1]))
    changed = [torch.zeros(layer.shape, dtype=torch.int64, device=a.device) for layer in a.layers]
    for start in range(0, a.n, rows):
        here, there = (bits[start : start + rows].compact() for bits in (a, b))
        differ = GateBits(here.words ^ there.words, here.layers)
        for total, counts in zip(changed, gate_counts(differ), strict=True):
            total += counts
    layers = tuple(LayerChange(layer.name, a.n, total) for layer, total in zip(a.layers, changed, strict=True))
    return GateChange(layers, LayerChange("net", a.n, torch.cat([total.flatten() for total in changed])))
