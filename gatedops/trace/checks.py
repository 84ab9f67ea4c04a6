"""Checks a model and its data for the tools of this package, and leaves a model's modes as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_WITHOUT_SIZE = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def require_model(model: Any, name: str = "model") -> None:
    """Raises TypeError if the model is not a module, and ValueError if it is TorchScript."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: got {type(model).__name__}, needs a torch.nn.Module")
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"at {path!r} " if path else ""
            raise ValueError(f"{name}: is TorchScript {where}and cannot be looked into; use the module it is from")


def require_sizes(model: nn.Module) -> None:
    """Raises ValueError if the size of a parameter or buffer, which the error names, is not known yet (lazy layers)."""
    for path, parameter in chain(model.named_parameters(), model.named_buffers()):
        if isinstance(parameter, _WITHOUT_SIZE):
            raise ValueError(f"model: {path} of a lazy layer has no size yet; call the model on a batch first")


def devices_of(model: nn.Module) -> frozenset[torch.device]:
    """The devices of a model's parameters and buffers."""
    return frozenset(tensor.device for tensor in chain(model.parameters(), model.buffers()))


def require_device(devices: frozenset[torch.device], inputs: Tensor, name: str) -> None:
    """Raises ValueError if a model on these devices has no tensor on the device of the inputs."""
    if devices and inputs.device not in devices:
        listed = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{name}: is on {inputs.device}, the model is on {listed}; move one of them")


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Sets training or evaluation mode while entered; afterwards each module has its own mode again.

    Only the flags change: a model's train() and eval() may do more, and that would not be undone.
    """
    before = {module: module.training for module in model.modules()}
    try:
        for module in before:
            module.training = training
        yield
    finally:
        for module, training in before.items():
            module.training = training


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Sets evaluation mode while entered; afterwards each module has its own mode again."""
    return in_mode(model, training=False)


def uncompiled() -> AbstractContextManager[Any]:
    """Runs compiled models as they were written, because modes and torch.func do not see inside compiled code."""
    # If it was never imported, nothing is compiled. Importing it takes a second.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
