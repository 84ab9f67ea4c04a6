"""Drawing all weights of a network anew, and finding those that nothing draws."""

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

# Methods by which a model draws its weights, in the order in which a module is searched for them: without an argument,
# or for one module at a time.
METHODS = (
    *("init_weights", "initialize_weights", "_init_weights", "_initialize_weights"),
    *("init_parameters", "initialize_parameters", "_init_parameters"),
)
_RESETS = ("reset_parameters", "_reset_parameters")
_MODULES = ("module", "m", "mod", "layer")  # names of an argument that is a module
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
    """Draws every parameter of a network, from torch's default generator. Buffers are as before, unless what draws sets
    them, as batch norms do.

    Each layer's reset_parameters comes first, inner layers before outer ones. Then, with "model", come the methods
    by which the model and the modules in it draw their weights (METHODS), in the same order, as constructors do; with
    a function, that function of the network. Reparametrized weights (spectral norm, weight norm, pruning ...) are drawn
    as the plain weights that they are made of, and are reparametrized again. A network that lies on the device "meta"
    has no numbers, and nothing is drawn.

    Raises:
        ValueError: a parameter that none of this draws, by name; methods of the model that draw nothing; a network of
            which a part lies on the device "meta".
    """
    are_meta = {name: parameter.is_meta for name, parameter in network.named_parameters()}
    if are_meta and all(are_meta.values()):
        return
    for name, is_meta in are_meta.items():
        if is_meta:
            raise ValueError(f"model: {name} is on the device meta and has no numbers; load the model's weights first")
    shared = _shared(network)
    with torch.no_grad():
        with taken_off(network) as others:  # others: modules that reparametrize, which have weights of their own
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
    """Makes a parameter NaN: what is still NaN later was not drawn."""
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
    """Names of parameters that are one and the same."""
    names: dict[int, set[str]] = defaultdict(set)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names[id(parameter)].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


# --- the model's own methods ------------------------------------------------------------------------------------


def _draw_by_methods(network: nn.Module) -> None:
    before = [parameter.clone() for parameter in network.parameters()]
    for module in network.modules():
        vars(module).pop("_is_hf_initialized", None)  # transformers' mark of what its methods are to leave alone
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
    """The outermost modules of somebody's own class that hold weights and offer no method to draw them."""
    if _method(module) is not None or next(module.parameters(), None) is None:
        return
    is_torchs = type(module).__module__.startswith(_TORCH)
    if is_torchs and (path or next(module.children(), None) is not None):
        for name, child in module.named_children():
            yield from _without_methods(f"{path}.{name}" if path else name, child)
    else:
        yield path, module


def _method(module: nn.Module) -> Callable[..., Any] | None:
    """The first of METHODS that a module has and that can be called with nothing, or with a module."""
    found = (getattr(module, name, None) for name in METHODS)
    return next((method for method in found if callable(method) and _required(method) in ([], ["module"])), None)


def _call(method: Callable[..., Any], module: nn.Module) -> None:
    """Calls a method, or calls it with each module in its own."""
    try:
        module.apply(method) if _required(method) else method()
    except Exception as error:
        name = getattr(method, "__name__", "")
        raise ValueError(
            f"init: {name} of {type(module).__name__} raises {type(error).__name__}: {error}; give init=, a function"
            " that does to the value network what the model's constructor does to its weights"
        ) from error


def _required(method: Callable[..., Any]) -> list[str] | None:
    """The arguments that a method cannot do without, those that are modules by their names or types as "module"; None
    where they are not known."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    return ["module" if p.name in _MODULES or "Module" in str(p.annotation) else p.name for p in needed]


def _called(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"
