"""One batch after another through a model, and the gates of each."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.gates import pack_layer
from gatedops.trace.checks import devices_of, require_device
from gatedops.trace.mode import FUSED_RELU, MAX_POOL, RELU, Call, Intercept
from gatedops.trace.names import Numbering, RunningModules
from gatedops.trace.pooling import Window

# Names of torch's functions, without a trailing underscore.
_NO_GATES = re.compile(
    "celu|elu|gelu|glu|hardshrink|hardsigmoid|hardswish|hardtanh|leaky_relu|logsigmoid|mish|prelu|relu6|rrelu|selu"
    "|sigmoid|silu|softplus|softshrink|softsign|tanh|tanhshrink|threshold"
)
_UNRECORDED_POOLS = re.compile("max_pool[13]d|adaptive_max_pool[123]d|fractional_max_pool[23]d")

Spec = tuple[str, tuple[int, ...], str]  # a layer's name, shape and kind


class Recorder:
    """Runs a model on batches and packs the gates of each; holds hooks in the model while entered."""

    def __init__(self, model: nn.Module, max_pool: bool) -> None:
        self._model = model
        self._devices = devices_of(model)
        self._modules = RunningModules(model)
        handlers = {RELU: self._on_relu, FUSED_RELU: self._on_fused}
        if max_pool:
            handlers[MAX_POOL] = self._on_max_pool
        self._handlers = handlers
        self._max_pool = max_pool
        self._others: dict[str, None] = {}  # activations without gates, in the order they were seen
        self._expected: list[Spec] = []  # the layers of the first batch
        self._layers: tuple[GateLayer, ...] = ()
        self._begin(0)

    def __enter__(self) -> Recorder:
        self._modules.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._modules.__exit__(*error)

    def gates_of(self, inputs: Tensor, index: int) -> GateBits:
        """The gates of one batch; its number is for errors."""
        require_device(self._devices, inputs, "data")
        self._begin(inputs.shape[0])
        with torch.no_grad(), Intercept(self._model, self._handlers, self._on_other):
            self._model(inputs)
        if not self._found:
            others = f"; its activations have none: {', '.join(self._others)}" if self._others else ""
            raise ValueError(f"model: calls no ReLU, so there are no gates to record{others}")
        if not self._layers:
            self._expected, self._layers = self._found, self._layout()
        elif self._found != self._expected:
            raise ValueError(_difference(self._expected, self._found, index))
        return GateBits(torch.cat(self._words, dim=1), self._layers)

    def finish(self) -> None:
        """Warns of activations that are no gates; ValueError where no batch came."""
        if not self._layers:
            raise ValueError("data: has no batches, needs at least one row")
        if self._others:
            listed = ", ".join(self._others)
            warnings.warn(f"these activations have no gates and are not recorded: {listed}", stacklevel=3)

    def _begin(self, rows: int) -> None:
        self._rows = rows
        self._numbering = Numbering()
        self._found: list[Spec] = []
        self._words: list[Tensor] = []

    def _layout(self) -> tuple[GateLayer, ...]:
        layers, first = [], 0
        for (name, shape, kind), words in zip(self._found, self._words, strict=True):
            layers.append(GateLayer(name, shape, kind, first))
            first += words.shape[1]
        return tuple(layers)

    def _on_relu(self, call: Call) -> Any:
        self._add_gates(call.input)  # before the call: in place it overwrites its pre-activation
        return call.run()

    def _on_fused(self, call: Call) -> Any:
        results = call.run()
        z = results[0]  # > 0 where its pre-activation is
        # (n, positions, channels) where a Gate records its gates: one position is a fully connected layer.
        self._add_gates(z.squeeze(1) if z.dim() == 3 and z.shape[1] == 1 else z)
        return results

    def _on_max_pool(self, call: Call) -> Any:
        z = call.input
        name = self._modules.name(MAX_POOL)
        self._require_rows(z, name)
        self._add(Window.of_call(call.args, call.kwargs).select(z), name, "select")
        return call.run()

    def _on_other(self, func: Any) -> None:
        op = getattr(func, "__name__", "").split(".")[0].rstrip("_")
        if _NO_GATES.fullmatch(op):
            self._others[f"{op} ({self._modules.name(op)})"] = None
        if self._max_pool and _UNRECORDED_POOLS.fullmatch(op):
            name = self._modules.name(op)
            raise ValueError(f"max_pool: {op} ({name}) is not a 2-d max-pool, whose choices alone can be recorded")

    def _add_gates(self, q: Tensor) -> None:
        name = self._modules.name(RELU)
        self._require_rows(q, name)
        if q.dim() > 4 or q.shape.numel() == 0:
            given = tuple(q.shape[1:])
            raise ValueError(f"model: the ReLU {name} has gates {given}, needs (w,), (T, C) or (C, H, W), at least one")
        if not q.is_floating_point():
            raise TypeError(f"model: the ReLU {name} works on {q.dtype}, needs floating point numbers")
        self._add(q.unsqueeze(1) if q.dim() == 1 else q, name, "gate")

    def _add(self, gates: Tensor, name: str, kind: str) -> None:
        self._found.append((self._numbering.unique(name), tuple(gates.shape[1:]), kind))
        self._words.append(pack_layer(gates))

    def _require_rows(self, q: Tensor, name: str) -> None:
        if q.dim() == 0 or q.shape[0] != self._rows:
            raise ValueError(
                f"model: {name} works on {tuple(q.shape)} for a batch of {self._rows} inputs; the inputs need to be"
                " the first axis (in a transformer: batch_first=True)"
            )


def _difference(expected: list[Spec], found: list[Spec], index: int) -> str:
    """What to say of batch `index`, whose layers are not those of batch 0."""
    if len(found) != len(expected):
        what = f"has {len(found)} gated layers and batch 0 has {len(expected)}"
    else:
        now, then = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
        what = f"has {now[0]} {now[1]} where batch 0 has {then[0]} {then[1]}"
    return f"model: batch {index} {what}; every input needs to go through the same layers, at the same size"
