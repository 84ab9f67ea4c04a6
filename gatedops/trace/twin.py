"""gated_twin: a network whose gates are those of another (docs/math.md, section 10)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatedops.trace.checks import require_model
from gatedops.trace.mode import BATCH_NORM, FUSED_RELU, MAX_POOL, RELU, Intercept
from gatedops.trace.replay import Features, Replay

_CHOICES = {"pool": ("feature", "value"), "batch_norm": ("value", "feature", "off"), "gate": ("hard", "soft")}


def gated_twin(
    model: nn.Module,
    value: nn.Module | Mapping[str, Tensor] | None = None,
    pool: str = "feature",
    batch_norm: str = "value",
    *,
    gate: str = "hard",
    beta: float = 4.0,
    gain: float = 1.0,
    train_features: bool = False,
) -> GatedTwin:
    """The gated network of any ReLU network: its gates, and weights of their own that they gate.

    Of a trained net, ``gated_twin(net)`` is the papers' FLNPF; of an untrained one, ``gated_twin(net)`` is FRNPF(II),
    ``gated_twin(net, net)`` FRNPF(DI) and ``gated_twin(net, gate="soft", train_features=True)`` DLNPF
    (Lakshminarayanan & Singh 2020, arXiv 2006.10529).

    Args:
        model: the feature network, of which a copy is used: its k-th ReLU call gives the k-th gate.
        value: weights of the value network, as a module of the same architecture or its state_dict; copied. None: drawn
            anew by the ``reset_parameters`` of the layers of `model`.
        pool: a max-pool of the value network takes the input that is the largest in the "feature" network, or its own
            largest one ("value").
        batch_norm: batch norm in the value network is its own ("value"), normalises by the mean and variance that the
            feature network's uses ("feature"), or is left out ("off").
        gate: "hard", 1 where the feature pre-activation is > 0; or "soft", ``gain * sigmoid(beta * q)``.
        beta, gain: of soft gates.
        train_features: whether the feature network learns too; soft gates only, as nothing flows through hard ones.

    Returns:
        A module with ``feature`` and ``value``, called like `model`.

    Raises:
        TypeError, ValueError: an argument of another form; value weights that do not fit; value None and a layer whose
            parameters have no ``reset_parameters``. When called: a model without ReLU calls, or with other ones in the
            value network.
    """
    require_model(model)
    for name, given in (("pool", pool), ("batch_norm", batch_norm), ("gate", gate)):
        if given not in _CHOICES[name]:
            raise ValueError(f"{name}: got {given!r}, needs one of {_CHOICES[name]}")
    for name, number in (("beta", beta), ("gain", gain)):
        if not 0 < number < float("inf"):
            raise ValueError(f"{name}: got {number}, needs a positive number")
    if train_features and gate == "hard":
        raise ValueError("train_features: nothing flows through hard gates; use gate='soft'")
    feature, network = deepcopy(model).requires_grad_(train_features), _value_network(model, value)
    return GatedTwin(feature, network, pool, batch_norm, (beta, gain) if gate == "soft" else None)


class GatedTwin(nn.Module):
    """What :func:`gated_twin` returns; its state_dict has the keys of the model behind "feature." and "value.".

    A call runs the feature network, then the value network, whose k-th ReLU call gives its pre-activation times the
    k-th gate: exactly 0 where a hard gate is off. Activations other than ReLU are the value network's own. The feature
    network's layers behind its last ReLU decide nothing; where it learns, DistributedDataParallel therefore needs
    find_unused_parameters=True. Parts under torch.utils.checkpoint run a second time outside the call, where they find
    no gates: not supported.

    Args:
        feature, value: two networks of one architecture. The feature network learns if any of its parameters does.
        pool, batch_norm: as in :func:`gated_twin`.
        soft: (beta, gain) of soft gates, None for hard ones.
    """

    def __init__(
        self, feature: nn.Module, value: nn.Module, pool: str, batch_norm: str, soft: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.feature = feature
        self.value = value
        self.pool = pool
        self.batch_norm = batch_norm
        self.soft = soft
        self.train_features = any(p.requires_grad for p in feature.parameters())
        if batch_norm == "off":
            for module in value.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)
        self.train(feature.training)

    def train(self, mode: bool = True) -> GatedTwin:
        """Sets the value network's mode; a feature network that does not learn stays in evaluation mode."""
        super().train(mode)
        self.feature.train(mode and self.train_features)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_features):
            features = Features(self.feature, self.soft)
            with self._intercept(self.feature, features):
                self.feature(*args, **kwargs)
        if not features.gates():
            raise ValueError("model: calls no ReLU, so there are no gates for its twin")
        replay = Replay(self.value, features)
        with self._intercept(self.value, replay):
            result = self.value(*args, **kwargs)
        replay.require_all_used()
        return result

    def _intercept(self, network: nn.Module, side: Features | Replay) -> Intercept:
        """The mode for one of the two networks."""
        handlers: dict[str, Any] = {RELU: side.relu, FUSED_RELU: side.fused_relu}
        if self.pool == "feature":
            handlers[MAX_POOL] = side.max_pool
        if self.batch_norm == "feature":
            handlers[BATCH_NORM] = side.batch_norm
        if self.batch_norm == "off" and isinstance(side, Replay):
            handlers[BATCH_NORM] = side.no_batch_norm
        return Intercept(network, handlers)

    def extra_repr(self) -> str:
        gate = "hard" if self.soft is None else f"soft, beta={self.soft[0]}, gain={self.soft[1]}"
        return f"gate={gate}, pool={self.pool}, batch_norm={self.batch_norm}"


def _value_network(model: nn.Module, value: Any) -> nn.Module:
    """A copy of the model, all of it trainable, with the given or new weights."""
    network = deepcopy(model).requires_grad_(True)
    if value is None:
        _draw_anew(network)
        return network
    if not isinstance(value, (nn.Module, Mapping)):
        raise TypeError(f"value: got {type(value).__name__}, needs a module, a state_dict or None")
    try:
        network.load_state_dict(value.state_dict() if isinstance(value, nn.Module) else value)
    except RuntimeError as error:
        raise ValueError(f"value: does not fit the model: {error}") from error
    return network


def _draw_anew(network: nn.Module) -> None:
    """Calls each layer's reset_parameters, inner ones first."""
    for path, module in reversed(list(network.named_modules())):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"value: None draws new weights, but {path or 'the model'} ({type(module).__name__}) has parameters and"
                " no reset_parameters; give weights, such as a second model"
            )
