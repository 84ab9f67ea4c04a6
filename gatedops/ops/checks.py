"""Argument checks that the wrappers of all op families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops import devices


def require_tensor(value: Any, name: str) -> None:
    """Raises TypeError unless value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a tensor")


def require_option(name: str, given: Any, allowed: Sequence[str], *, listed: bool = False) -> None:
    """Raises ValueError unless the option is allowed. The message joins the allowed values by "or", or lists them."""
    if given not in allowed:
        needs = f"one of {allowed}" if listed else " or ".join(map(repr, allowed))
        raise ValueError(f"{name}: got {given!r}, needs {needs}")


def require_precision(dtype: torch.dtype, device: torch.device, name: str) -> None:
    """Raises TypeError if the device cannot compute in this dtype."""
    if dtype == torch.float64 and not devices.has_float64(device):
        raise TypeError(f"{name}: got torch.float64, which {device} does not have: use torch.float32")


def require_float64(device: torch.device, name: str) -> None:
    """Raises ValueError if the device cannot compute in float64, which the function needs."""
    if not devices.has_float64(device):
        raise ValueError(f"{name}: is on {device}, which has no float64, but needs it: move it with .to('cpu')")


def require_dtype(dtype: Any, name: str, allowed: Sequence[torch.dtype]) -> None:
    """Raises TypeError unless dtype is one of those allowed."""
    if dtype not in allowed:
        raise TypeError(f"{name}: got {dtype}, needs {' or '.join(str(d) for d in allowed)}")


def require_device(device: Any, name: str) -> None:
    """Raises ValueError if torch cannot use the device here."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name}: got {device!r}, needs a device of torch, for example 'cpu' or 'cuda:0'") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: got {device}, but torch sees no CUDA GPU here: use 'cpu'")
    if found.type not in ("cpu", "cuda", "meta"):
        try:
            torch.empty(0, device=found)
        except (AssertionError, ImportError, RuntimeError):
            raise ValueError(f"{name}: got {device}, which torch cannot use here: use 'cpu'") from None
