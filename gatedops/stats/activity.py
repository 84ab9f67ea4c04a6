"""Computes how often gates are on: share, dead and always-on gates, entropy (docs/math.md, section 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.devices import in_float64
from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.gate_counts import gate_counts, on_per_input
from gatedops.stats.checks import require_gates
from gatedops.tables import ShownAsTable, Table, counted, decimal, percent, whole


@dataclass(frozen=True, eq=False, repr=False)
class LayerStats(ShownAsTable):
    """How often the gates of one layer, or of the whole net, are on.

    Args:
        name: the name of the layer; "net" for all gates together.
        on_per_gate: for how many inputs each gate is on, int64 ``(*shape)``; for the net ``(w,)``, layer after layer.
        on_per_input: how many gates are on for each input, int32 ``(n,)``; for the net int64.
        channel_axis: the axis of the channels in on_per_gate, for layers with positions (pixels, tokens); None for all
            others and the net.
    """

    name: str
    on_per_gate: Tensor
    on_per_input: Tensor
    channel_axis: int | None = None

    @property
    def inputs(self) -> int:
        """The number n of inputs."""
        return len(self.on_per_input)

    @property
    def width(self) -> int:
        """The number of gates."""
        return self.on_per_gate.numel()

    @property
    def share_on(self) -> float:
        """The share of all gates, over all inputs, that are on."""
        return int(self.on_per_gate.sum()) / (self.inputs * self.width)

    @property
    def share_per_gate(self) -> Tensor:
        """The share of the inputs for which each gate is on, float64 ``(*shape)``; on the CPU if the device has no
        float64."""
        return in_float64(self.on_per_gate) / self.inputs

    @property
    def share_per_input(self) -> Tensor:
        """The share of the gates that are on for each input, float64 ``(n,)``; on the CPU if the device has no
        float64."""
        return in_float64(self.on_per_input) / self.width

    @property
    def dead(self) -> int:
        """The number of gates that are on for no input."""
        return int((self.on_per_gate == 0).sum())

    @property
    def always_on(self) -> int:
        """The number of gates that are on for every input."""
        return int((self.on_per_gate == self.inputs).sum())

    @property
    def dead_channels(self) -> int | None:
        """The number of channels whose gates are all dead; None for layers without positions."""
        return self._channels(self.on_per_gate == 0)

    @property
    def always_on_channels(self) -> int | None:
        """The number of channels whose gates are all on for every input; None for layers without positions."""
        return self._channels(self.on_per_gate == self.inputs)

    def _channels(self, gates: Tensor) -> int | None:
        """The number of channels whose gates are all among these."""
        if self.channel_axis is None:
            return None
        return int(gates.movedim(self.channel_axis, 0).flatten(1).all(1).sum())

    @property
    def entropy(self) -> float:
        """The mean binary entropy of a gate over the inputs, in bits: from 0 (the gates never change) to 1 (each is on
        for half of the inputs)."""
        share = self.share_per_gate
        return float((torch.special.entr(share) + torch.special.entr(1 - share)).mean()) / math.log(2)

    def summary(self) -> dict[str, float]:
        """The numbers without the tensors. Only layers with positions have numbers of channels."""
        channels = {"dead_channels": self.dead_channels, "always_on_channels": self.always_on_channels}
        return {
            "share_on": self.share_on,
            "dead": self.dead,
            "always_on": self.always_on,
            "entropy": self.entropy,
            **{name: number for name, number in channels.items() if number is not None},
        }

    def table(self) -> Table:
        """The numbers in a row."""
        return _table(f"LayerStats of {counted(self.inputs, 'input')}", [self])


@dataclass(frozen=True, eq=False, repr=False)
class GateStats(ShownAsTable):
    """How often gates are on: in each layer, and in the whole net."""

    layers: tuple[LayerStats, ...]
    net: LayerStats

    def table(self) -> Table:
        """A row of numbers for every layer and for the net."""
        title = f"GateStats of {counted(self.net.inputs, 'input')}: {counted(len(self.layers), 'layer')}"
        return _table(f"{title}, {counted(self.net.width, 'gate')}", [*self.layers, self.net])


def _table(title: str, parts: Sequence[LayerStats]) -> Table:
    """A table with a row for each part, and with columns for channels if one of the parts has channels."""
    head = ("layer", "shape", "gates", "on %", "dead", "always on", "entropy")
    channels = any(part.channel_axis is not None for part in parts)
    rows = tuple(
        (
            part.name,
            "x".join(map(str, part.on_per_gate.shape)),
            whole(part.width),
            percent(part.share_on),
            whole(part.dead),
            whole(part.always_on),
            decimal(part.entropy),
            *((whole(part.dead_channels), whole(part.always_on_channels)) if channels else ()),
        )
        for part in parts
    )
    return Table(title, (*head, *(("dead channels", "always-on channels") if channels else ())), rows)


def gate_stats(bits: GateBits) -> GateStats:
    """Computes how often the gates of each layer and of the whole net are on (docs/math.md, section 12).

    Counts are exact. The words are read in place, also from a memory-mapped file, and no gate is unpacked.

    Args:
        bits: gates of at least one input.

    Raises:
        TypeError, ValueError: bits is not a GateBits or has no inputs.
    """
    require_gates(bits)
    per_gate, per_input = gate_counts(bits), on_per_input(bits)
    layers = zip(bits.layers, per_gate, per_input, strict=True)
    net = LayerStats("net", torch.cat([counts.flatten() for counts in per_gate]), per_input.sum(0))
    stats = tuple(LayerStats(layer.name, gates, inputs, _channel_axis(layer)) for layer, gates, inputs in layers)
    return GateStats(stats, net)


def _channel_axis(layer: GateLayer) -> int | None:
    """The axis of the channels in a layer that has positions; None for any other layer."""
    if len(layer.shape) == 1 or layer.kind == "select":
        return None
    return 1 if len(layer.shape) == 2 else 0
