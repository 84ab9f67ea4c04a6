"""Makes weights that torch computes from others (spectral norm, weight norm, orthogonal, pruning) plain weights for a
while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm, spectral_norm, weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# torch begins a new spectral norm with this many power iterations.
_POWER_ITERATIONS = 15


@contextmanager
def taken_off(network: nn.Module) -> Iterator[nn.ModuleList]:
    """Gives the modules that compute weights from others (torch.nn.utils.parametrize). While entered, those weights are
    plain parameters, which may be drawn. Afterwards they are computed again. They then equal what was drawn if that is
    possible (weight norm); otherwise they are what the network's constructor would make of it (spectral norm)."""
    others = nn.ModuleList()
    back: list[Callable[[], Any]] = []
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            back += _take_off_parametrizations(module, others)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                back.append(partial(spectral_norm, module, hook.name, hook.n_power_iterations, hook.eps, hook.dim))
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
                back.append(partial(weight_norm, module, hook.name, hook.dim))
            elif isinstance(hook, BasePruningMethod):
                back.append(_take_off_pruning(module, hook))
    yield others
    for put_back in back:
        put_back()


def _take_off_parametrizations(module: nn.Module, others: nn.ModuleList) -> list[Callable[[], Any]]:
    # torch keeps the parametrizations of a module in its class, and a copy of the module shares that class.
    own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(type(module).__name__, type(module).__bases__, own)
    back: list[Callable[[], Any]] = []
    for name, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
        others.extend(steps)
        back.append(partial(_put_back, module, name, list(steps), bool(steps.unsafe)))
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return back


def _put_back(module: nn.Module, name: str, steps: list[nn.Module], unsafe: bool) -> None:
    for step in steps:
        parametrize.register_parametrization(module, name, step, unsafe=unsafe)
    # Buffers, such as the singular vectors of a spectral norm, must fit the new weight.
    if any(True for step in steps for _ in step.buffers()):
        modes = [step.training for step in steps]
        for _ in range(_POWER_ITERATIONS):
            for step in steps:
                step.train()
            getattr(module, name)
        for step, mode in zip(steps, modes, strict=True):
            step.train(mode)


def _take_off_pruning(module: nn.Module, hook: BasePruningMethod) -> Callable[[], Any]:
    name = hook._tensor_name
    original = module._parameters.pop(f"{name}_orig")
    delattr(module, name)
    module.register_parameter(name, original)

    def put_back() -> None:
        module.register_parameter(f"{name}_orig", module._parameters.pop(name))
        with torch.no_grad():
            setattr(module, name, hook.apply_mask(module))

    return put_back
