"""Reads a ReLU network as a chain: its layers in the order they run, and which of them a gate follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from gatedops.nn.gate import Gate
from gatedops.trace.checks import require_model
from gatedops.trace.names import Numbering

GATED = (nn.Linear, nn.Conv2d)
ACTIVATIONS = (nn.ReLU, Gate)
# These layers are linear and have no parameters and no gates.
PLAIN = (nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d)

_UNDERSTOOD = "nn.Linear, nn.Conv2d, nn.ReLU, nn.Flatten, nn.AvgPool2d and nn.AdaptiveAvgPool2d"
_INSTEAD = "gatedops.gated_twin takes any ReLU network"


@dataclass(frozen=True)
class Chain:
    """Describes a chain.

    Args:
        gated: for each of the :func:`chain_layers`, whether a ReLU follows it.
        names: the names of the ReLUs, as :func:`gatedops.record_gates` gives them.
    """

    gated: tuple[bool, ...]
    names: tuple[str, ...]


def chain_layers(network: nn.Sequential) -> list[nn.Module]:
    """The modules of a chain in the order they run, without activations and nn.Identity."""
    return [module for _, module in _leaves(network) if not isinstance(module, (*ACTIVATIONS, nn.Identity))]


def pre_activation(layer: nn.Module, x: Tensor) -> Tensor:
    """Computes ``W x + b`` of a gated layer, also if :func:`gatedops.fuse_relu` has made its ReLU a part of it."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, layer.weight, layer.bias)
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight, layer.bias)


def chain_of(network: Any, name: str) -> Chain:
    """Describes the chain of a network; errors call the network `name`.

    Raises:
        TypeError: the network is not a module.
        ValueError: the network is not an nn.Sequential (of nn.Sequentials) of the modules understood, has no ReLU, or
            has a ReLU that does not follow right after a layer.
    """
    require_model(network, name)
    if type(network) is not nn.Sequential:
        raise ValueError(f"{name}: is a {type(network).__name__}, needs an nn.Sequential; {_INSTEAD}")
    gated: list[bool] = []
    names: list[str] = []
    numbering = Numbering()
    # A module that runs again is named after its first place.
    first: dict[nn.Module, str] = {}
    layer_before = False
    for path, module in _leaves(network):
        if type(module) in ACTIVATIONS:
            if not layer_before:
                raise ValueError(f"{name}: the ReLU {path!r} does not follow a linear layer or convolution; {_INSTEAD}")
            gated[-1] = True
            names.append(numbering.unique(first.setdefault(module, path)))
        elif type(module) in (*GATED, *PLAIN):
            if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"{name}: {path!r} is {module}, needs to flatten all axes of an input")
            gated.append(False)
        elif type(module) is not nn.Identity:
            raise ValueError(f"{name}: {path!r} is {type(module).__name__}, not one of {_UNDERSTOOD}; {_INSTEAD}")
        layer_before = type(module) in GATED
    if not names:
        raise ValueError(f"{name}: has no ReLU, so there are no gates; give a network with nn.ReLU")
    return Chain(tuple(gated), tuple(names))


def cut_behind_last_gate(network: nn.Sequential) -> bool:
    """Removes, in place, the modules behind the last activation of a network; returns whether it has an activation."""
    for key in reversed(list(network._modules)):
        module = network._modules[key]
        if isinstance(module, ACTIVATIONS) or (isinstance(module, nn.Sequential) and cut_behind_last_gate(module)):
            return True
        del network._modules[key]
    return False


def without_activations(network: nn.Sequential) -> None:
    """Replaces each activation, in place, by nn.Identity, so that the network is linear."""
    for key, module in network._modules.items():
        if isinstance(module, ACTIVATIONS):
            network._modules[key] = nn.Identity()
        elif isinstance(module, nn.Sequential):
            without_activations(module)


def _leaves(network: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for key, module in network._modules.items():
        if type(module) is nn.Sequential:
            yield from _leaves(module, f"{prefix}{key}.")
        elif module is not None:
            yield f"{prefix}{key}", module
