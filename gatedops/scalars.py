"""Reads one number of an argument: Python's, numpy's, or a tensor without dimensions. Bools are refused."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def whole_number(value: Any) -> int | None:
    """Returns value as an int, or None if it is not a whole number."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, (Tensor, np.ndarray)) and (value.ndim > 0 or value.dtype in (torch.bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def real_number(value: Any) -> float | None:
    """Returns value as a float, or None if it is not a real number."""
    if isinstance(value, (int, float)):
        return None if isinstance(value, bool) else float(value)
    value = value.detach() if isinstance(value, Tensor) else value
    if isinstance(value, (Tensor, np.ndarray)):
        is_real = value.ndim == 0 and value.dtype not in (torch.bool, np.bool_)
        is_real = is_real and not (value.is_complex() if isinstance(value, Tensor) else np.iscomplexobj(value))
    else:
        is_real = isinstance(value, numbers.Real)
    try:
        return float(value) if is_real else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def positive_number(value: Any, name: str) -> float:
    """Returns value as a float. TypeError or ValueError, naming the argument, unless it is finite and positive."""
    number = real_number(value)
    if number is None:
        raise TypeError(f"{name}: got {type(value).__name__}, needs a positive number")
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: got {number}, needs a positive number")
    return number
