"""Arguments of npk and its kin: their checks, and their form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops.kernels.network import Layer
from gatedops.ops.checks import require_tensor

_SUMS = 2.0**24  # what kernels may multiply a number with before they scale it


def require_option(name: str, given: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError unless the option is one of those allowed."""
    if given not in allowed:
        raise ValueError(f"{name}: got {given!r}, needs {' or '.join(map(repr, allowed))}")


def require_inputs(x: Any, y: Any) -> None:
    """Raises TypeError, ValueError unless x, and y where it is given, are inputs of one network."""
    for side, name in ((x, "x"), (y, "y")):
        if side is None and name == "y":
            continue
        require_tensor(side, name)
        if not side.is_floating_point():
            raise TypeError(f"{name}: got {side.dtype}, needs a float dtype")
        if side.dim() not in (2, 4) or side.numel() == 0:
            raise ValueError(f"{name}: got shape {tuple(side.shape)}, needs (n, d) or (n, C, H, W), at least one row")
    if y is not None and (x.shape[1:], x.dtype, x.device) != (y.shape[1:], y.dtype, y.device):
        raise ValueError(
            f"y: has inputs {tuple(y.shape[1:])} of {y.dtype} on {y.device}, x has {tuple(x.shape[1:])} of {x.dtype} on"
            f" {x.device}; both need the same, all images of one size"
        )


def require_range(inputs: Tensor | None, name: str, dtype: torch.dtype) -> None:
    """Raises ValueError unless the squares of the inputs fit into dtype with room for the sums of a kernel."""
    if inputs is None or inputs.is_meta:
        return
    largest = float(inputs.detach().abs().amax())
    if not math.isfinite(largest):
        raise ValueError(f"{name}: has infinite values or NaN, needs finite numbers")
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
    try:
        sigmas = [float(sigma)] * len(layers) if isinstance(sigma, (int, float)) else [float(each) for each in sigma]
    except (TypeError, ValueError):
        raise TypeError(f"sigma: got {sigma!r}, needs a number or a list of them") from None
    if len(sigmas) != len(layers):
        raise ValueError(f"sigma: got {len(sigmas)} numbers, needs one, or one for each of the layers {names}")
    if not all(0 < each < math.inf for each in sigmas):
        raise ValueError(f"sigma: got {sigma}, needs finite numbers greater than 0")
    return sigmas


def _or_float64(dtype: torch.dtype) -> str:
    return "" if dtype == torch.float64 else " or use dtype=torch.float64"
