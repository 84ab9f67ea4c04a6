"""Exact products of small integers: gates, 0 or 1, and inputs of one byte.

Two forms of the same numbers. int8, where torch multiplies it on the device, gives int32. Elsewhere float32: sums of
products stay below 2^24, where float32 is exact, and tensor cores of fewer bits (TF32) are too, for each factor has
eight at most.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROWS = 24  # CUDA's product of int8 wants more than 16 rows, and sizes that are multiples of 8


@functools.cache
def has_int8(device: torch.device) -> bool:
    """Whether torch multiplies int8 matrices on this device; on a CPU, whether it does so fast and right: without the
    instructions made for it, and where ONEDNN_MAX_CPU_ISA hides them, sums in between are cut off at 16 bits."""
    largest = torch.full((_ROWS, _ROWS), 127, dtype=torch.int8, device=device)
    if device.type == "cpu":
        return torch.cpu._is_vnni_supported() and bool((_int_mm(largest, largest) == 127 * 127 * _ROWS).all())
    try:
        _int_mm(largest, largest)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def operand(values: Tensor, int8: bool) -> Tensor:
    """Numbers ``(rows, k)``, bool or int8, in the form that :func:`product` takes: int8 with rows and columns added up
    to what every device accepts, all 0, or float32."""
    if not int8:
        return values.to(torch.float32)
    rows, columns = values.shape
    values = values.view(torch.int8)
    missing = (-columns % 8 if columns else 8, max(_ROWS - rows, -rows % 8))
    return pad(values, (0, missing[0], 0, missing[1])) if any(missing) else values


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left right^T`` of two operands, exact: int32 with the rows and columns that were added, or float32."""
    return _int_mm(left, right) if left.dtype == torch.int8 else left @ right.mT


def _int_mm(left: Tensor, right: Tensor) -> Tensor:
    # A CPU takes any size; the rules are those of CUDA.
    assert left.shape[0] > 16
    assert left.shape[1] > 0
    assert left.shape[1] % 8 == right.shape[0] % 8 == 0
    return torch._int_mm(left, right.mT)
