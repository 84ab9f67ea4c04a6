"""npf and npv: list the feature and the value of every path of a small network (docs/math.md, sections 1 and 13)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gatedops import trace
from gatedops.ops.checks import require_float64, require_option
from gatedops.path_kernels.canonical import Channels, Layout, Network, Pixels
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.geometry import Geometry, geometry_of, windows_of
from gatedops.path_kernels.network import (
    has_shift,
    is_number,
    pool_of,
    read_network,
    recorded_gates,
    recorded_of,
    scale_and_shift,
    weighted_layers,
)
from gatedops.path_kernels.npk_args import as_floats, inputs_of, require_finite
from gatedops.path_kernels.ties import Layer
from gatedops.path_kernels.windows import at_windows, map_pixels
from gatedops.trace import Step
from gatedops.trace.bare import bare
from gatedops.trace.checks import require_model
from gatedops.trace.example import example_of
from gatedops.trace.step_builder import GATES_ALONE

# The largest tensor of a listing may have this many numbers.
_MOST = 1 << 26
# A path either does not exist, or starts at the input and has no weight yet, or has one.
_MISSING, _DIRECT, _WEIGHTED = 0, 1, 2


def npf(model: nn.Module, x: Tensor | np.ndarray, *, bias: str = "path", output: int | str | None = None) -> Tensor:
    """Returns the neural path features of all paths to one output (Lakshminarayanan & Singh 2020, arXiv 2006.10529).

    Paths that go through the same weights count as one. So a path through a convolution runs over all pixels, and its
    feature is the sum of its inputs over the pixels where all gates on it are on. A gate with a slope multiplies the
    feature by 1 or by its slope, and so does a number that the network multiplies by, unless it is a parameter. With
    ``bias="path"``

        npf(model, x) @ npv(model) == model(x)              npf(model, x) @ npf(model, y).T == H of gatedops.npk

    A softmax, log_softmax or sigmoid of all outputs at the end is left out: the first equation is about what it reads.

    Args:
        model, x, output: as in :func:`gatedops.npk`, for a network with few paths.
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
    network = _network(model, x, len(x), bias == "path", output)
    bits = recorded_gates(model, network, x, len(x), progress=False)
    masks = [
        mask if layer.kind == "select" else layout.to_images(mask)
        for mask, layer, (_, layout) in (
            () if bits is None else zip(bits.unpack(), bits.layers, recorded_of(network), strict=True)
        )
    ]
    found = _Listing(network, masks.__getitem__, bias == "path").of(x.detach())
    return found.features[:, 0, : found.of_first, 0, 0]


def npv(
    model: nn.Module,
    x: Tensor | np.ndarray | None = None,
    *,
    bias: str = "path",
    output: int | str | None = None,
) -> Tensor:
    """Returns the neural path values of all paths: the product of the weights on each, with the scales of batch norms.

    Args:
        model, output: as in :func:`npf`.
        x: an input ``(n, ...)``, of which only the shape is used; None: one that the model takes is looked for.
        bias: as in :func:`npf`. A bias, constant or shift of a batch norm is the first factor of the values of its
            paths.

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
    network = _network(model, x, 1, bias == "path", output)
    recorded = [step for step, _ in recorded_of(network)]
    found = _Listing(network, lambda layer: _none_of(recorded[layer], x), bias == "path").of(x[:0])
    return found.values[:, : found.of_first].T


def _network(model: nn.Module, x: Tensor, rows: int, biases: bool, output: int | str | None) -> Network:
    """Reads a network; ValueError if npk does not cover it, or if it has too many paths to list."""
    require_float64(x.device, "x")
    network = read_network(model, x, biases=biases, output=output)
    compile_steps(network, [1.0] * len(weighted_layers(network.steps)), tangent=False, biases=biases)
    _require_few(network, rows, biases)
    return network


def _require_few(network: Network, rows: int, biases: bool) -> None:
    """Raises ValueError if the paths of a network are too many to list their features for this many inputs."""
    counts: list[list[int]] = []
    for step in network.steps:
        before = [counts[index] for index in step.inputs]
        counts.append(_paths_to(step, before, biases))
        numbers = rows * math.prod(step.shape) * max(counts[-1])
        if isinstance(step, Layer):
            # The paths of a channel that has few are stored as if they were as many as those of the others.
            windows = math.prod(geometry_of(step).kernel) * math.prod(step.shape[1:])
            numbers = max(numbers, rows * len(before[0]) * max(before[0]) * windows)
        if numbers > _MOST:
            raise ValueError(
                f"model: has {max(counts[-1])} paths to each unit of {step.name}: {numbers:.3g} features for {rows}"
                f" inputs; at most {_MOST:.3g} can be listed, so take a smaller network or fewer inputs"
            )


def _paths_to(step: Step, before: list[list[int]], biases: bool) -> list[int]:
    """The number of paths that end at the units of each channel of a step, from the numbers for its inputs."""
    match step:
        case trace.Input():
            return [1] * step.shape[0]
        case trace.Linear() | trace.Conv2d():
            read, places = step.weight.shape[1], math.prod(step.weight.shape[2:])
            own = int(biases and step.bias is not None)
            groups = [sum(before[0][first : first + read]) for first in range(0, len(before[0]), read)]
            each = len(step.weight) // len(groups)
            return [count * places + own for count in groups for _ in range(each)]
        case trace.AddConstant(constant=constant) if biases:
            return [count + math.prod(constant.shape[-2:]) for count in before[0]]
        case trace.BatchNorm() if biases and has_shift(step):
            return [count + 1 for count in before[0]]
        case trace.Add():
            return [a + b for a, b in zip(*before, strict=True)]
        case trace.Concat():
            return [count for part in before for count in part]
        case Channels(index=index):
            return [before[0][channel] if channel >= 0 else 0 for channel in index]
        case trace.Flatten():
            return [count for count in before[0] for _ in range(step.shape[0] // len(before[0]))]
    return before[0]


def _none_of(step: trace.Gate | trace.MaxPool, x: Tensor) -> Tensor:
    """The masks of a step for no inputs."""
    windows = (math.prod(step.window.kernel),) if isinstance(step, trace.MaxPool) else ()
    return torch.zeros(0, *windows, *step.shape, dtype=torch.bool, device=x.device)


@dataclass(frozen=True)
class _Paths:
    """The paths to the units of a step. P is the number of the paths of one channel; the rows of channels that have
    fewer end with missing ones.

    Args:
        features: ``(n, C, P, H, W)``, at each pixel.
        values: ``(C, P)``.
        kinds: ``(C, P)`` on the CPU: whether channel c has a path number p, and whether that has a weight.
    """

    features: Tensor
    values: Tensor
    kinds: Tensor

    @property
    def exists(self) -> Tensor:
        return self.kinds != _MISSING

    @property
    def of_first(self) -> int:
        """The number of paths of the first channel."""
        return int(self.exists[0].sum())

    def moved(self, geometry: Geometry) -> Tensor:
        """The features at the pixels of each window, ``(n, K, C, P, H', W')``."""
        channels, paths = self.values.shape
        return at_windows(self.features.flatten(1, 2), geometry).unflatten(2, (channels, paths))

    def packed(self) -> _Paths:
        """The same, with the missing paths of each channel behind the others, and P as small as it can be."""
        if bool(self.exists.all()):
            return self
        order = (~self.exists).int().argsort(dim=1, stable=True)[:, : int(self.exists.sum(1).max())]
        channels = torch.arange(len(order)).unsqueeze(1)
        at = [index.to(self.values.device) for index in (channels, order)]
        return _Paths(self.features[:, at[0], at[1]], self.values[at[0], at[1]], self.kinds[channels, order])

    def padded(self, paths: int) -> _Paths:
        """The same, with P = paths."""
        more = paths - self.values.shape[1]
        features = pad(self.features, (0, 0, 0, 0, 0, more))
        return _Paths(features, pad(self.values, (0, more)), pad(self.kinds, (0, more), value=_MISSING))


class _Listing:
    """Follows the paths through the steps, from the input on."""

    def __init__(self, network: Network, recorded: Callable[[int], Tensor], biases: bool) -> None:
        self._network, self._biases = network, biases
        self._masks = {id(step): recorded(index) for index, (step, _) in enumerate(recorded_of(network))}

    def of(self, x: Tensor) -> _Paths:
        """The paths that end at the outputs."""
        found: list[_Paths] = []
        for step in self._network.steps:
            inputs = [found[index] for index in step.inputs]
            found.append(self._behind(step, inputs) if inputs else _starting(x, self._network.layouts[0]))
        return found[-1]

    def _behind(self, step: Step, inputs: list[_Paths]) -> _Paths:
        match step:
            case trace.Linear() | trace.Conv2d():
                return self._layer(step, inputs[0])
            case trace.Add():
                return _joined(*inputs)
            case trace.Concat():
                return _side_by_side(inputs)
            case trace.AddConstant(constant=constant):
                return _joined(inputs[0], _constant(constant.double(), inputs[0])) if self._biases else inputs[0]
            case trace.Scale():
                return _scaled(step, inputs[0])
            case trace.BatchNorm():
                return self._normalised(step, inputs[0])
            case Channels(index=index):
                return _chosen(inputs[0], index)
            case trace.Flatten():
                pixels = math.prod(inputs[0].features.shape[-2:])
                features = inputs[0].features.permute(0, 1, 3, 4, 2).flatten(1, 3)[..., None, None]
                repeated = (part.repeat_interleave(pixels, 0) for part in (inputs[0].values, inputs[0].kinds))
                return _Paths(features, *repeated)
        return replace(inputs[0], features=self._features(step, inputs[0]))

    def _features(self, step: Step, paths: _Paths) -> Tensor:
        """The features behind a step that changes nothing else of the paths."""
        features = paths.features
        match step:
            case trace.Gate(slope=slope):
                mask = self._masks[id(step)].unsqueeze(2)
                if not isinstance(slope, Tensor) and slope == 0:
                    return features * mask
                slopes = torch.as_tensor(slope, dtype=features.dtype, device=features.device).detach()
                return torch.where(mask, features, features * slopes.reshape(-1, 1, 1, 1))
            case trace.MaxPool(window=window):
                return (paths.moved(windows_of(window, step)) * self._masks[id(step)].unsqueeze(3)).sum(1)
            case trace.AvgPool() | trace.Mean():
                window, weights = pool_of(step, *features.shape[-2:])
                geometry = windows_of(window, step)
                return paths.moved(geometry).sum(1) * features.new_tensor(weights).view(geometry.out)
            case trace.Resample(rows=rows, columns=columns):
                return rows.to(features) @ features @ columns.to(features).T
            case Pixels(rows=rows, columns=columns):
                return map_pixels(features.flatten(1, 2), rows, columns).unflatten(1, features.shape[1:3])
        raise ValueError(
            f"model: {step.name} is a {type(step).__name__}, which path kernels do not cover; {GATES_ALONE}"
        )

    def _layer(self, layer: Layer, paths: _Paths) -> _Paths:
        groups = layer.groups if isinstance(layer, trace.Conv2d) else 1
        each = len(layer.weight) // groups
        moved = paths.moved(geometry_of(layer)).movedim(1, 3)  # (n, C, P, K, H', W')
        features = moved.unflatten(1, (groups, -1)).flatten(2, 4).unsqueeze(2)
        features = features.expand(-1, -1, each, *features.shape[3:]).flatten(1, 2)  # (n, C', paths, H', W')
        weight = layer.weight.detach().double().reshape(groups, each, layer.weight.shape[1], 1, -1)
        values = weight * paths.values.reshape(groups, 1, -1, paths.values.shape[1], 1)
        kinds = (paths.exists * _WEIGHTED).to(paths.kinds.dtype).unsqueeze(2).expand(-1, -1, weight.shape[-1])
        kinds = kinds.reshape(groups, -1).repeat_interleave(each, 0)
        made = _Paths(features, values.flatten(2).flatten(0, 1), kinds).packed()
        if layer.bias is None or not self._biases:
            return made
        return _joined(made, _ones(made, layer.bias.detach().double()))

    def _normalised(self, step: trace.BatchNorm, paths: _Paths) -> _Paths:
        """The paths behind a batch norm that is not a part of a layer: its scale is a factor of their values."""
        scale, shift = scale_and_shift(step)
        made = replace(paths, values=paths.values * scale.double().unsqueeze(1))
        if shift is None or not self._biases or not has_shift(step):
            return made
        return _joined(made, _ones(made, shift.double()))


def _starting(x: Tensor, layout: Layout) -> _Paths:
    """The paths to the numbers of the input."""
    images = layout.to_images(x.double())
    kinds = torch.full((images.shape[1], 1), _DIRECT, dtype=torch.int8, device="cpu")
    return _Paths(images.unsqueeze(2), images.new_ones(images.shape[1], 1), kinds)


def _ones(paths: _Paths, values: Tensor) -> _Paths:
    """One path to each channel, with these values (C,) and the feature 1 at every pixel."""
    features = paths.features.new_ones(*paths.features.shape[:2], 1, *paths.features.shape[3:])
    return _Paths(features, values.unsqueeze(1), torch.full_like(paths.kinds[:, :1], _WEIGHTED))


def _scaled(step: trace.Scale, paths: _Paths) -> _Paths:
    """A number, or a constant that the input is multiplied by, is a factor of the features; anything else is one of the
    values."""
    factor = step.factor.detach().double().unsqueeze(1)  # (C or 1, 1, H or 1, W or 1)
    if is_number(step):
        return replace(paths, features=paths.features * factor)
    if any(source.is_parameter for source in step.made_of):
        return replace(paths, values=paths.values * factor.flatten(1))
    direct = (paths.kinds == _DIRECT).to(paths.values.device)
    features = torch.where(direct[..., None, None], paths.features * factor, paths.features)
    if bool((paths.kinds != _WEIGHTED).all()):
        return replace(paths, features=features)
    return replace(paths, features=features, values=torch.where(direct, paths.values, paths.values * factor.flatten(1)))


def _chosen(paths: _Paths, index: tuple[int, ...]) -> _Paths:
    """The paths to some channels; none lead to a channel of index -1."""
    chosen = torch.tensor(index, device="cpu")
    there, kinds = chosen.to(paths.values.device), paths.kinds[chosen]
    kinds[chosen < 0] = _MISSING
    absent = (there < 0).nonzero().flatten()
    features = paths.features[:, there].index_fill(1, absent, 0.0)
    return _Paths(features, paths.values[there].index_fill(0, absent, 0.0), kinds)


def _joined(a: _Paths, b: _Paths) -> _Paths:
    """The paths of both to the same units."""
    made = _Paths(
        torch.cat([a.features, b.features], 2), torch.cat([a.values, b.values], 1), torch.cat([a.kinds, b.kinds], 1)
    )
    return made.packed()


def _side_by_side(parts: list[_Paths]) -> _Paths:
    """The paths to the channels of all parts."""
    most = max(part.values.shape[1] for part in parts)
    equal = [part.padded(most) for part in parts]
    return _Paths(
        torch.cat([part.features for part in equal], 1),
        torch.cat([part.values for part in equal]),
        torch.cat([part.kinds for part in equal]),
    )


def _constant(constant: Tensor, paths: _Paths) -> _Paths:
    """The paths from each number of a constant (of each channel's part) to the pixels that it is added to."""
    n, channels, _, height, width = paths.features.shape
    values = constant.expand(channels, *constant.shape[1:]).flatten(1)
    rows, columns = (
        torch.eye(size, device=values.device) if given > 1 else torch.ones(1, size, device=values.device)
        for given, size in zip(constant.shape[1:], (height, width), strict=True)
    )
    pixels = torch.einsum("rh,sw->rshw", rows, columns).flatten(0, 1).to(values)
    kinds = torch.full(values.shape, _WEIGHTED, dtype=paths.kinds.dtype, device="cpu")
    return _Paths(pixels.expand(n, channels, *pixels.shape), values, kinds)
