"""The tensors that autograd keeps of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def saved_tensors(function: Callable[[], Any]) -> tuple[list[Tensor], Any]:
    """What autograd keeps of the call, and the result, which has to be alive then."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function()
    return saved, result
