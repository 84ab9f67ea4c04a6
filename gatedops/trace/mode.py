"""Seeing the calls of any torch model: a TorchFunctionMode that hands those of one kind to a handler.

A mode sees torch's functions whoever calls them (modules, functional forms, methods, torch's own layers) and in call
order, without capturing a graph. What it does not see: TorchScript, and operations inside compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

RELU = "relu"
FUSED_RELU = "fused ReLU"
MAX_POOL = "max_pool2d"
BATCH_NORM = "batch_norm"

_GATED_LINEAR, _GATE_RELU = torch.ops.gatedops.gated_linear_relu.default, torch.ops.gatedops.gate_relu.default

# The functions of each kind.
KINDS: dict[Any, str] = {
    **dict.fromkeys([F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_], RELU),
    **dict.fromkeys([aten.relu, aten.relu.default, aten.relu_, aten.relu_.default], RELU),
    **dict.fromkeys([F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d], MAX_POOL),
    **dict.fromkeys([aten.max_pool2d, aten.max_pool2d.default], MAX_POOL),
    **dict.fromkeys([_GATED_LINEAR, _GATE_RELU], FUSED_RELU),
    F.batch_norm: BATCH_NORM,
}

_IN_PLACE = frozenset([torch.relu_, Tensor.relu_, aten.relu_, aten.relu_.default])

Handler = Callable[[Any, tuple, dict[str, Any]], Any]


class Intercept(TorchFunctionMode):
    """Gives each call of a kind that has a handler to ``handler(func, args, kwargs)``, whose result takes the call's
    place; every other call goes through.

    Args:
        handlers: by kind: RELU, FUSED_RELU (ours, whose results are (activation, words)), MAX_POOL, BATCH_NORM.
        otherwise: ``otherwise(func)`` sees every call that no handler takes.
    """

    def __init__(self, handlers: Mapping[str, Handler], otherwise: Callable[[Any], None] | None = None) -> None:
        super().__init__()
        self._handlers = dict(handlers)
        self._otherwise = otherwise

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        kind = KINDS.get(func)
        if kind is not None and kind in self._handlers:
            return self._handlers[kind](func, args, kwargs)
        if self._otherwise is not None:
            self._otherwise(func)
        return func(*args, **kwargs)


def call_input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The tensor that a function of one of the kinds works on."""
    return args[0] if args else kwargs["input"]


def is_in_place(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a ReLU call overwrites its pre-activation."""
    return func in _IN_PLACE or bool(args[1] if len(args) > 1 else kwargs.get("inplace", False))
