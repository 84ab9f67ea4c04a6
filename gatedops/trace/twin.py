"""gated_twin: makes a network that takes its gates from another one (docs/math.md, section 10)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option
from gatedops.scalars import positive_number
from gatedops.trace.alike import first_of_two
from gatedops.trace.checks import require_model, require_sizes
from gatedops.trace.copies import copied
from gatedops.trace.draw import Init, draw_anew, require_init
from gatedops.trace.mode import BATCH_NORM, FUSED_RELU, MAX_POOL, OTHER_POOL, RELU, RNN_RELU, Handler, Intercept
from gatedops.trace.names import RunningModules
from gatedops.trace.replay import Features, Replay, refuse_rnn
from gatedops.trace.running import place
from gatedops.trace.twin_bits import Cached, Packing
from gatedops.trace.watch import Watch
from gatedops.trace.wrappers import plain_path, unwrapped

# DataParallel and DistributedDataParallel put this before the keys of a state_dict.
_PARALLEL = "module."
_CHOICES = {"pool": ("feature", "value"), "batch_norm": ("value", "feature", "off"), "gate": ("hard", "soft")}


def gated_twin(
    model: nn.Module,
    value: nn.Module | Mapping[str, Tensor] | None = None,
    pool: str = "feature",
    batch_norm: str = "value",
    *,
    init: Init = "torch",
    gate: str = "hard",
    beta: float = 4.0,
    gain: float = 1.0,
    train_features: bool = False,
) -> GatedTwin:
    """Makes the gated network of any ReLU network: a value network with weights of its own takes the model's gates.

    For a trained net, ``gated_twin(net)`` is the papers' FLNPF. For an untrained one, ``gated_twin(net)`` is FRNPF(II),
    ``gated_twin(net, net)`` FRNPF(DI) and ``gated_twin(net, gate="soft", train_features=True)`` DLNPF
    (Lakshminarayanan & Singh 2020, arXiv 2006.10529).

    Args:
        model: the feature network; a copy of it is used. Its k-th ReLU call gives the k-th gate.
        value: weights of the value network, as a module of the same architecture or its state_dict, which is copied.
            None: every parameter is drawn anew, as `init` says.
        pool: a max-pool of the value network, of any kind, takes the input that is the largest in the "feature"
            network, or its own largest one ("value"). ``torch.max`` and ``amax`` along an axis are not replayed: they
            take the value network's own largest entry, with a warning.
        batch_norm: batch norm in the value network is its own ("value"), normalises by the mean and variance that the
            feature network's batch norm uses ("feature"), or is left out ("off").
        init: how weights are drawn if value is None. "torch": by the ``reset_parameters`` of each layer. "model": after
            that also by the methods in which the model itself draws its weights, such as ``init_weights()`` or
            transformers' ``_init_weights(module)`` (gatedops.trace.draw.METHODS); what only its constructor does cannot
            be repeated. A function: ``init(value_network)`` is called after the layers' ``reset_parameters``, without
            gradients. It finds NaN in each parameter that the layers did not draw, and a parameter that it leaves so is
            refused. Weights under spectral norm, weight norm, pruning or another parametrization are plain parameters
            at that time.
        gate: "hard", 1 where the feature pre-activation is > 0; or "soft", ``gain * sigmoid(beta * q)``.
        beta, gain: the constants of soft gates.
        train_features: whether the feature network learns too; only with soft gates, because no gradient flows through
            hard ones.

    Returns:
        A module with ``feature`` and ``value``, called like `model`.

    Raises:
        TypeError, ValueError: an argument has another form; the value weights do not fit; value is None and nothing
            draws a parameter, which the error names; init="model" and the model has no such method; a recurrent layer
            has ReLUs. When called: the model calls no ReLU, or the value network calls other ones; gradients are
            computed and a ReLU runs under torch.utils.checkpoint or in an autograd function.
    """
    require_model(model)
    _require_choices(pool, batch_norm, gate, beta, gain, train_features)
    _require_value(value, init)
    model = unwrapped(model)
    require_init(init, model)
    require_sizes(model)
    _require_replayable(model)
    network = _value_network(model, value, init)
    feature = _learning(_plain(copied(model)), train_features)
    return GatedTwin(feature, network, pool, batch_norm, (float(beta), float(gain)) if gate == "soft" else None)


class GatedTwin(nn.Module):
    """The module that :func:`gated_twin` returns; its state_dict has the model's keys after "feature." and "value.".

    A call runs the feature network and then the value network, whose k-th ReLU call gives its pre-activation times the
    k-th gate: exactly 0 where a hard gate is off. Activations other than ReLU are the value network's own. The feature
    network's layers behind its last ReLU change nothing; if it learns, DistributedDataParallel therefore needs
    find_unused_parameters=True. Parts of the value network under torch.utils.checkpoint would run a second time outside
    the call, without gates, so they are refused; use ``checkpoint(twin, x)``, which repeats the whole call.

    Args:
        feature, value: two networks of one architecture. The feature network learns if any of its parameters does.
        pool, batch_norm: as in :func:`gated_twin`.
        soft: (beta, gain) of soft gates, None for hard ones.
    """

    # Set once a call of the value network was watched for rectifiers that take no gates.
    _watched = False

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

    def forward(self, *args: Any, gates: GateBits | None = None, **kwargs: Any) -> Any:
        """The value network's output for the arguments of the model.

        Args:
            gates: the hard gates and max-pool choices of these rows, from :meth:`gates` or a
                :class:`gatedops.GateCache`; with them the feature network does not run.

        Raises:
            TypeError, ValueError: an argument or a layer does not fit; the error names it.
        """
        given = self._features(args, kwargs) if gates is None else self._cached(gates, args, kwargs)
        replay = Replay(self.value, given)
        if self._watched or torch.compiler.is_compiling():
            with self._intercept(self.value, replay):
                result = self.value(*args, **kwargs)
        else:
            result = self._watch_value(replay, args, kwargs)
        replay.require_all_used()
        return result

    def gates(self, *args: Any, **kwargs: Any) -> GateBits:
        """The hard gates of the feature network for these arguments, named as :func:`gatedops.record_gates` names them,
        and with pool="feature" the choices of its max-pools, as layers of kind "select", in call order.

        Raises:
            ValueError: the gates are soft; batch_norm is "feature"; the gates or choices of a layer cannot be packed.
        """
        self._require_packable("model")
        rows = _rows(args, kwargs)
        with RunningModules(self.feature) as modules, torch.no_grad():
            packing = Packing(rows, modules)
            with self._intercept(self.feature, packing):
                self.feature(*args, **kwargs)
        return packing.bits()

    def _watch_value(self, replay: Replay, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The value network's output in the first call. Warns if rectifiers in it ran without taking gates."""
        mode = self._intercept(self.value, replay, watched=True)
        replay.watch = Watch(lambda: place(self.value), mode.is_constant)
        with replay.watch, mode:
            result = self.value(*args, **kwargs)
        self._watched = True
        if replay.watch.missed:
            listed = ", ".join(replay.watch.missed)
            warnings.warn(
                "value: these rectifiers take no gates of the feature network and use the value network's own:"
                f" {listed}; call F.relu in their place",
                stacklevel=4,
            )
        return result

    def _features(self, args: tuple, kwargs: dict[str, Any]) -> Features:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_features):
            features = Features(self.feature, self.soft)
            with self._intercept(self.feature, features):
                first_of_two(self.feature, args, kwargs)
        if not features.counts()[0]:
            raise ValueError("model: calls no ReLU, so there are no gates for its twin; give a model that calls F.relu")
        return features

    def _cached(self, gates: GateBits, args: tuple, kwargs: dict[str, Any]) -> Cached:
        if not isinstance(gates, GateBits):
            raise TypeError(f"gates: got {type(gates).__name__}, needs a GateBits, such as cache[rows]")
        self._require_packable("gates")
        rows = _rows(args, kwargs)
        if gates.n != rows:
            raise ValueError(f"gates: has {gates.n} rows, the inputs have {rows}; take theirs: cache[rows]")
        device = next(self.value.parameters(), gates.words).device
        if gates.device != device:
            raise ValueError(f"gates: is on {gates.device}, the value network is on {device}; move one of them")
        return Cached(gates)

    def _require_packable(self, name: str) -> None:
        """Raises ValueError if bits do not hold all that the value network takes."""
        if self.soft is not None:
            raise ValueError(
                f"{name}: the gates of this twin are soft, which cannot be stored as bits; use gate='hard'"
            )
        if self.batch_norm == "feature":
            raise ValueError(
                f"{name}: batch_norm='feature' takes statistics that bits do not hold; use batch_norm='value' or 'off'"
            )

    def _intercept(self, network: nn.Module, side: Features | Packing | Replay, watched: bool = False) -> Intercept:
        """The mode for one of the two networks."""
        handlers: dict[str, Handler] = {RELU: side.relu, FUSED_RELU: side.fused_relu, RNN_RELU: side.rnn_relu}
        if self.pool == "feature":
            handlers[MAX_POOL] = handlers[OTHER_POOL] = side.max_pool
        if self.batch_norm == "feature" and not isinstance(side, Packing):
            handlers[BATCH_NORM] = side.batch_norm
        if self.batch_norm == "off" and isinstance(side, Replay):
            handlers[BATCH_NORM] = side.no_batch_norm
        if isinstance(side, Replay):
            if watched:
                handlers = {kind: partial(side.known, handler) for kind, handler in handlers.items()}
            return Intercept(network, handlers, self._unreplayed(side), fresh=False)
        return Intercept(network, handlers, fresh=False)

    def _unreplayed(self, replay: Replay) -> Callable[[Any], None]:
        """Returns the function that sees the calls that are not replayed."""

        def see(func: Any) -> None:
            if replay.watch is not None:
                replay.watch.enter(func)
            if self.pool == "feature":
                replay.other_maximum(func)
            if self.batch_norm != "value":
                replay.other_batch_norm(func)

        return see

    def extra_repr(self) -> str:
        gate = "hard" if self.soft is None else f"soft, beta={self.soft[0]}, gain={self.soft[1]}"
        return f"gate={gate}, pool={self.pool}, batch_norm={self.batch_norm}"


def _require_choices(pool: str, batch_norm: str, gate: str, beta: float, gain: float, train_features: bool) -> None:
    for name, given in (("pool", pool), ("batch_norm", batch_norm), ("gate", gate)):
        require_option(name, given, _CHOICES[name], listed=True)
    for name, number in (("beta", beta), ("gain", gain)):
        positive_number(number, name)
    if train_features and gate == "hard":
        raise ValueError("train_features: no gradient flows through hard gates; use gate='soft'")


def _require_value(value: Any, init: Init) -> None:
    if value is not None and not isinstance(value, (nn.Module, Mapping)):
        raise TypeError(f"value: got {type(value).__name__}, needs a module, a state_dict or None")
    if value is not None and init != "torch":
        raise ValueError("init: says how weights are drawn, and value gives them; leave one of them out")


def _rows(args: tuple, kwargs: dict[str, Any]) -> int:
    """The number of inputs in the arguments of a model."""
    first = next((leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() == 0:
        raise ValueError("x: the arguments hold no tensor (n, ...); give the inputs as a tensor with one input a row")
    return first.shape[0]


def _value_network(model: nn.Module, value: Any, init: Init) -> nn.Module:
    """Returns a copy of the model, all of it trainable, with the given or new weights."""
    network = _learning(_plain(copied(model)), True)
    if value is None:
        draw_anew(network, init)
        return _learning(network, True)
    state = unwrapped(value).state_dict() if isinstance(value, nn.Module) else value
    names = [plain_path(name) for name in state]
    if names and all(name.startswith(_PARALLEL) for name in names) and not hasattr(network, _PARALLEL[:-1]):
        names = [name.removeprefix(_PARALLEL) for name in names]
    try:
        network.load_state_dict(dict(zip(names, state.values(), strict=True)))
    except RuntimeError as error:
        raise ValueError(
            f"value: does not fit the model: {error}; give weights of a model of the same architecture"
        ) from error
    return network


def _plain(network: nn.Module) -> nn.Module:
    """Takes the wrappers off the modules in a network, because modes do not see inside compiled code."""
    for module in network.modules():
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child))
    return network


def _learning(network: nn.Module, learns: bool) -> nn.Module:
    for parameter in network.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(learns)
    return network


def _require_replayable(model: nn.Module) -> None:
    """Raises ValueError, which names the layer, if a recurrent layer has ReLUs inside or a layer is quantized."""
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn") and ".quantized" in type(module).__module__:
            raise ValueError(
                f"model: {path or 'the model'} ({type(module).__name__}) is quantized, so its weights cannot be drawn"
                " or trained; take the twin of the model before it is quantized"
            )
        if isinstance(module, (nn.RNN, nn.RNNCell)) and "relu" in str(module.nonlinearity).lower():
            refuse_rnn("model", path or "the model")
