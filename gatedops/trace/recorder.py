"""Runs batches through a model, one after another, and packs the gates of each."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.gates import pack_layer
from gatedops.trace.batches import row_count
from gatedops.trace.calling import naming_inputs
from gatedops.trace.mode import MAX_POOL, OTHER_POOL, PIECEWISE, Call, name_of
from gatedops.trace.names import Numbering, RunningModules
from gatedops.trace.passes import Pass, PiecewiseNames, Probe, Run
from gatedops.trace.piecewise import on
from gatedops.trace.pooling import Window, is_max_pool1d
from gatedops.trace.row_plan import FIRST, Arrangement
from gatedops.trace.row_search import Comparison, RowPlan, UnprovenError, comparison, row_plan

# torch uses these names for activations that are not ReLUs, and so have no gates unless PIECEWISE calls are recorded.
_NO_GATES = re.compile(
    "celu|elu|gelu|glu|hardshrink|hardsigmoid|hardswish|hardtanh|leaky_relu|log_?sigmoid|mish|prelu|relu6|rrelu|selu"
    "|sigmoid|silu|softplus|softshrink|softsign|tanh|tanhshrink|threshold"
)
# Calls of these names among them are PIECEWISE if their arguments allow it.
_TWO_SLOPES = frozenset(["hardtanh", "leaky_relu", "prelu", "relu6", "rrelu"])
_BY_PIECEWISE = 'record_gates(model, data, activations="piecewise") records'
_BY_ITSELF = "record that part of the model by itself: record_gates(part, its inputs)"

# A Spec has a layer's name, shape and kind.
Spec = tuple[str, tuple[int, ...], str]


class Recorder(Pass):
    """Runs a model on batches and packs the gates of each. While entered, it has hooks in the model."""

    def __init__(self, model: nn.Module, run: Run, max_pool: bool, training: bool, piecewise: bool) -> None:
        super().__init__(model, run, RunningModules(model), max_pool, piecewise)
        self._max_pool, self._training = max_pool, training
        self._plan: RowPlan | None = None
        self._comparison: Comparison | None = None
        # The keys are the activations without gates, in the order in which they were seen.
        self._others: dict[str, None] = {}
        # These are the activations among them that would be recorded as PIECEWISE calls.
        self._two_slopes: dict[str, None] = {}
        # Both hold the layers of the first batch: as found, and as GateLayers.
        self._expected: list[Spec] = []
        self._layers: tuple[GateLayer, ...] = ()
        self._begin(0)

    def __enter__(self) -> Recorder:
        self.modules.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.modules.__exit__(*error)

    def gates_of(self, batch: Any, index: int) -> GateBits:
        """The gates of one batch. Errors name the batch by its index."""
        if self._plan is None:
            self._pass_over_first(batch)
        else:
            self._pass_over(batch)
        if not self._found:
            raise ValueError(self._no_gates(batch))
        if not self._layers:
            self._expected, self._layers = self._found, self._layout()
        elif self._found != self._expected:
            raise ValueError(_difference(self._expected, self._found, index))
        return GateBits(torch.cat(self._words, dim=1), self._layers)

    def _pass_over_first(self, batch: Any) -> None:
        """Runs the first batch. That pass shows where the rows lie, or it follows the search for them."""
        probe = Probe(self._model, self._run, self.modules, self._max_pool, self._piecewise)
        # In training mode the inputs of a batch change each other's values.
        self._comparison = None if self._training else comparison(self._model, probe, batch)
        is_whole = self._comparison is None and not self._training
        try:
            if self._comparison is not None:
                self._pass_over(batch)
                self._plan = self._comparison.plan()
                return
        except UnprovenError:
            pass
        finally:
            self._comparison = None
        self._plan = row_plan(self._model, probe, batch, is_whole)
        self._pass_over(batch)

    def _pass_over(self, batch: Any) -> None:
        self._begin(row_count(batch) or 0)
        with naming_inputs("data", batch, self._model):
            self.over(batch)

    def finish(self) -> None:
        """Warns about activations without gates, about rectifiers that were missed and about inputs that change each
        other's gates. Raises ValueError if no batch came."""
        if not self._layers or self._plan is None:
            raise ValueError("data: has no batches, needs at least one row")
        if self._others:
            listed = ", ".join(self._others)
            if self._two_slopes:
                listed += f"; {_BY_PIECEWISE} {', '.join(self._two_slopes)}"
            warnings.warn(f"these activations have no gates and are not recorded: {listed}", stacklevel=3)
        if self._plan.missed:
            listed = ", ".join(self._plan.missed)
            warnings.warn(
                f"these rectifiers ran and are not recorded: {listed}; write them as {self._plain_call()}, so that"
                " their gates are seen",
                stacklevel=3,
            )
        if self._plan.mixed and not self._training:
            warnings.warn(
                f"the inputs of a batch change each other's gates, first in {self._plan.mixed}: what is recorded"
                " depends on the batches; keep running statistics in batch norms, put the inputs along the first axis"
                " of attention (batch_first=True), or choose batches that belong together",
                stacklevel=3,
            )

    def take(self, values: Tensor, call: Call, constant: bool) -> None:
        """Packs the gates, or the choices of a max-pool."""
        arrangement = self._arrangement(values, constant)
        self._calls += 1
        if arrangement is None:
            return
        name = self.name_of(call)
        _require_numbers(values, name)
        if not arrangement.fits(tuple(values.shape), self._rows):
            raise ValueError(_misfit(name, tuple(values.shape), self._rows))
        if call.kind == MAX_POOL:
            self._add_choices(values, arrangement, Window.of_call(call.args, call.kwargs), name)
        elif is_max_pool1d(call) and values.dim() == 3:
            # A sequence is an image of one row.
            window = Window.of_call(call.args, call.kwargs).of_one_row()
            self._add_choices(values.unsqueeze(2), arrangement, window, name)
        elif call.kind == OTHER_POOL:
            raise ValueError(
                f"max_pool: {call.name} ({name}) is neither max_pool1d nor max_pool2d, and only their choices can be"
                " recorded; record without max_pool=True"
            )
        else:
            gates = on(call) if call.kind == PIECEWISE else values
            self._add_gates(arrangement.rows_first(gates, self._rows), call.kind, name)

    def _arrangement(self, values: Tensor, constant: bool) -> Arrangement | None:
        if self._comparison is not None:
            return self._comparison.arrangement(values, constant)
        plan = RowPlan() if self._plan is None else self._plan
        return plan.of(self._calls, constant)

    def other(self, func: Any) -> None:
        """Notes an activation that has no gates."""
        op = name_of(func)
        if _NO_GATES.fullmatch(op):
            label = f"{self.modules.activation(op)} ({self.modules.name(op)})"
            self._others[label] = None
            is_random = op == "rrelu" and self._training
            if op in _TWO_SLOPES and not self._piecewise and not is_random:
                self._two_slopes[label] = None

    def _begin(self, rows: int) -> None:
        self._rows = rows
        self._calls = 0
        self._numbering = Numbering()
        self._found: list[Spec] = []
        self._words: list[Tensor] = []

    def _no_gates(self, batch: Any) -> str:
        """The error for a batch in which the model calls nothing that has gates. It says what the model calls
        instead."""
        what = "no ReLU and no other activation of two slopes" if self._piecewise else "no ReLU"
        parts = [f"model: calls {what}, so there are no gates to record"]
        if self._others:
            parts.append(f"its activations have none: {', '.join(self._others)}")
        names = () if self._piecewise else PiecewiseNames(self._model, self._run, self.modules).of(batch)
        if names:
            parts.append(f"{_BY_PIECEWISE} {', '.join(names)}")
        elif self._others:
            parts.append("put nn.ReLU in their place to have gates")
        missed = () if self._plan is None else self._plan.missed
        if missed:
            parts.append(f"these rectifiers ran and are not seen: {', '.join(missed)}")
            parts.append(f"write them as {self._plain_call()}")
        return "; ".join(parts)

    def _plain_call(self) -> str:
        """How to write a rectifier so that it is seen."""
        return "torch.relu(q) or F.leaky_relu(q, slope), outside TorchScript" if self._piecewise else "torch.relu(q)"

    def _layout(self) -> tuple[GateLayer, ...]:
        layers, first = [], 0
        for (name, shape, kind), words in zip(self._found, self._words, strict=True):
            layers.append(GateLayer(name, shape, kind, first))
            first += words.shape[1]
        return tuple(layers)

    def _add_choices(self, z: Tensor, arrangement: Arrangement, window: Window, name: str) -> None:
        if arrangement != FIRST or z.dim() != 4:
            raise ValueError(
                f"max_pool: {name} works on {tuple(z.shape)} for a batch of {self._rows} inputs, needs (n, C, H, W);"
                " record without max_pool=True"
            )
        self._add(window.select(z), name, "select")

    def _add_gates(self, q: Tensor, call_kind: str, name: str) -> None:
        if q.dim() > 5 or q.shape.numel() == 0:
            what, given = "activation" if call_kind == PIECEWISE else "ReLU", tuple(q.shape[1:])
            raise ValueError(
                f"model: the {what} {name} has gates {given}, needs (w,), (T, C), (C, H, W) or (C, D, H, W), at least"
                " one; flatten some of its axes in front of it"
            )
        self._add(q.unsqueeze(1) if q.dim() == 1 else q, name, "gate")

    def _add(self, gates: Tensor, name: str, kind: str) -> None:
        self._found.append((self._numbering.unique(name), tuple(gates.shape[1:]), kind))
        self._words.append(pack_layer(gates, kind))


def _require_numbers(q: Tensor, name: str) -> None:
    """Raises ValueError if q is not a dense tensor, and TypeError if it does not hold floating point numbers."""
    if q.layout != torch.strided:
        raise ValueError(f"model: {name} works on {q.layout}, needs a dense tensor; convert it with to_dense()")
    if not q.is_floating_point():
        raise TypeError(f"model: {name} works on {q.dtype}, needs floating point numbers; convert them with float()")


def _misfit(name: str, shape: tuple[int, ...], rows: int) -> str:
    """The error for a call in which the rows do not lie as they did in the passes over a few of them."""
    return (
        f"model: {name} works on {shape} for a batch of {rows} inputs; the inputs need to be the first axis (in a"
        f" transformer: batch_first=True); if only some of them come there, as in an expert, {_BY_ITSELF}"
    )


def _difference(expected: list[Spec], found: list[Spec], index: int) -> str:
    """The error for batch `index`, whose layers are not those of batch 0."""
    if len(found) != len(expected):
        what = f"has {len(found)} gated layers and batch 0 has {len(expected)}"
    else:
        now, then = next((a, b) for a, b in zip(found, expected, strict=True) if a != b)
        what = f"has {now[0]} {now[1]} where batch 0 has {then[0]} {then[1]}"
    return f"model: batch {index} {what}; every input needs to go through the same layers, at the same size"
