"""npf and npv: list the feature and the value of every path of a small network (docs/math.md, sections 1 and 13)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gatedops import trace
from gatedops.ops.checks import require_float64, require_option
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.geometry import Geometry, geometry_of, windows_of
from gatedops.path_kernels.masks import at_windows
from gatedops.path_kernels.network import pool_of, recorded_gates, recorded_of, shape_of, steps_of, weighted_layers
from gatedops.path_kernels.npk_args import as_floats, inputs_of, require_finite
from gatedops.path_kernels.ties import Layer
from gatedops.trace import Step
from gatedops.trace.bare import bare
from gatedops.trace.checks import require_model
from gatedops.trace.example import example_of
from gatedops.trace.step_builder import GATES_ALONE

# The largest tensor of a listing may have this many numbers.
_MOST = 1 << 26


def npf(model: nn.Module, x: Tensor | np.ndarray, *, bias: str = "path") -> Tensor:
    """Returns the neural path features of all paths to one output (Lakshminarayanan & Singh 2020, arXiv 2006.10529).

    Paths that go through the same weights count as one. So a path through a convolution runs over all pixels, and its
    feature is the sum of its inputs over the pixels where all gates on it are on. With ``bias="path"``

        npf(model, x) @ npv(model) == model(x)              npf(model, x) @ npf(model, y).T == H of gatedops.npk

    Args:
        model, x: as in :func:`gatedops.npk`, for a network with few paths.
        bias: "path": biases and constants start paths of their own at an input of 1, except zeros that do not come from
            a parameter; "ignore": they start none.

    Returns:
        float64 ``(n, P)``, with the paths in the same order as in :func:`npv`.

    Raises:
        TypeError, ValueError: as in :func:`gatedops.npk`; the network has too many paths, whose number the error gives.
    """
    require_option("bias", bias, ("ignore", "path"))
    require_model(model)
    x = as_floats(inputs_of(x)[0], model)
    require_finite(x, "x")
    steps = _steps(model, x, len(x), bias == "path")
    bits = recorded_gates(model, steps, x, len(x), progress=False)
    masks = [] if bits is None else bits.unpack()
    images = [mask[..., None, None] if mask.dim() == 2 else mask for mask in masks]
    return _Listing(steps, images.__getitem__, bias == "path").of(x.detach()).features[:, 0, :, 0, 0]


def npv(model: nn.Module, x: Tensor | np.ndarray | None = None, *, bias: str = "path") -> Tensor:
    """Returns the neural path values of all paths: the product of the weights on each, with batch norms folded in.

    Args:
        model: as in :func:`npf`.
        x: an input ``(n, ...)``, of which only the shape is used; None: one that the model takes is looked for.
        bias: as in :func:`npf`. A bias or constant is the first factor of the values of its paths.

    Returns:
        float64 ``(P, outputs)``, with the paths in the same order as in :func:`npf`.

    Raises:
        TypeError, ValueError: as in :func:`npf`.
    """
    require_option("bias", bias, ("ignore", "path"))
    require_model(model)
    if x is None:
        with bare(model) as inner:
            x = example_of(inner)
    x = as_floats(inputs_of(x)[0], model)
    steps = _steps(model, x, 1, bias == "path")
    return _Listing(steps, lambda layer: _none_of(recorded_of(steps)[layer], x), bias == "path").of(x[:0]).values.T


def _steps(model: nn.Module, x: Tensor, rows: int, biases: bool) -> list[Step]:
    """The steps of a network; ValueError if npk does not cover it, or if it has too many paths to list."""
    require_float64(x.device, "x")
    steps = steps_of(model, x, biases=biases)
    compile_steps(steps, [1.0] * len(weighted_layers(steps)), tangent=False, biases=True)
    paths: list[int] = []
    for step in steps:
        paths.append(_paths_to(step, [paths[index] for index in step.inputs]))
        numbers = rows * math.prod(step.shape) * paths[-1]
        if numbers > _MOST:
            raise ValueError(
                f"model: has {paths[-1]} paths to each unit of {step.name}: {numbers:.3g} features for {rows} inputs;"
                f" at most {_MOST:.3g} can be listed, so take a smaller network or fewer inputs"
            )
    return steps


def _paths_to(step: Step, before: list[int]) -> int:
    """The number of paths that end at a unit of a step, from the numbers for its inputs."""
    if isinstance(step, Layer):
        return before[0] * step.weight[0].numel() + (step.bias is not None)
    if isinstance(step, trace.AddConstant):
        return before[0] + math.prod(step.constant.shape[-2:]) if len(step.shape) == 3 else before[0] + 1
    return sum(before) if before else 1


def _none_of(step: trace.Gate | trace.MaxPool, x: Tensor) -> Tensor:
    """The masks of a step for no inputs."""
    windows = (math.prod(step.window.kernel),) if isinstance(step, trace.MaxPool) else ()
    return torch.zeros(0, *windows, *shape_of(step), dtype=torch.bool, device=x.device)


@dataclass(frozen=True)
class _Paths:
    """The paths to the units of a step: features ``(n, C, P, H, W)`` at each pixel, values ``(C, P)``."""

    features: Tensor
    values: Tensor

    def moved(self, geometry: Geometry) -> Tensor:
        """The features at the pixels of each window, ``(n, K, C, P, H', W')``."""
        channels, paths = self.values.shape
        return at_windows(self.features.flatten(1, 2), geometry).unflatten(2, (channels, paths))


class _Listing:
    """Follows the paths through the steps, from the input on."""

    def __init__(self, steps: list[Step], recorded: Callable[[int], Tensor], biases: bool) -> None:
        self._steps, self._biases = steps, biases
        self._masks = {id(step): recorded(index) for index, step in enumerate(recorded_of(steps))}

    def of(self, x: Tensor) -> _Paths:
        """The paths that end at the outputs."""
        found: list[_Paths] = []
        for step in self._steps:
            inputs = [found[index] for index in step.inputs]
            found.append(self._through(step, *inputs) if inputs else self._input(x, step))
        return found[-1]

    def _input(self, x: Tensor, step: Step) -> _Paths:
        shape = shape_of(step)
        return _Paths(x.double().reshape(len(x), shape[0], 1, *shape[1:]), x.new_ones(shape[0], 1).double())

    def _through(self, step: Step, paths: _Paths, other: _Paths | None = None) -> _Paths:
        features, values = paths.features, paths.values
        match step:
            case trace.Linear() | trace.Conv2d():
                return self._layer(step, paths)
            case trace.Gate():
                return _Paths(features * self._masks[id(step)].unsqueeze(2), values)
            case trace.MaxPool(window=window):
                moved = paths.moved(windows_of(window, step))
                return _Paths((moved * self._masks[id(step)].unsqueeze(3)).sum(1), values)
            case trace.AvgPool() | trace.Mean():
                window, weights = pool_of(step, *features.shape[-2:])
                geometry = windows_of(window, step)
                return _Paths(paths.moved(geometry).sum(1) * values.new_tensor(weights).view(geometry.out), values)
            case trace.Flatten():
                pixels = features.permute(0, 1, 3, 4, 2).flatten(1, 3)[..., None, None]
                return _Paths(pixels, values.repeat_interleave(math.prod(features.shape[-2:]), 0))
            case trace.Add() if other is not None:
                return _joined(paths, other)
            case trace.AddConstant(constant=constant):
                return _joined(paths, _constant(constant.double(), paths)) if self._biases else paths
        raise ValueError(
            f"model: {step.name} is a {type(step).__name__}, which path kernels do not cover; {GATES_ALONE}"
        )

    def _layer(self, layer: Layer, paths: _Paths) -> _Paths:
        moved = paths.moved(geometry_of(layer)).movedim(1, 3).flatten(1, 3)  # (n, C P K, H', W')
        weight = layer.weight.detach().double().reshape(*layer.weight.shape[:2], 1, -1)  # (C', C, 1, K)
        values = (weight * paths.values.unsqueeze(2)).flatten(1)
        features = moved.unsqueeze(1).expand(-1, len(values), *moved.shape[1:])
        made = _Paths(features, values)
        if layer.bias is None or not self._biases:
            return made
        ones = features.new_ones(*features.shape[:2], 1, *features.shape[3:])
        return _joined(made, _Paths(ones, layer.bias.detach().double().unsqueeze(1)))


def _joined(a: _Paths, b: _Paths) -> _Paths:
    return _Paths(torch.cat([a.features, b.features], 2), torch.cat([a.values, b.values], 1))


def _constant(constant: Tensor, paths: _Paths) -> _Paths:
    """The paths from each number of a constant (of each channel's part) to the pixels that it is added to."""
    n, channels, _, height, width = paths.features.shape
    shape = (-1, 1, 1) if (height, width) == (1, 1) else (*[1] * (3 - constant.dim()), *constant.shape)
    images = constant.reshape(shape)
    values = images.expand(channels, *images.shape[1:]).flatten(1)
    rows, columns = (
        torch.eye(size, device=values.device) if given > 1 else torch.ones(1, size, device=values.device)
        for given, size in zip(images.shape[1:], (height, width), strict=True)
    )
    pixels = torch.einsum("rh,sw->rshw", rows, columns).flatten(0, 1).to(values)
    return _Paths(pixels.expand(n, channels, *pixels.shape), values)
