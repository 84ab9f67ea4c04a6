"""Checks the arguments of the ops themselves, as csrc/core/checks.h does for the kernels in C++.

The wrappers in gatedops/ops check the same earlier; these checks guard direct calls of ``torch.ops.gatedops``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
LAYER_DTYPES = (*FLOATS, torch.bfloat16, torch.float16)


def require(condition: bool, message: str | Callable[[], str]) -> None:
    """Raises ValueError unless the condition holds. A message that is a function is only called then."""
    if not condition:
        raise ValueError(message if isinstance(message, str) else message())


def require_one_device(first: Tensor, *others: Tensor | None) -> None:
    """Raises ValueError unless all tensors that are not None are on one device."""
    device = first.device
    for other in others:
        if other is not None and other.device != device:
            raise ValueError(f"got tensors on {device} and {other.device}, needs all of them on one device")


def require_words(words: Tensor, name: str) -> None:
    """Raises ValueError unless these are words of gates: int32 ``(n, W)``, the words of a row contiguous."""
    require(words.dim() == 2, lambda: f"{name}: got shape {tuple(words.shape)}, needs (n, W)")
    require(words.dtype == torch.int32, lambda: f"{name}: needs dtype int32")
    require(words.shape[1] <= 1 or words.stride(1) == 1, lambda: f"{name}: the words of a row must be contiguous")


def require_layers(first: Sequence[int], count: Sequence[int], words: Tensor, name: str) -> None:
    """Raises ValueError unless each layer has at least one word, and all its words lie inside the row."""
    require(len(count) > 0, "count: needs at least one layer")
    require(len(first) == len(count), lambda: f"{name}: needs one entry per layer")
    for layer, (begin, size) in enumerate(zip(first, count, strict=True)):
        inside = size >= 1 and begin >= 0 and begin + size <= words.shape[1]
        require(inside, f"{name}: layer {layer} lies outside the row of words")


def require_float(dtype: torch.dtype, name: str) -> None:
    """Raises ValueError unless Grams can be computed in this dtype."""
    require(dtype in FLOATS, lambda: f"{name}: got {dtype}, needs float32 or float64")


def require_rows(tensor: Tensor, rows: int, name: str, columns: str = "d") -> None:
    """Raises ValueError unless the tensor is a matrix of this many rows."""
    fits = tensor.dim() == 2 and tensor.shape[0] == rows
    require(fits, lambda: f"{name}: got shape {tuple(tensor.shape)}, needs ({rows}, {columns})")
