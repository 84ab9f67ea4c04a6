"""What is running around a call, read from Python's stack: the module, and whether it will run a second time."""

from __future__ import annotations

import sys
from types import FrameType

import torch
import torch.utils.checkpoint
from torch import nn

from gatedops.trace.names import call_name

_CHECKPOINT = torch.utils.checkpoint.__name__
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
_OURS = ("gatedops.", "torch._library.")  # ops with gradients of their own, whose gates are inside them


def name_of_call(model: nn.Module, op: str) -> str:
    """The name of a call of `op` made now: the path of the module of the model that makes it (names.call_name)."""
    path, module = _running(model)
    return op if module is None else call_name(path, module, op)


def place(model: nn.Module) -> str:
    """The path of the module of the model that runs now."""
    return _running(model)[0] or "the model"


def rerun_by(outermost: str) -> str | None:
    """What runs the present call inside an autograd function, whose backward will not repeat what a mode does here:
    "torch.utils.checkpoint", or the name of another function; None where nothing does.

    Args:
        outermost: the name of the Python module whose frame ends the search.
    """
    if torch.compiler.is_compiling():  # a compiled graph holds what the mode does, in its backward too
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:  # at each ReLU: so without a generator
        name = frame.f_globals.get("__name__")
        if frame.f_code is _APPLY:
            function = frame.f_locals["cls"]
            if function.__module__ != _CHECKPOINT and not function.__module__.startswith(_OURS):
                return str(function.__name__)
        elif name == _CHECKPOINT:
            return _CHECKPOINT
        elif name == outermost:
            return None
        frame = frame.f_back
    return None


def _running(model: nn.Module) -> tuple[str, nn.Module | None]:
    if torch.compiler.is_compiling():
        return "", None
    paths = {id(module): path for path, module in model.named_modules()}
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and id(module) in paths:
            return paths[id(module)], module
        frame = frame.f_back
    return "", None
