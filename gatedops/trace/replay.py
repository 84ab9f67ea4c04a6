"""Gates, max-pool choices and batch norm statistics of one forward pass, and another pass that takes them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatedops.trace.mode import Call
from gatedops.trace.pooling import Window, wants_indices

# A ReLU of ours and the op that takes its gates from outside.
_GATED_FORM = {
    torch.ops.gatedops.gated_linear_relu.default: torch.ops.gatedops.gated_linear.default,
    torch.ops.gatedops.gate_relu.default: torch.ops.gatedops.gate_select.default,
}
_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


class Features:
    """Handlers that keep what a feature network does, call by call, and let each call go on.

    Args:
        soft: (beta, gain) of gates ``gain * sigmoid(beta * q)``; None: hard gates.
    """

    def __init__(self, soft: tuple[float, float] | None) -> None:
        self._soft = soft
        self.gates: list[Tensor] = []  # soft: the gate; hard: bool, where it is off; of a fused ReLU: its words
        self.choices: list[Tensor] = []
        self.statistics: list[tuple[Tensor, Tensor]] = []

    def relu(self, call: Call) -> Any:
        q = call.input
        if self._soft is None:
            self.gates.append(torch.logical_not(q > 0))
        else:
            beta, gain = self._soft
            self.gates.append(gain * torch.sigmoid(beta * q))
        return call.run()

    def fused_relu(self, call: Call) -> Any:
        if self._soft is not None:
            raise ValueError("gate: soft gates need torch's own ReLUs; take the twin of the model before fuse_relu")
        results = call.run()
        self.gates.append(results[1])
        return results

    def max_pool(self, call: Call) -> Any:
        self.choices.append(Window.of_call(call.args, call.kwargs).chosen(call.input))
        return call.run()

    def batch_norm(self, call: Call) -> Any:
        given = dict(zip(_BATCH_NORM, call.args, strict=False)) | call.kwargs
        mean, var = given["running_mean"], given["running_var"]
        if given.get("training", False):
            x = given["input"].detach()
            var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        self.statistics.append((mean, var))
        return call.run()


class Replay:
    """Handlers under which a value network takes what a feature network did, in the order of the calls."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._gates, self._choices, self._statistics = 0, 0, 0

    def relu(self, call: Call) -> Any:
        q = call.input
        gate = _next(self._features.gates, self._gates, "ReLU")
        self._gates += 1
        if gate.shape != q.shape:
            raise ValueError(f"value: ReLU {self._gates} has shape {tuple(q.shape)}, its gate {tuple(gate.shape)}")
        if gate.dtype == torch.bool:  # filled, not multiplied: infinity times a gate that is off is 0
            return q.masked_fill_(gate, 0.0) if call.in_place else q.masked_fill(gate, 0.0)
        return q.mul_(gate) if call.in_place else q * gate

    def fused_relu(self, call: Call) -> Any:
        # Where gradients are recorded this is the forward of an autograd function, whose backward goes by the words
        # that its forward returns: the gradient, too, is that of the feature network's gates.
        words = _next(self._features.gates, self._gates, "ReLU")
        self._gates += 1
        op = _GATED_FORM[call.func]
        return op(*call.args, words, 0), words

    def max_pool(self, call: Call) -> Any:
        z = call.input
        index = _next(self._features.choices, self._choices, "max-pool")
        self._choices += 1
        taken = z.flatten(2).gather(2, index.flatten(2)).view_as(index)
        return (taken, index) if wants_indices(call.func, call.args, call.kwargs) else taken

    def batch_norm(self, call: Call) -> Any:
        given = dict(zip(_BATCH_NORM, call.args, strict=False)) | call.kwargs
        mean, var = _next(self._features.statistics, self._statistics, "batch norm")
        self._statistics += 1
        weight, bias, eps = given.get("weight"), given.get("bias"), given.get("eps", 1e-5)
        return F.batch_norm(given["input"], mean, var, weight, bias, False, 0.0, eps)

    def require_all_used(self) -> None:
        """Raises ValueError where the value network calls fewer ReLUs than the feature network."""
        if self._gates != len(self._features.gates):
            raise ValueError(f"value: calls {self._gates} ReLUs, the feature network {len(self._features.gates)}")


def no_batch_norm(call: Call) -> Any:
    """A batch norm that is left out."""
    return call.input


def _next(kept: list[Any], index: int, what: str) -> Any:
    if index >= len(kept):
        raise ValueError(f"value: calls a {what} more often than the {len(kept)} times of the feature network")
    return kept[index]
