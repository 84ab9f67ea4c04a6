"""Reads the gates of one forward from torch's dispatcher, which is another way than the library's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from network import call
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_RELUS = ("relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_min_")
_OTHERS = ("leaky_relu", "leaky_relu_", "hardtanh", "hardtanh_", "elu", "elu_", "threshold", "threshold_")


@dataclass
class Seen:
    """The masks of the ReLU calls in call order, and the names of calls of other functions with a kink."""

    gates: list[Tensor] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class _Recording(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _RELUS and self._is_relu(name, args, kwargs):
            self._seen.gates.append(args[0] > 0)
        elif name in _OTHERS:
            self._seen.others.append(name.rstrip("_"))
        return func(*args, **kwargs)

    @staticmethod
    def _is_relu(name: str, args: Any, kwargs: Any) -> bool:
        """Whether a call computes max(q, 0); a clamp does so only with the lower bound 0 and no upper bound."""
        low, high = (*args[1:], None, None)[:2]
        return name.startswith("relu") or (kwargs.get("min", low) == 0 and kwargs.get("max", high) is None)


def seen_by_dispatch(model: nn.Module, example: Any) -> Seen:
    """Returns what one forward without gradients calls."""
    seen, fast = Seen(), torch.backends.mha.get_fastpath_enabled()
    # The fast path would hide the ReLU of torch's transformer layers.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Recording(seen):
            call(model, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return seen
