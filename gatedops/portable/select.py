"""Compares pre-activations with 0, and selects numbers by gates: exactly 0 where a gate is off, even if the number is
infinite or NaN (docs/math.md, sections 6 and 8).

The simplest torch operations are best on a GPU but slow on a CPU. There, comparing into bool handles one number after
another, and selecting takes a branch for each number, so the CPU has a form of its own that is several times as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The integer dtype of each size in bytes.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def select(values: Tensor, on: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns the values where bool `on` is true, else 0; writes into `out` if it is given, which may be `values`."""
    if out is None:
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if values.device.type == "cpu":
        bits = _BITS[values.itemsize]
        torch.bitwise_and(values.view(bits), on.view(torch.int8).neg().to(bits), out=out.view(bits))
    else:
        torch.where(on, values, values.new_zeros(()), out=out)
    return out


def compare(q: Tensor, out: Tensor) -> None:
    """Writes into bool `out` which gates are on. q has pre-activations, on if greater than 0 (NaN is off), or bool
    gates."""
    if q.dtype == torch.bool:  # The bytes of a bool may be other than 0 and 1.
        torch.ne(q, 0, out=out)
    elif q.device.type == "cpu":
        out.copy_(torch.gt(q, 0, out=torch.empty_like(q)))
    else:
        torch.gt(q, 0, out=out)
