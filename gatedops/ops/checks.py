"""Argument checks shared by the wrappers of all op families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops.backends import supports, unsupported_device


def require_tensor(value: Any, name: str) -> None:
    """Raises TypeError unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a tensor")


def require_supported(tensor: Tensor, op: str, name: str) -> None:
    """Raises ValueError where the op has no kernel for the tensor's device."""
    if not supports(tensor.device, op):
        raise ValueError(f"{name}: {unsupported_device(tensor.device, op)}")


def require_dtype(dtype: Any, name: str, allowed: Sequence[torch.dtype]) -> None:
    """Raises TypeError unless dtype is one of those allowed."""
    if dtype not in allowed:
        raise TypeError(f"{name}: got {dtype}, needs {' or '.join(str(d) for d in allowed)}")


def require_device(device: Any, name: str) -> None:
    """Raises ValueError where torch cannot use the device here."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: got {device}, but torch sees no CUDA GPU here: use 'cpu'")
