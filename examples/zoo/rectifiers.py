"""Reads the gates of one forward from torch's dispatcher, which is another way than the library's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from network import call
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_RELUS = ("relu", "clamp", "clamp_min")
_PIECEWISE = ("leaky_relu", "hardtanh", "clamp")
_OTHERS = ("leaky_relu", "hardtanh", "elu", "threshold")


@dataclass
class Seen:
    """The masks of the activations in call order, and the names of calls of other functions with a kink."""

    gates: list[Tensor] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def gates_of(name: str, args: Any, kwargs: Any, piecewise: bool) -> tuple[Tensor, float] | None:
    """Returns the gates of an activation and its slope where they are off, or None if the call is not an activation.

    Args:
        name: that of the call, without the underscore of a call in place.
        piecewise: LeakyReLU, hardtanh and clamps with two bounds, such as ReLU6, are activations too.
    """
    q, first, second = (*args, None, None)[:3]
    low, high = kwargs.get("min", first), kwargs.get("max", second)
    # A clamp is a ReLU only with the lower bound 0 and no upper bound.
    if name == "relu" or (name in _RELUS and low == 0 and high is None):
        return q > 0, 0.0
    if not piecewise or name not in _PIECEWISE:
        return None
    if name == "leaky_relu":
        return q > 0, 0.01 if first is None else first
    if name == "hardtanh":
        low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
    return None if low is None or high is None else ((q > low) & (q < high), 0.0)


class _Recording(TorchDispatchMode):
    def __init__(self, seen: Seen, piecewise: bool) -> None:
        super().__init__()
        self._seen, self._piecewise = seen, piecewise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__.rstrip("_"), kwargs or {}
        found = gates_of(name, args, kwargs, self._piecewise)
        if found is not None:
            self._seen.gates.append(found[0])
        elif name in _OTHERS:
            self._seen.others.append(name)
        return func(*args, **kwargs)


def seen_by_dispatch(model: nn.Module, example: Any, piecewise: bool = False) -> Seen:
    """Returns what one forward without gradients calls; `piecewise` as in gates_of."""
    seen, fast = Seen(), torch.backends.mha.get_fastpath_enabled()
    # The fast path would hide the ReLU of torch's transformer layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Recording(seen, piecewise):
            call(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return seen
