"""Draws all weights of a network anew, and finds those that nothing draws."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.trace.reparametrized import taken_off

Init = str | Callable[[nn.Module], Any]

# A model draws its weights by methods of these names, which take no argument or one module. A module is searched for
# them in this order.
METHODS = (
    *("init_weights", "initialize_weights", "_init_weights", "_initialize_weights"),
    *("init_parameters", "initialize_parameters", "_init_parameters"),
)
_RESETS = ("reset_parameters", "_reset_parameters")
# An argument of one of these names is a module.
_MODULES = ("module", "m", "mod", "layer")
_TORCH = ("torch.", "gatedops.")


def require_init(init: Any, model: nn.Module) -> None:
    """Raises TypeError or ValueError unless `init` says how weights of this model are drawn."""
    if not isinstance(init, str):
        if not callable(init):
            raise TypeError(
                f"init: got {type(init).__name__}, needs 'torch', 'model' or a function of the value network"
            )
        return
    if init not in ("torch", "model"):
        raise ValueError(f"init: got {init!r}, needs 'torch', 'model' or a function of the value network")
    if init == "torch":
        return
    none = not any(_method(module) for module in model.modules())
    for path, module in [("", model)] if none else _without_methods("", model):
        raise ValueError(
            f"init: 'model' needs a method that draws the weights, such as init_weights(), and {_called(path, module)}"
            f" has none of {', '.join(METHODS)}; give init=, a function that does to the value network what the"
            " model's constructor does to its weights"
        )


def draw_anew(network: nn.Module, init: Init) -> None:
    """Draws every parameter of a network, from torch's default generator. Buffers keep their values, unless a method
    that draws sets them, as in batch norms.

    Each layer's reset_parameters is called first, inner layers before outer ones. Then, if init is "model", the methods
    by which the model and its modules draw their weights (METHODS) are called in the same order, which is that of
    constructors; if init is a function, it is called with the network. Reparametrized weights (spectral norm, weight
    norm, pruning ...) are drawn as the plain weights that they are made of, and are then reparametrized again. A
    network on the device "meta" has no numbers, so it is left alone.

    Raises:
        ValueError: nothing draws a parameter, which the error names; the model's methods draw no parameter; a part of
            the network, but not all of it, lies on the device "meta".
    """
    are_meta = {name: parameter.is_meta for name, parameter in network.named_parameters()}
    if are_meta and all(are_meta.values()):
        return
    for name, is_meta in are_meta.items():
        if is_meta:
            raise ValueError(f"model: {name} is on the device meta and has no numbers; load the model's weights first")
    shared = _shared(network)
    with torch.no_grad():
        # `others` are the modules that reparametrize; they may have weights of their own.
        with taken_off(network) as others:
            for parameter in chain(network.parameters(), others.parameters()):
                _spoil(parameter)
            for module in reversed([*network.modules(), *others.modules()]):
                _reset(module)
            if init == "model":
                _draw_by_methods(network)
            elif callable(init):
                init(network)
        _require_drawn(network)
    if _shared(network) != shared:
        raise ValueError(
            "value: drawing new weights takes apart weights that layers share; give value=, such as a second model"
        )


def _spoil(parameter: Tensor) -> None:
    """Fills a parameter with NaN: an entry that is still NaN later was not drawn."""
    if parameter.is_floating_point() or parameter.is_complex():
        parameter.fill_(float("nan"))


def _reset(module: nn.Module) -> None:
    for name in _RESETS:
        method = getattr(module, name, None)
        if callable(method) and _required(method) == []:
            method()
            return


def _require_drawn(network: nn.Module) -> None:
    owners = dict(network.named_modules())
    for name, parameter in network.named_parameters():
        owner = owners[name.rpartition(".")[0]]
        if not parameter.is_floating_point() and not parameter.is_complex():
            raise ValueError(
                f"value: None draws new weights, but {name}, of {type(owner).__name__}, is {parameter.dtype}, which is"
                " not drawn; make it a buffer, or give value=, such as a second model"
            )
        if not bool(parameter.isnan().any()):
            continue
        raise ValueError(
            f"value: None draws new weights, but nothing draws {name}, of {type(owner).__name__}; give init=, a"
            " function of the value network that draws it, or value=, such as a second model"
        )


def _shared(network: nn.Module) -> set[frozenset[str]]:
    """The groups of names that stand for the same parameter."""
    names: dict[int, set[str]] = defaultdict(set)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


# --- the model's own methods ------------------------------------------------------------------------------------


def _draw_by_methods(network: nn.Module) -> None:
    before = [parameter.clone() for parameter in network.parameters()]
    for module in network.modules():
        # transformers marks the modules that its methods leave alone; we take the mark off.
        vars(module).pop("_is_hf_initialized", None)
    for module in reversed(list(network.modules())):
        method = _method(module)
        if method is not None:
            _call(method, module)
    if all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)):
        raise ValueError(
            "init: the model's own methods draw none of its weights; give init=, a function that does to the value"
            " network what the model's constructor does to its weights"
        )


def _without_methods(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the outermost modules that are not torch's or ours, hold weights and have no method to draw them."""
    if _method(module) is not None or next(module.parameters(), None) is None:
        return
    is_torchs = type(module).__module__.startswith(_TORCH)
    if is_torchs and (path or next(module.children(), None) is not None):
        for name, child in module.named_children():
            yield from _without_methods(f"{path}.{name}" if path else name, child)
    else:
        yield path, module


def _method(module: nn.Module) -> Callable[..., Any] | None:
    """The first of METHODS that a module has and that can be called without an argument or with a module."""
    found = (getattr(module, name, None) for name in METHODS)
    return next((method for method in found if callable(method) and _required(method) in ([], ["module"])), None)


def _call(method: Callable[..., Any], module: nn.Module) -> None:
    """Calls a method, with each module inside its module if it takes one."""
    try:
        module.apply(method) if _required(method) else method()
    except Exception as error:
        name = getattr(method, "__name__", "")
        raise ValueError(
            f"init: {name} of {type(module).__name__} raises {type(error).__name__}: {error}; give init=, a function"
            " that does to the value network what the model's constructor does to its weights"
        ) from error


def _required(method: Callable[..., Any]) -> list[str] | None:
    """The names of the arguments that a method needs; an argument that is a module, by its name or type, is called
    "module". None if they are not known."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    return ["module" if p.name in _MODULES or "Module" in str(p.annotation) else p.name for p in needed]


def _called(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"
