"""Checks the arguments of deep gated networks."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor, nn

from gatedops.gate_args import require_gate_bits
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_option, require_tensor
from gatedops.ops.gated_linear import is_autocast
from gatedops.scalars import positive_number


def gate_kind(mode: str, gate: str | None, beta: float, gain: float) -> str:
    """Returns "hard" or "soft": the given kind, or else that of the mode."""
    if gate is not None:
        require_option("gate", gate, ("hard", "soft"), listed=True)
    if mode == "DL" and gate == "hard":
        raise ValueError(
            "gate: mode 'DL' trains the feature network through its gates, but no gradient passes through hard gates;"
            " use gate='soft'"
        )
    for name, number in (("beta", beta), ("gain", gain)):
        positive_number(number, name)
    return gate or ("soft" if mode == "DL" else "hard")


def layer_order(order: Sequence[int] | None, layers: Sequence[nn.Module]) -> tuple[int, ...]:
    """The permutation of the gated layers; for None the identity."""
    if order is None:
        return tuple(range(len(layers)))
    try:
        given = tuple(map(operator.index, order))
    except TypeError:
        raise TypeError(f"order: got {order!r}, needs a sequence of whole numbers") from None
    if sorted(given) != list(range(len(layers))):
        raise ValueError(f"order: got {given}, needs a permutation of 0 .. {len(layers) - 1}")
    for place, source in enumerate(given):
        shapes = _gate_shape(layers[place]), _gate_shape(layers[source])
        if shapes[0] != shapes[1]:
            raise ValueError(f"order: layer {place} has gates {shapes[0]}, layer {source} has {shapes[1]}")
    return given


def require_input(x: Tensor, shape: Sequence[int | None], weight: Tensor) -> None:
    """Raises TypeError or ValueError unless x has shape ``(n, *shape)``, where None stands for any size, and the device
    and dtype of the weight."""
    require_tensor(x, "x")
    if x.dim() != len(shape) + 1 or not _fits(x.shape[1:], shape):
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs (n, {_described(shape)[1:]}")
    if x.device != weight.device:
        raise ValueError(f"x: is on {x.device}, the model is on {weight.device}; move one of them")
    if x.dtype != weight.dtype and not (is_autocast(x) and x.is_floating_point()):
        raise TypeError(f"x: got {x.dtype}, but the model is {weight.dtype}; convert x or the model")


def require_fitting(gates: GateBits, layers: Sequence[nn.Module]) -> None:
    """Raises ValueError unless the gates have one layer for each of these layers, with its shape."""
    require_gate_bits(gates, "gates")
    given = [layer.shape for layer in gates.layers]
    needed = [_gate_shape(layer) for layer in layers]
    if len(given) != len(needed) or not all(map(_fits, given, needed)):
        listed = ", ".join(map(_described, given)), ", ".join(map(_described, needed))
        raise ValueError(f"gates: has layers of {listed[0]}; this network has {listed[1]}")


def _gate_shape(layer: nn.Module) -> tuple[int | None, ...]:
    """The shape of one input's gates; a size is None if it depends on the size of the image."""
    return (layer.out_features,) if isinstance(layer, nn.Linear) else (layer.out_channels, None, None)  # type: ignore[return-value]


def _fits(given: Sequence[int], needed: Sequence[int | None]) -> bool:
    return len(given) == len(needed) and all(n is None or n == g for g, n in zip(given, needed, strict=True))


def _described(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
