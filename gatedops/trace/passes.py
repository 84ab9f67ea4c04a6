"""Watches a forward pass of a model: its rectifiers and max-pools in call order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.trace.mode import (
    FUSED_RELU,
    MAX_POOL,
    OTHER_POOL,
    PIECEWISE,
    RELU,
    RNN_RELU,
    Call,
    Intercept,
    name_of,
)
from gatedops.trace.names import RunningModules, activation_op
from gatedops.trace.piecewise import PiecewiseIntercept, is_random
from gatedops.trace.recurrent import activations_of
from gatedops.trace.watch import Watch

_REORDERING = frozenset(["randperm", "argsort", "sort", "msort", "topk", "multinomial", "randint", "shuffle"])

Run = Callable[[nn.Module, Any], Any]


class Pass(ABC):
    """Runs a model on a batch without gradients, and takes the tensor that each rectifier (and max-pool) works on.

    Args:
        model: the model.
        run: ``run(model, batch)`` calls the model.
        modules: the running modules of the model, entered.
        max_pool: take the inputs of max-pools too.
        piecewise: take the pre-activations of other activations of two slopes too (piecewise.py).
    """

    def __init__(
        self, model: nn.Module, run: Run, modules: RunningModules, max_pool: bool, piecewise: bool = False
    ) -> None:
        self._model, self._run, self.modules = model, run, modules
        self._watch: Watch | None = None
        self._piecewise = piecewise
        pools = {MAX_POOL: self._on_call, OTHER_POOL: self._on_call} if max_pool else {}
        self._handlers = {RELU: self._on_call, FUSED_RELU: self._on_call, RNN_RELU: self._on_call, **pools}
        if piecewise:
            self._handlers[PIECEWISE] = self._on_call

    @abstractmethod
    def take(self, values: Tensor, call: Call, constant: bool) -> None:
        """Takes a tensor that is greater than 0 where the gates of a rectifier are on, or the input of a max-pool, or
        the pre-activation of a PIECEWISE call, whose gates piecewise.on gives."""

    @abstractmethod
    def other(self, func: Any) -> None:
        """Takes note of a function that is called and is not a rectifier."""

    def over(self, batch: Any, watched: bool = False) -> tuple[str, ...]:
        """Runs the model. With `watched`, returns the names of the rectifiers that ran but were not taken."""
        intercept = PiecewiseIntercept if self._piecewise else Intercept
        mode = intercept(self._model, self._handlers, self._on_other, lambda call: self._on_call(call, True))
        self._watch = Watch(lambda: self.modules.place(), mode.is_constant, self._piecewise) if watched else None
        with torch.no_grad(), ExitStack() as stack:
            if self._watch is not None:
                stack.enter_context(self._watch)
            stack.enter_context(mode)
            self._run(self._model, batch)
        return () if self._watch is None else tuple(self._watch.missed)

    def name_of(self, call: Call) -> str:
        """The name of a call made now; not unique."""
        if call.kind == PIECEWISE:
            return self.modules.name(activation_op(call.name))
        return self.modules.name({RELU: RELU, FUSED_RELU: RELU, MAX_POOL: MAX_POOL}.get(call.kind, call.name))

    def _on_call(self, call: Call, constant: bool = False) -> Any:
        self._require_rows(call)
        if call.kind == PIECEWISE and not constant and is_random(call):
            raise ValueError(
                f"model: {self.name_of(call)} is an RReLU in training mode, whose slopes are random; record it in"
                " evaluation mode (training=False, here and in calls of F.rrelu)"
            )
        with nullcontext() if self._watch is None else self._watch.known():
            if call.kind not in (FUSED_RELU, RNN_RELU):
                # The call may work in place and overwrite its pre-activation, so we take that first.
                self.take(call.input, call, constant)
                return call.run()
            result = call.run()
            if call.kind == RNN_RELU:
                for values in activations_of(call, result):
                    self.take(values, call, constant)
                return result
            z = result[0]
            # A Gate that records its gates gives (n, positions, channels); a fully connected layer has one position.
            self.take(z.squeeze(1) if z.dim() == 3 and z.shape[1] == 1 else z, call, constant)
            return result

    def _require_rows(self, call: Call) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(call.input):
            raise ValueError(
                f"model: {self.name_of(call)} runs inside torch.func (vmap, grad), where the rows of a batch are not"
                " seen; call the layer with the whole batch instead"
            )

    def _on_other(self, func: Any) -> None:
        if self._watch is not None:
            self._watch.enter(func)
        self.other(func)


class PiecewiseNames(Pass):
    """A pass that names the activations of two slopes that are not ReLUs, for an error."""

    def __init__(self, model: nn.Module, run: Run, modules: RunningModules) -> None:
        super().__init__(model, run, modules, max_pool=False, piecewise=True)
        # The keys are in the order of the calls.
        self._found: dict[str, None] = {}

    def of(self, batch: Any) -> tuple[str, ...]:
        """The names, such as "LeakyReLU (1)"; none if the model fails in this pass."""
        try:
            self.over(batch)
        except Exception:  # the user gets the error that asks for the names
            return ()
        return tuple(self._found)

    def take(self, values: Tensor, call: Call, constant: bool) -> None:
        if call.kind == PIECEWISE and not constant:
            self._found[f"{self.modules.activation(call.name)} ({self.name_of(call)})"] = None

    def other(self, func: Any) -> None:
        """Ignores the function."""


@dataclass(frozen=True)
class Observed:
    """The tensor that a rectifier or a max-pool worked on in a pass, and the name of the call."""

    name: str
    values: Tensor
    constant: bool


class Probe(Pass):
    """A pass that keeps the tensors it takes, which is meant for a few rows only."""

    def values_of(self, batch: Any, watched: bool = False) -> tuple[list[Observed], tuple[str, ...]]:
        """The tensors that the model's calls worked on, in call order, and with `watched` the names of the rectifiers
        that were missed."""
        self._observed: list[Observed] = []
        self.reorders = False
        missed = self.over(batch, watched)
        return self._observed, missed

    def take(self, values: Tensor, call: Call, constant: bool) -> None:
        self._observed.append(Observed(self.name_of(call), values.detach().clone(), constant))

    def other(self, func: Any) -> None:
        """Notes whether the model calls a function that can change the order of its inputs."""
        self.reorders |= name_of(func) in _REORDERING
