"""Reads from Python's stack which module makes a call, and whether the call will run a second time."""

from __future__ import annotations

import sys
from types import FrameType

import torch
import torch.utils.checkpoint
from torch import nn

from gatedops.trace.names import call_name

_CHECKPOINT = torch.utils.checkpoint.__name__
_APPLY = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
# Autograd functions of these packages belong to our own ops, which keep their gates for the backward.
_OURS = ("gatedops.", "torch._library.")


def name_of_call(model: nn.Module, op: str) -> str:
    """The name of a call of `op` made now: the path of the module of the model that makes it (names.call_name)."""
    path, module = _running(model)
    return op if module is None else call_name(path, module, op)


def place(model: nn.Module) -> str:
    """The path of the module of the model that runs now."""
    return _running(model)[0] or "the model"


def rerun_by(outermost: str) -> str | None:
    """Names the autograd function that the present call runs inside: "torch.utils.checkpoint", or the name of another
    function; None if there is none. The backward of such a function does not repeat what a mode does in its forward.

    Args:
        outermost: the name of the Python module whose frame ends the search.
    """
    # A compiled graph holds what the mode does, in its backward too.
    if torch.compiler.is_compiling():
        return None
    frame: FrameType | None = sys._getframe(1)
    # This loop runs at each ReLU, so it does without a generator, which would be slower.
    while frame is not None:
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
