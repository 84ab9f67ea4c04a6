"""Public functions take torch tensors and numpy arrays; this module makes tensors of both."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(value: Any, name: str) -> Tensor:
    """Returns a tensor unchanged, and a numpy array as a CPU tensor that shares its memory.

    Arrays that torch cannot share (negative strides, another byte order) are copied. A read-only array is shared
    without a warning, because callers only read the result.

    Raises:
        TypeError: value is neither a tensor nor an array, or it is an array of a dtype that torch does not have, a
            masked array, or a sparse or nested tensor.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"{name}: got a tensor of {value.layout}, needs a dense one, such as {name}.to_dense()")
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: got {type(value).__name__}, needs a tensor or a numpy array")
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array, needs one without a mask: fill in its values with .filled()")
    try:
        return _from_numpy(value)
    except TypeError:
        raise TypeError(
            f"{name}: got a numpy array of {value.dtype}, which torch does not have: convert it with .astype()"
        ) from None


def _from_numpy(array: np.ndarray) -> Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % max(1, array.itemsize) for stride in array.strides):
        array = array.copy()
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
