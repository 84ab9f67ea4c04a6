"""Keeps gates, max-pool choices and batch norm statistics of one forward pass, and gives them to another pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops.trace.mode import Call, Handler
from gatedops.trace.pooling import dimensions, gathered, gives_indices, pooled
from gatedops.trace.rectifiers import forms_of
from gatedops.trace.running import name_of_call, rerun_by
from gatedops.trace.watch import Watch

# Maps each of our ReLU ops to the op that takes its gates from outside.
_GATED_FORM = {
    torch.ops.gatedops.gated_linear_relu.default: torch.ops.gatedops.gated_linear.default,
    torch.ops.gatedops.gate_relu.default: torch.ops.gatedops.gate_select.default,
}
_Part = TypeVar("_Part")
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_MAXIMA = frozenset(
    forms_of(
        *["max", "amax", "aminmax", "topk", "sort", "msort", "cummax", "kthvalue", "maximum", "fmax"],
        *["quantile", "nanquantile", "median", "nanmedian"],
        *["scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_", "segment_reduce"],
    )
)
_OTHER_BATCH_NORMS = frozenset(
    form
    for form in forms_of("batch_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
    if form is not F.batch_norm
)
_TWIN = "gatedops.trace.twin"
_SAME_LAYERS = "a twin needs a model that calls the same layers, whatever its weights are, and gates of that model"


class Taken(Protocol):
    """Gives a value network what it does not compute itself. The methods take the index of a call, and raise IndexError
    if there are fewer calls."""

    # Errors name what the value network takes its parts from.
    source: str

    def gate(self, index: int, call: Call) -> Tensor:
        """Returns a soft gate or, for hard gates, a bool tensor that is True where a gate is off."""

    def words(self, index: int, call: Call) -> tuple[Tensor, int]:
        """The packed gates of a fused ReLU, and the word at which its own gates begin."""

    def choice(self, index: int, call: Call) -> tuple[Tensor, torch.Size]:
        """The position in the input that each output of a max-pool call takes, and the shape of that input."""

    def statistics(self, index: int, call: Call) -> tuple[Tensor, Tensor]:
        """Mean and variance of a batch norm."""

    def counts(self) -> tuple[int, int]:
        """The number of gates, and the number of choices."""


class Features:
    """Handlers that keep the gates, choices and statistics of a feature network, and let each call go on.

    Args:
        network: the feature network.
        soft: (beta, gain) of gates ``gain * sigmoid(beta * q)``; None: hard gates.
    """

    source = "the feature network"

    def __init__(self, network: nn.Module, soft: tuple[float, float] | None) -> None:
        self._network = network
        self._soft = soft
        self._learns = torch.is_grad_enabled()
        self._gates: list[Tensor] = []
        self._choices: list[tuple[Tensor, torch.Size]] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def relu(self, call: Call) -> Any:
        self._require_one_run(call)
        if self._soft is None:
            self._gates.append(torch.logical_not(call.input > 0))
        else:
            beta, gain = self._soft
            self._gates.append(gain * torch.sigmoid(beta * call.input))
        return call.run()

    def fused_relu(self, call: Call) -> Any:
        if self._soft is not None:
            raise ValueError("gate: soft gates need torch's own ReLUs; take the twin of the model before fuse_relu")
        results = call.run()
        self._gates.append(results[1])
        return results

    def rnn_relu(self, call: Call) -> NoReturn:
        refuse_rnn("model", name_of_call(self._network, call.name))

    def max_pool(self, call: Call) -> Any:
        maxima, index = pooled(call)
        self._choices.append((index, call.input.shape))
        return (maxima, index) if gives_indices(call) else maxima

    def batch_norm(self, call: Call) -> Any:
        given = dict(zip(_BATCH_NORM, call.args, strict=False)) | call.kwargs
        mean, var = given["running_mean"], given["running_var"]
        if given.get("training", False):
            x = given["input"].detach()
            var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        self._statistics.append((mean, var))
        return call.run()

    def gate(self, index: int, call: Call) -> Tensor:
        return self._gates[index]

    def words(self, index: int, call: Call) -> tuple[Tensor, int]:
        return self._gates[index], 0

    def choice(self, index: int, call: Call) -> tuple[Tensor, torch.Size]:
        return self._choices[index]

    def statistics(self, index: int, call: Call) -> tuple[Tensor, Tensor]:
        return self._statistics[index]

    def counts(self) -> tuple[int, int]:
        return len(self._gates), len(self._choices)

    def _require_one_run(self, call: Call) -> None:
        if self._learns:
            require_one_run("model", self._network, call)


class Replay:
    """Handlers that give a value network the gates, choices and statistics of a feature network, in call order.

    Args:
        network: the value network.
        given: holds what the value network takes.
    """

    def __init__(self, network: nn.Module, given: Taken) -> None:
        self._network = network
        self._given = given
        self._learns = torch.is_grad_enabled()
        self._gates, self._choices, self._statistics = 0, 0, 0
        self.watch: Watch | None = None

    def known(self, handler: Handler, call: Call) -> Any:
        """Hands the call to one of these handlers; :class:`Watch` does not report what the handler runs as missed."""
        with nullcontext() if self.watch is None else self.watch.known():
            return handler(call)

    def relu(self, call: Call) -> Any:
        self._require_one_run(call)
        gate = self._next(self._given.gate, self._gates, call)
        self._gates += 1
        q = call.input
        if gate.shape != q.shape:
            self._refuse(call, f"has shape {tuple(q.shape)}, its gate {tuple(gate.shape)}")
        target = (call.args[0] if call.args else call.kwargs.get("input")) if call.in_place else None
        if gate.dtype != torch.bool:
            result = q.mul_(gate) if target is q else q * gate
        # We fill instead of multiplying: infinity times a gate that is off must be 0, not NaN.
        elif target is q:
            result = q.masked_fill_(gate, 0.0)
        else:
            result = q.masked_fill(gate, 0.0)
        return target.copy_(result) if target is not None and target is not q else result

    def fused_relu(self, call: Call) -> Any:
        # If gradients are recorded, this is the forward of an autograd function. Its backward uses the words that the
        # forward returns, so the gradient too follows the feature network's gates.
        self._require_one_run(call)
        words, first = self._next(self._given.words, self._gates, call)
        self._gates += 1
        return _GATED_FORM[call.func](*call.args, words, first), words

    def rnn_relu(self, call: Call) -> NoReturn:
        refuse_rnn("value", name_of_call(self._network, call.name))

    def max_pool(self, call: Call) -> Any:
        self._require_one_run(call)
        index, shape = self._next(self._given.choice, self._choices, call)
        self._choices += 1
        if shape != call.input.shape:
            self._refuse(call, f"pools {tuple(call.input.shape)}, in {self._given.source} {tuple(shape)}")
        result = gathered(call.input, index, dimensions(call))
        return (result, index) if gives_indices(call) else result

    def batch_norm(self, call: Call) -> Any:
        self._require_one_run(call)
        given = dict(zip(_BATCH_NORM, call.args, strict=False)) | call.kwargs
        mean, var = self._next(self._given.statistics, self._statistics, call)
        self._statistics += 1
        weight, bias, eps = given.get("weight"), given.get("bias"), given.get("eps", 1e-5)
        return F.batch_norm(given["input"], mean, var, weight, bias, False, 0.0, eps)

    def no_batch_norm(self, call: Call) -> Any:
        """Leaves out a batch norm: returns its input."""
        self._require_one_run(call)
        return call.input

    def other_batch_norm(self, func: Any) -> None:
        """Raises ValueError if a batch norm is called in another way than by torch.nn.functional.batch_norm."""
        if func in _OTHER_BATCH_NORMS and not torch.compiler.is_compiling():
            name = name_of_call(self._network, "batch_norm")
            raise ValueError(
                f"value: {name} is not called as torch.nn.functional.batch_norm, the only form that can be replaced;"
                " call that function, or use batch_norm='value'"
            )

    def other_maximum(self, func: Any) -> None:
        """Warns if a maximum is not a max-pool call: the value network then takes its own maximum."""
        if func in _MAXIMA and not torch.compiler.is_compiling():
            name = name_of_call(self._network, func.__name__)
            warnings.warn(
                f"value: {name} takes the value network's own largest entries, not those that the feature network"
                " chose; to take the feature network's, call a max-pool instead, such as F.adaptive_max_pool1d; to"
                " keep the value network's own without this warning, pass pool='value'",
                stacklevel=2,
            )

    def require_all_used(self) -> None:
        """Raises ValueError if the value network calls fewer ReLUs or max-pools than the feature network."""
        for what, ours, theirs in zip(("ReLUs", "max-pools"), self._used(), self._given.counts(), strict=True):
            if ours != theirs:
                raise ValueError(f"value: calls {ours} {what}, {self._given.source} {theirs}; {_SAME_LAYERS}")

    def _used(self) -> tuple[int, int]:
        return self._gates, self._choices

    def _next(self, take: Callable[[int, Call], _Part], index: int, call: Call) -> _Part:
        try:
            return take(index, call)
        except IndexError:
            self._refuse(call, f"is call {index + 1} of its kind, {self._given.source} has {index}")

    def _refuse(self, call: Call, what: str) -> NoReturn:
        name = name_of_call(self._network, call.name)
        raise ValueError(f"value: {name} {what}; {_SAME_LAYERS}") from None

    def _require_one_run(self, call: Call) -> None:
        if self._learns:
            require_one_run("value", self._network, call)


def refuse_rnn(role: str, name: str) -> NoReturn:
    """Raises ValueError for an RNN whose ReLUs run inside one function of torch."""
    raise ValueError(
        f"{role}: {name} is a recurrent layer with ReLUs inside, which cannot take gates; give it nonlinearity='tanh',"
        " or write its steps as Linear layers and F.relu"
    )


def require_one_run(role: str, network: nn.Module, call: Call) -> None:
    """Raises ValueError if the call will run a second time, outside the mode, when gradients are computed."""
    function = rerun_by(_TWIN)
    if function is None:
        return
    name = name_of_call(network, call.name)
    if function == "torch.utils.checkpoint":
        raise ValueError(
            f"{role}: {name} runs under torch.utils.checkpoint, which runs it again for the gradients, without the"
            " twin's gates; turn checkpointing off in the model (transformers:"
            " model.gradient_checkpointing_disable()) and save"
            " memory with checkpoint(twin, x) instead"
        )
    raise ValueError(
        f"{role}: {name} runs inside the autograd function {function}, whose backward does not know the twin's gates;"
        " call the layer outside that function, for instance as F.relu"
    )
