"""Checks of the ops' own arguments: what csrc/checks.h checks for the kernels in C++. The wrappers in gatedops/ops say
the same earlier; these guard calls of ``torch.ops.gatedops`` themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
LAYER_DTYPES = (*FLOATS, torch.bfloat16, torch.float16)


def require(condition: bool, message: str) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_one_device(*tensors: Tensor | None) -> None:
    """Raises ValueError where the tensors that are there lie on several devices."""
    devices = {str(tensor.device) for tensor in tensors if tensor is not None}
    require(len(devices) <= 1, f"got tensors on {' and '.join(sorted(devices))}, needs all of them on one device")


def require_words(words: Tensor, name: str) -> None:
    """Raises ValueError unless these are words of gates, ``(n, W)``."""
    require(words.dim() == 2, f"{name}: got shape {tuple(words.shape)}, needs (n, W)")
    require(words.dtype == torch.int32, f"{name}: needs dtype int32")
    require(words.shape[1] <= 1 or words.stride(1) == 1, f"{name}: the words of a row must be contiguous")


def require_layers(first: Sequence[int], count: Sequence[int], words: Tensor, name: str) -> None:
    """Raises ValueError unless each layer has words, all of them inside the row."""
    require(len(count) > 0, "count: needs at least one layer")
    require(len(first) == len(count), f"{name}: needs one entry per layer")
    for layer, (begin, size) in enumerate(zip(first, count, strict=True)):
        inside = size >= 1 and begin >= 0 and begin + size <= words.shape[1]
        require(inside, f"{name}: layer {layer} lies outside the row of words")


def require_float(dtype: torch.dtype, name: str) -> None:
    """Raises ValueError unless dtype is one that Grams are computed in."""
    require(dtype in FLOATS, f"{name}: got {dtype}, needs float32 or float64")


def require_rows(tensor: Tensor, rows: int, name: str, columns: str = "d") -> None:
    """Raises ValueError unless the tensor is a matrix of so many rows."""
    fits = tensor.dim() == 2 and tensor.shape[0] == rows
    require(fits, f"{name}: got shape {tuple(tensor.shape)}, needs ({rows}, {columns})")
