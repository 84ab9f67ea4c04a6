"""Finds the tensors that autograd keeps of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def saved_tensors(function: Callable[[], Any]) -> tuple[list[Tensor], Any]:
    """Returns what autograd keeps of the call, and the result, which must be alive while it is kept."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        result = function()
    return saved, result
