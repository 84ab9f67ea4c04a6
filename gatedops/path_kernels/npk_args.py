"""Checks the arguments of npk, npf, npv and path_norm, and converts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.path_kernels.ties import Layer
from gatedops.scalars import real_number
from gatedops.trace.step_builder import GATES_ALONE

# Kernels may multiply a number by up to this factor before they scale it.
_SUMS = 2.0**24


def inputs_of(x: Any, y: Any = None, *, otherwise: str = GATES_ALONE) -> tuple[Tensor, Tensor | None]:
    """Returns x and y as tensors; they may be numpy arrays.

    Args:
        otherwise: what errors tell the user to do with more axes.

    Raises:
        TypeError, ValueError: x and y are not inputs of one network.
    """
    for side, name in ((x, "x"), (y, "y")):
        if isinstance(side, (tuple, dict)):
            raise TypeError(
                f"{name}: got {type(side).__name__}, needs a tensor or a numpy array; wrap the model in a module that"
                " takes one tensor"
            )
    x, y = as_tensor(x, "x"), None if y is None else as_tensor(y, "y")
    for side, name in ((x, "x"), (y, "y")):
        if side is None:
            continue
        if side.is_complex():
            raise TypeError(
                f"{name}: got {side.dtype}, needs real numbers, such as torch.view_as_real({name}).flatten(1)"
            )
        if side.dim() not in (2, 3, 4, 5):
            remedy = f"for more axes, {otherwise}" if side.dim() > 5 else f"{name}[None] makes a batch of one input"
            raise ValueError(
                f"{name}: got shape {tuple(side.shape)}, needs (n, d), (n, T, d), (n, C, T), (n, C, H, W) or"
                f" (n, C, D, H, W); {remedy}"
            )
        if side.numel() == 0:
            raise ValueError(f"{name}: got shape {tuple(side.shape)}, which holds no numbers; give at least one row")
    if y is not None and (x.shape[1:], x.dtype, x.device) != (y.shape[1:], y.dtype, y.device):
        raise ValueError(
            f"y: has inputs {tuple(y.shape[1:])} of {y.dtype} on {y.device}, x has {tuple(x.shape[1:])} of {x.dtype} on"
            f" {x.device}; give both the same shape, dtype and device"
        )
    return x, y


def as_floats(inputs: Tensor, model: nn.Module) -> Tensor:
    """Converts inputs of whole numbers or truth values (uint8 images) to the dtype of the model's parameters."""
    if inputs.is_floating_point():
        return inputs
    floats = (tensor.dtype for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    return inputs.to(next(floats, torch.get_default_dtype()))


def require_range(inputs: Tensor | None, name: str, dtype: torch.dtype) -> None:
    """Raises ValueError unless the squares of the inputs fit into dtype and leave room for the sums of a kernel."""
    if inputs is None or inputs.is_meta:
        return
    largest = _largest(inputs, name)
    square, info = largest * largest * inputs[0].numel(), torch.finfo(dtype)
    if square > info.max / _SUMS:
        raise ValueError(
            f"{name}: has numbers up to {largest:.3g}, and products of {inputs[0].numel()} of them overflow {dtype};"
            f" divide the inputs by a constant{_or_float64(dtype)}"
        )
    if 0 < square < info.tiny * _SUMS:
        raise ValueError(
            f"{name}: has numbers up to {largest:.3g}, whose products vanish in {dtype}; multiply the inputs by a"
            f" constant{_or_float64(dtype)}"
        )


def sigmas_of(sigma: Any, layers: Sequence[Layer]) -> list[float]:
    """One standard deviation for each layer."""
    names = [layer.name for layer in layers]
    one = real_number(sigma)
    try:
        numbers: list[float | None] = [one] * len(layers) if one is not None else [real_number(each) for each in sigma]
    except TypeError:
        numbers = [None]
    sigmas = [number for number in numbers if number is not None]
    if len(sigmas) < len(numbers):
        raise TypeError(f"sigma: got {sigma!r}, needs a number or a list of numbers")
    if len(sigmas) != len(layers):
        raise ValueError(f"sigma: got {len(sigmas)} numbers, needs one, or one for each of the layers {names}")
    if not all(0 < each < math.inf for each in sigmas):
        raise ValueError(f"sigma: got {sigma}, needs finite numbers greater than 0")
    return sigmas


def most_of(max_work: Any) -> float | None:
    """The most operations that a pair of inputs may take; None: any number."""
    number = None if max_work is None else real_number(max_work)
    if max_work is not None and (number is None or not number > 0):
        raise ValueError(f"max_work: got {max_work!r}, needs a number greater than 0, or None for any")
    return number


def require_finite(inputs: Tensor, name: str) -> None:
    """Raises ValueError if inputs are infinite or NaN."""
    if not inputs.is_meta:
        _largest(inputs, name)


def _largest(inputs: Tensor, name: str) -> float:
    """The largest absolute value of the inputs, which must be finite."""
    largest = float(inputs.detach().abs().amax())
    if not math.isfinite(largest):
        raise ValueError(f"{name}: has infinite values or NaN, needs finite numbers")
    return largest


def _or_float64(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float64 else " or use dtype=torch.float64"
