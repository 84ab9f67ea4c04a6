"""Checks the arguments of the statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gate_args import require_gate_bits
from gatedops.gatebits import GateBits, require_same_layers

_LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def require_gates(bits: Any, name: str = "bits") -> None:
    """Raises TypeError or ValueError unless bits is a GateBits of at least one input."""
    require_gate_bits(bits, name)
    if bits.n == 0:
        raise ValueError(f"{name}: has no inputs, needs the gates of at least one input")


def require_same_inputs(a: GateBits, b: GateBits, a_name: str, b_name: str) -> None:
    """Raises ValueError unless a and b can be two checkpoints' gates of the same inputs."""
    require_same_layers(a, b, a_name, b_name)
    if a.n != b.n:
        raise ValueError(f"{a_name}: has {a.n} inputs, {b_name} has {b.n}; give both the same inputs in the same order")


def labels_of(labels: Any, n: int | None) -> Tensor:
    """Labels of n inputs (None: of any number) as an int64 tensor on the CPU, with at least two classes."""
    try:
        given = as_tensor(labels, "labels") if isinstance(labels, np.ndarray) else torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"labels: got {type(labels).__name__}, needs integers, one for each input") from None
    if given.dtype not in _LABELS:
        raise TypeError(f"labels: got {given.dtype}, needs integers")
    if given.dim() != 1 or n not in (None, len(given)):
        wanted = "n" if n is None else n
        raise ValueError(f"labels: got shape {tuple(given.shape)}, needs ({wanted},), one for each input")
    members = torch.unique(given, return_counts=True)[1]
    if len(members) < 2 or int(members.max()) < 2:
        raise ValueError(f"labels: got classes of {members.tolist()} inputs, needs two classes and two inputs in one")
    return given.to("cpu", torch.int64)
