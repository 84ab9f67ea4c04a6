"""Builds the two networks of a deep gated network, with the weights of each mode (docs/math.md, section 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatedops.nn.dgn_args import layer_order
from gatedops.nn.dgn_chain import Chain, chain_layers, chain_of, cut_behind_last_gate, without_activations
from gatedops.nn.dgn_spec import Spec, draw_glorot
from gatedops.ops.checks import require_device, require_option, require_precision

MODES = ("FR-II", "FR-DI", "FL", "DL")


@dataclass(frozen=True)
class Networks:
    """The two networks of a deep gated network.

    Args:
        value: the value network.
        feature: a network like it up to the last gate; if shallow, one layer for each gate.
        chain: describes the layers of `value`.
        shape: the shape of one input; None stands for any size.
        order: value layer l has the gates of feature layer ``order[l]``.
    """

    value: nn.Sequential
    feature: nn.Sequential
    chain: Chain
    shape: tuple[int | None, ...]
    order: tuple[int, ...]


def networks(
    spec_or_net: Spec | nn.Module,
    mode: str,
    feature: nn.Module | Mapping[str, Tensor] | None,
    order: Sequence[int] | None,
    linear: bool,
    shallow: bool,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Networks:
    """Builds both networks of :class:`gatedops.nn.DGN` from its arguments.

    Raises:
        TypeError, ValueError: an argument does not fit, and the error names it; no weight has been drawn then.
    """
    _require_mode(mode, feature, shallow)
    if device is not None:
        require_device(device, "device")
    if not isinstance(spec_or_net, (Spec, nn.Module)):
        raise TypeError(f"spec_or_net: got {type(spec_or_net).__name__}, needs fc_spec(..), conv_spec(..) or a network")
    network = spec_or_net.undrawn() if isinstance(spec_or_net, Spec) else spec_or_net
    chain = chain_of(network, "spec_or_net")
    if device is not None:
        own_dtype = next(network.parameters()).dtype
        require_precision(own_dtype if dtype is None else dtype, torch.device(device), "dtype")
    value = cast(nn.Sequential, deepcopy(network)).requires_grad_(True).to(device=device, dtype=dtype)
    shape = spec_or_net.shape if isinstance(spec_or_net, Spec) else _input_shape(value)
    own = _shallow_features(value, chain, shape) if shallow else _deep_features(value, linear)
    own_order = layer_order(
        order, [layer for layer, gated in zip(chain_layers(value), chain.gated, strict=True) if gated]
    )
    if feature is not None:
        _load(own, feature, value)
    if mode != "FR-DI" or isinstance(spec_or_net, Spec):
        draw_glorot(value, generator)
    if mode == "FR-DI":
        _load(own, value, value)
    elif feature is None:
        draw_glorot(own, generator)
    return Networks(value, own.requires_grad_(mode == "DL"), chain, shape, own_order)


def _require_mode(mode: str, feature: Any, shallow: bool) -> None:
    require_option("mode", mode, MODES, listed=True)
    if mode == "FL" and feature is None:
        raise ValueError("feature: mode 'FL' needs a trained network or its state_dict")
    if mode != "FL" and feature is not None:
        raise ValueError(f"feature: mode {mode!r} has a feature network of its own; 'FL' takes a trained one")
    if mode == "FR-DI" and shallow:
        raise ValueError(
            "mode: 'FR-DI' copies the value network, whose layers have other shapes than shallow layers; use"
            " shallow=False"
        )


def _deep_features(value: nn.Sequential, linear: bool) -> nn.Sequential:
    """A copy of the value network up to its last gate."""
    own = deepcopy(value)
    cut_behind_last_gate(own)
    if linear:
        without_activations(own)
    return own


def _shallow_features(value: nn.Sequential, chain: Chain, shape: tuple[int | None, ...]) -> nn.Sequential:
    """Makes, for each gated layer, a layer that reads the input: a convolution the image, a linear layer all
    numbers."""
    layers: list[Any] = chain_layers(value)
    _require_same_sizes(layers)
    own: list[nn.Module] = []
    for layer, gated in zip(layers, chain.gated, strict=True):
        if gated:
            bias, device, dtype = layer.bias is not None, layer.weight.device, layer.weight.dtype
            like: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
            if isinstance(layer, nn.Conv2d):
                sizes: Any = (shape[0], layer.out_channels, layer.kernel_size, 1, "same", layer.dilation)
                own.append(nn.utils.skip_init(nn.Conv2d, *sizes, padding_mode=layer.padding_mode, **like))
            else:
                own.append(nn.utils.skip_init(nn.Linear, _numbers(shape), layer.out_features, **like))
    return nn.Sequential(*own)


def _numbers(shape: tuple[int | None, ...]) -> int:
    """The number of numbers in one input."""
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        raise ValueError(
            "shallow: gates of linear layers read whole images, but the network does not tell their size; use conv_spec"
        )
    return math.prod(sizes)


def _require_same_sizes(layers: list[Any]) -> None:
    """Raises ValueError unless each convolution gives an image of the input's size."""
    pooled = False
    for layer in layers:
        pooled = pooled or isinstance(layer, (nn.AvgPool2d, nn.AdaptiveAvgPool2d))
        if isinstance(layer, nn.Conv2d):
            reach = tuple(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
            same = layer.padding == "same" or tuple(2 * p for p in layer.padding) == reach
            if pooled or not same or layer.stride != (1, 1):
                raise ValueError(f"shallow: needs convolutions that give images of the input's size, got {layer}")


def _load(own: nn.Sequential, feature: Any, value: nn.Sequential) -> None:
    """Copies weights into the feature network. `feature` may have layers behind the last gate; they are left out."""
    if not isinstance(feature, (nn.Module, Mapping)):
        raise TypeError(f"feature: got {type(feature).__name__}, needs a network or its state_dict")
    state = feature.state_dict() if isinstance(feature, nn.Module) else feature
    expected = own.state_dict()
    behind = value.state_dict().keys() - expected.keys()
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys() - behind)
    other = [
        f"{key}: {_shape_of(state[key])} for {_shape_of(expected[key])}"
        for key in sorted(expected.keys() & state.keys())
        if _shape_of(state[key]) != _shape_of(expected[key])
    ]
    if missing or unknown or other:
        raise ValueError(
            f"feature: is of another architecture; missing keys {missing}, unknown keys {unknown}, other shapes {other}"
        )
    own.load_state_dict({key: state[key] for key in expected})


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _input_shape(value: nn.Sequential) -> tuple[int | None, ...]:
    """The shape of one input, as far as the first layer tells it."""
    first = next(layer for layer in chain_layers(value) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    return (first.in_features,) if isinstance(first, nn.Linear) else (first.in_channels, None, None)
