"""Multiplies small integers exactly: gates, which are 0 or 1, and inputs of one byte.

If torch multiplies int8 on the device, the factors are int8 and the products int32. Elsewhere the factors are float32.
Their sums of products stay below 2^24, where float32 is exact. Tensor cores that read fewer bits of each factor (TF32)
are exact too, because each factor has at most eight bits.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

# CUDA's product of int8 needs more than 16 rows, and sizes that are multiples of 8.
_ROWS = 24


@functools.cache
def has_int8(device: torch.device) -> bool:
    """Whether torch multiplies int8 matrices on this device, and on a CPU also whether it does so fast and correctly.

    If a CPU lacks the instructions for int8, or ONEDNN_MAX_CPU_ISA hides them, torch cuts intermediate sums off at 16
    bits.
    """
    largest = torch.full((_ROWS, _ROWS), 127, dtype=torch.int8, device=device)
    if device.type == "cpu":
        return torch.cpu._is_vnni_supported() and bool((_int_mm(largest, largest) == 127 * 127 * _ROWS).all())
    try:
        _int_mm(largest, largest)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def operand(values: Tensor, int8: bool) -> Tensor:
    """Returns numbers ``(rows, k)``, bool or int8, in the form that :func:`product` takes: float32, or int8 with rows
    and columns of 0 added until every device accepts the size."""
    if not int8:
        return values.to(torch.float32)
    rows, columns = values.shape
    values = values.view(torch.int8)
    missing = (-columns % 8 if columns else 8, max(_ROWS - rows, -rows % 8))
    return pad(values, (0, missing[0], 0, missing[1])) if any(missing) else values


def product(left: Tensor, right: Tensor) -> Tensor:
    """Computes ``left right^T`` of two operands exactly: int32 with the added rows and columns, or float32."""
    return _int_mm(left, right) if left.dtype == torch.int8 else left @ right.mT


def _int_mm(left: Tensor, right: Tensor) -> Tensor:
    # These are CUDA's rules; a CPU takes any size.
    assert left.shape[0] > 16
    assert left.shape[1] > 0
    assert left.shape[1] % 8 == right.shape[0] % 8 == 0
    return torch._int_mm(left, right.mT)
