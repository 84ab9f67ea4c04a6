"""Arguments of the gated layers: their checks, autocast, and gates as words."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.ops.checks import require_tensor
from gatedops.ops.gates import pack_layer

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def layer_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, names: Sequence[str] = ("x", "weight", "bias")
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer's input and parameters, checked, in autocast's dtype where that is on; `names` stand in errors."""
    require_tensor(x, names[0])
    require_tensor(weight, names[1])
    if x.dtype not in DTYPES:
        raise TypeError(f"{names[0]}: got {x.dtype}, needs float32, float64, bfloat16 or float16")
    size, shape = x.shape, weight.shape
    if len(size) == 0:
        raise ValueError(f"{names[0]}: got shape (), needs (..., in_features)")
    if len(shape) != 2 or shape[1] != size[-1] or shape[0] == 0:
        raise ValueError(
            f"{names[1]}: got shape {tuple(shape)}, needs (out_features, {size[-1]}) with at least one"
            f" out_feature, for {names[0]} of shape {tuple(size)}"
        )
    if bias is not None:
        require_tensor(bias, names[2])
        if bias.dim() != 1 or bias.shape[0] != shape[0]:
            raise ValueError(f"{names[2]}: got shape {tuple(bias.shape)}, needs ({shape[0]},)")
    if is_autocast(x):
        x, weight, bias = autocast(x), autocast(weight), None if bias is None else autocast(bias)
    device, dtype = x.device, x.dtype
    for tensor, name in ((weight, names[1]), (bias, names[2])):
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(f"{name}: is on {tensor.device}, {names[0]} is on {device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, {names[0]} is {dtype}; both need the same dtype")
    return x, weight, bias


def is_autocast(x: Tensor) -> bool:
    kind = x.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def autocast(tensor: Tensor) -> Tensor:
    """The tensor as torch's autocast hands it to a linear layer: float64 stays."""
    if tensor.dtype == torch.float64 or not is_autocast(tensor):
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def hard_gate(gate: GateBits | Tensor, shape: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """The words of a hard gate for an output of this shape, ``(..., w)``, and the index of the first of them."""
    if isinstance(gate, Tensor):
        if gate.shape != torch.Size(shape):
            raise ValueError(f"gate: got shape {tuple(gate.shape)}, needs that of the output, {tuple(shape)}")
        _require_same_device(gate.device, device)
        return pack_layer(gate.reshape(math.prod(shape[:-1]), shape[-1])), 0
    if len(gate.layers) != 1:
        raise ValueError(f"gate: has {len(gate.layers)} layers, needs one; choose it with select_layers")
    _require_same_device(gate.device, device)
    layer = gate.layers[0]
    if layer.kind != "gate":
        raise ValueError("gate: holds the choices of a max-pool, needs gates")
    if len(layer.shape) == 1:
        if gate.n != math.prod(shape[:-1]) or layer.width != shape[-1]:
            raise ValueError(
                f"gate: has {gate.n} rows of {layer.width} gates, needs {math.prod(shape[:-1])} rows of {shape[-1]}"
            )
        return gate.words, layer.first_word
    if (gate.n, *layer.shape) != tuple(shape):
        raise ValueError(f"gate: got shape {(gate.n, *layer.shape)}, needs that of the output, {tuple(shape)}")
    return hard_gate(gate.unpack()[0], shape, device)


def soft_gate(gate: Tensor, shape: Sequence[int], x: Tensor) -> Tensor:
    """A soft gate for an output of this shape, checked, in autocast's dtype where that is on."""
    if not gate.dtype.is_floating_point:
        raise TypeError(f"gate: got {gate.dtype}, needs a GateBits, a bool tensor (hard) or a float tensor (soft)")
    if gate.shape != torch.Size(shape):
        raise ValueError(f"gate: got shape {tuple(gate.shape)}, needs that of the output, {tuple(shape)}")
    _require_same_device(gate.device, x.device)
    gate = autocast(gate)
    if gate.dtype != x.dtype:
        raise TypeError(f"gate: got {gate.dtype}, x is {x.dtype}; a soft gate needs the same dtype")
    return gate


def layer_bits(words: Tensor, width: int) -> GateBits:
    """The gates of one fully connected layer."""
    return GateBits(words, _layers(width) if not torch.compiler.is_compiling() else (GateLayer("0", (width,)),))


@functools.lru_cache(maxsize=256)
def _layers(width: int) -> tuple[GateLayer]:
    """Making and checking a record takes longer than the rest of a small layer's GateBits."""
    return (GateLayer("0", (width,)),)


def _require_same_device(gate: torch.device, x: torch.device) -> None:
    if gate != x:
        raise ValueError(f"gate: is on {gate}, x is on {x}")
