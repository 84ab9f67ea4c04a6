"""Checks the arguments of the gram family, and brings them into the form that the ops take."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops.gate_args import require_gate_bits
from gatedops.gatebits import GateBits, require_same_layers
from gatedops.layout import GateLayer
from gatedops.ops.checks import require_dtype, require_precision, require_tensor
from gatedops.scalars import real_number
from gatedops.tables import listed

_SLOPE = "a number or one number per layer"
DTYPES = (torch.float32, torch.float64)
_X_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8)


def layout_of(
    bits: GateBits, y_bits: GateBits | None, name: str = "bits", y_name: str = "y_bits"
) -> tuple[list[int], list[int], list[int]]:
    """Checks both arguments, and returns the first word of each layer on each side and the words that it uses."""
    for value, argument in ((bits, name), (y_bits, y_name)):
        if not (value is None and argument == y_name):
            require_gate_bits(value, argument)
    if not bits.layers:
        raise ValueError(f"{name}: has no layers, needs at least one")
    if y_bits is not None:
        require_same_layers(y_bits, bits, y_name, name)
    first = [layer.first_word for layer in bits.layers]
    y_first = first if y_bits is None else [layer.first_word for layer in y_bits.layers]
    return first, y_first, [layer.words for layer in bits.layers]


def require_result_dtype(dtype: torch.dtype, bits: GateBits) -> None:
    """Raises TypeError unless a Gram of these gates can be computed in `dtype` on their device."""
    require_dtype(dtype, "dtype", DTYPES)
    require_precision(dtype, bits.device, "dtype")


def slopes_of(slope: float | Sequence[float], bits: GateBits, dtype: torch.dtype) -> list[float]:
    """Returns the slope of each layer where its gates are off, or an empty list if every slope is 0."""
    number = real_number(slope)
    slopes = [number] * len(bits.layers) if number is not None else _numbers(slope, len(bits.layers), "slope", _SLOPE)
    if not all(abs(a) <= sys.float_info.max for a in slopes):
        raise ValueError(f"slope: got {listed(slopes)}, needs finite numbers")
    if not any(slopes):
        return []
    for index, (layer, a) in enumerate(zip(bits.layers, slopes, strict=True)):
        if a != 0:
            _require_slope(a, layer, f"slope: got {a} for layer {index} ({layer.name!r})", dtype)
    return slopes


def _require_slope(a: float, layer: GateLayer, got: str, dtype: torch.dtype) -> None:
    if layer.kind == "select":
        raise ValueError(
            f"{got}, which holds the choices of a max-pool: gates that are off there may belong to inputs that were "
            "not chosen; give one number per layer, with 0 for this one"
        )
    if not torch.finfo(dtype).tiny <= a * a <= torch.finfo(dtype).max / layer.width:
        raise ValueError(
            f"{got}, whose square, or the square times its {layer.width} gates, leaves the range of {dtype}; use a "
            f"slope nearer to 1{', or 0' if abs(a) < 1 else ''}"
            f"{', or dtype=torch.float64' if dtype == torch.float32 else ''}"
        )


def with_widths(slopes: list[float], bits: GateBits) -> tuple[list[float], list[int]]:
    """Returns the arguments `slope` and `widths` of the ops: both are empty if every slope is 0."""
    return slopes, list(bits.widths) if slopes else []


def factors_of(
    scale: str | Sequence[float],
    bits: GateBits,
    dtype: torch.dtype,
    slopes: Sequence[float] = (),
    *,
    normalize: bool = False,
) -> list[float]:
    """Returns the multiplier of each layer's count. If the Gram is normalized, the size of the multipliers cancels, so
    an overflow is not refused."""
    if isinstance(scale, str):
        require_scale(scale)
        if scale == "width":
            return [1.0 / w for w in bits.widths]
        largest = [w * max(1.0, a * a) for w, a in zip(bits.widths, slopes, strict=True)] if slopes else bits.widths
        if not normalize and math.prod(largest) > torch.finfo(dtype).max:
            squares = " and the squares of the slopes" if any(abs(a) > 1 for a in slopes) else ""
            raise ValueError(
                f"scale: 'none' overflows {dtype}, the widths {listed(bits.widths)}{squares} multiply to more than it "
                f"holds; use 'width'{' or dtype=torch.float64' if dtype == torch.float32 else ''}"
            )
        return [1.0] * len(bits.widths)
    return listed_factors(scale, len(bits.widths))


def require_scale(scale: Any) -> None:
    """Raises TypeError or ValueError unless a scale is "width", "none" or lists finite numbers, for any layers."""
    if not isinstance(scale, str):
        listed_factors(scale, None)
    elif scale not in ("width", "none"):
        raise ValueError(f"scale: got {scale!r}, needs 'width', 'none' or one number per layer")


def listed_factors(scale: Sequence[float], layers: int | None) -> list[float]:
    """Returns the multipliers of the layers from a scale that lists them. If `layers` is None, their number is not
    checked."""
    factors = _numbers(scale, layers, "scale", "'width', 'none' or one number per layer")
    # NaN compares false. math.isfinite would say the same, but Dynamo does not have it.
    if not all(abs(s) <= sys.float_info.max for s in factors):
        raise ValueError(f"scale: got {listed(factors)}, needs finite numbers")
    return factors


def _numbers(values: Any, layers: int | None, name: str, needs: str) -> list[float]:
    """Returns the numbers that `values` lists, one for each layer if their number is given."""
    try:
        numbers = [real_number(value) for value in values]
    except TypeError:
        numbers = [None]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        raise TypeError(f"{name}: got {values!r}, needs {needs}")
    if layers is not None and len(found) != layers:
        raise ValueError(f"{name}: got {len(found)} numbers, needs one for each of {layers} layers")
    return found


def require_inputs(x: Tensor | None, bits: GateBits, y: Tensor | None, y_bits: GateBits | None) -> None:
    if x is not None:
        _require_rows(x, bits, "x")
        if (y is None) != (y_bits is None):
            missing, given = ("y", "y_bits") if y is None else ("y_bits", "y")
            raise ValueError(f"{missing}: is missing, {given} needs it")
    if y is None:
        return
    if x is None or y_bits is None:
        raise ValueError(f"{'x' if x is None else 'y_bits'}: is missing, y needs it")
    _require_rows(y, y_bits, "y")
    if y.shape[1] != x.shape[1]:
        raise ValueError(f"y: has {y.shape[1]} columns, x has {x.shape[1]}")
    if x.dtype != y.dtype:
        raise TypeError(f"y: got {y.dtype} beside x of {x.dtype}, both need the same dtype")


def _require_rows(x: Tensor, bits: GateBits, name: str) -> None:
    require_tensor(x, name)
    require_dtype(x.dtype, name, _X_DTYPES)
    if x.dim() != 2 or x.shape[0] != bits.n:
        flat = f"; {name}.flatten(1) makes rows of images" if x.dim() > 2 and x.shape[0] == bits.n else ""
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, needs ({bits.n}, d): one row per row of gates{flat}")
    require_same_device(x, bits, name)


def require_same_device(t: Tensor, bits: GateBits, name: str) -> None:
    if t.device != bits.device:
        raise ValueError(f"{name}: is on {t.device}, the gates are on {bits.device}")


def require_out(out: Tensor, shape: tuple[int, int], dtype: torch.dtype, inputs: list[Tensor | None]) -> None:
    require_tensor(out, "out")
    if tuple(out.shape) != shape or out.dtype != dtype:
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)}, needs {dtype} {shape}")
    given = [t for t in inputs if t is not None]
    if out.device != given[-1].device:
        raise ValueError(f"out: is on {out.device}, the gates are on {given[-1].device}")
    if (shape[0] > 1 and out.stride(0) < shape[1]) or (shape[1] > 1 and out.stride(1) != 1):
        raise ValueError(f"out: has strides {out.stride()}, needs contiguous rows that do not overlap")
    if torch.is_grad_enabled() and any(t.requires_grad for t in [out, *given]):
        raise ValueError("out: is not differentiable; call without it, or under torch.no_grad()")
    if not (out.is_meta or torch.compiler.is_compiling()) and any(_overlaps(out, t) for t in given):
        raise ValueError("out: overlaps an input in memory, needs its own")


def _overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether the memory spans of two tensors overlap."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    spans = []
    for t in (a, b):
        extent = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        spans.append((t.data_ptr(), t.data_ptr() + (extent + 1) * t.element_size()))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]
