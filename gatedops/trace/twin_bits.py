"""Keeps a twin's gates and max-pool choices as bits: its feature network makes them, its value network takes them."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.ops.gates import unpack_layer
from gatedops.trace.mode import MAX_POOL, Call
from gatedops.trace.names import Numbering, RunningModules
from gatedops.trace.pooling import Window, gives_indices, pooled
from gatedops.trace.replay import refuse_rnn


class Packing:
    """Handlers that keep the hard gates and max-pool choices of a feature network, and let each call go on.

    Args:
        rows: the number of inputs.
        modules: the running modules of the feature network, entered.
    """

    def __init__(self, rows: int, modules: RunningModules) -> None:
        self._rows = rows
        self._modules = modules
        self._numbering = Numbering()
        self._names: list[str] = []
        self._kinds: list[str] = []
        self._masks: list[Tensor] = []

    def bits(self) -> GateBits:
        """All gates and choices in call order; choices are layers of kind "select"."""
        if "gate" not in self._kinds:
            raise ValueError("model: calls no ReLU, so there are no gates for its twin; give a model that calls F.relu")
        return GateBits.pack(self._masks, self._names, self._kinds)

    def relu(self, call: Call) -> Any:
        self._add(call, call.input > 0, "gate")
        return call.run()

    def fused_relu(self, call: Call) -> Any:
        results = call.run()
        self._add(call, results[0] > 0, "gate")
        return results

    def rnn_relu(self, call: Call) -> NoReturn:
        refuse_rnn("model", self._modules.name(call.name))

    def max_pool(self, call: Call) -> Any:
        if call.kind != MAX_POOL or call.input.dim() != 4:
            raise ValueError(
                f"model: {self._modules.name(call.name)} pools {tuple(call.input.shape)}, but bits hold only the"
                " choices of a 2-d max-pool of (n, C, H, W); use pool='value', or train without a cache"
            )
        maxima, index = pooled(call)
        self._add(call, Window.of_call(call.args, call.kwargs).masks(index, call.input.shape[-1]), "select")
        return (maxima, index) if gives_indices(call) else maxima

    def _add(self, call: Call, masks: Tensor, kind: str) -> None:
        name = self._modules.name(call.kind)
        if masks.dim() == 0 or masks.shape[0] != self._rows:
            raise ValueError(
                f"model: {name} works on {tuple(call.input.shape)} for {self._rows} inputs; a cache needs the inputs as"
                " the first axis (in a transformer: batch_first=True); train without a cache"
            )
        flat = kind == "gate" and masks.dim() not in (2, 3, 4, 5)
        self._kinds.append(kind)
        self._masks.append(masks.reshape(self._rows, -1) if flat else masks)
        self._names.append(self._numbering.unique(name))


class Cached:
    """Gives a value network its gates and choices from bits that :class:`Packing` made.

    Args:
        bits: the bits of the rows that the value network is called with.
    """

    source = "the cache"

    def __init__(self, bits: GateBits) -> None:
        self._words = bits.words
        self._gates = [layer for layer in bits.layers if layer.kind == "gate"]
        self._choices = [layer for layer in bits.layers if layer.kind == "select"]

    def gate(self, index: int, call: Call) -> Tensor:
        gate = ~unpack_layer(self._words, self._gates[index])
        return gate.reshape(call.input.shape) if gate.numel() == call.input.numel() else gate

    def words(self, index: int, call: Call) -> tuple[Tensor, int]:
        return self._words, self._gates[index].first_word

    def choice(self, index: int, call: Call) -> tuple[Tensor, torch.Size]:
        layer, shape = self._choices[index], call.input.shape
        if call.kind != MAX_POOL:
            raise ValueError(f"gates: bits hold no choices of {call.name}; use pool='value', or call without gates")
        window = Window.of_call(call.args, call.kwargs)
        needed = (math.prod(window.kernel), *window.chosen(torch.empty(shape, device="meta")).shape[1:])
        if layer.shape != needed:
            raise ValueError(
                f"gates: {layer.name} holds choices {layer.shape}, but the max-pool of the value network needs"
                f" {needed}; take gates of this model"
            )
        return window.index(unpack_layer(self._words, layer), shape[-1]), shape

    def statistics(self, index: int, call: Call) -> tuple[Tensor, Tensor]:
        raise IndexError("bits hold no statistics")

    def counts(self) -> tuple[int, int]:
        return len(self._gates), len(self._choices)
