"""Networks as lists of operations, so that a test can run one, list its paths, and run it with frozen gates.

An operation is (result, kind, sources, options). Results and sources are names; "x" is the input, and the last result
is the output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conv_paths import Array, Listing, Pair, Units, places
from torch import Tensor, nn

Operation = tuple[str, str, tuple[str, ...], dict[str, Any]]
Masks = Iterator[Tensor]

# These operations are layers, whose weights are independent.
LAYERS = ("conv", "transposed", "linear")


def op(result: str, kind: str, *sources: str, **options: Any) -> Operation:
    return result, kind, sources, options


class Recipe(nn.Module):
    """A network of float64. Its weights are small numbers, so that products of many weights stay in range.

    Args:
        operations: of the kinds

            - conv, transposed (kernel, stride, padding), linear, norm (batch norm), gain (a parameter for each channel)
            - relu, leaky (slope), prelu (slopes: 1 or one for each channel), abs, relu6
            - max, avg, adaptive (size), mean, flatten
            - add, cat, constant, scale (factor: a number, or one for each channel of the input)
            - slice (start, stop, step) and chunk (parts, index) of channels, shuffle (groups) them
            - pad (sides, mode) and crop (sides) images, nearest (factor) and bilinear (size) to resize them
        shape: (C, H, W) of an input, (C, T) if there is a convolution or a pool, else (T, d) or (d,).
    """

    def __init__(self, operations: Sequence[Operation], shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        self.operations, self.shape = list(operations), shape
        # Says which axis holds the channels: tokens are (n, T, d).
        is_tokens = len(shape) == 2 and not any(kind in ("conv", "avg") for _, kind, _, _ in operations)
        self.axis = 2 if is_tokens else 1
        made = torch.Generator().manual_seed(seed)
        values = {"x": torch.zeros(1, *shape, dtype=torch.float64)}
        for operation in self.operations:
            result, kind, sources, options = operation
            assert result not in values, f"{result} is the name of two results"
            z = values[sources[0]]
            layer = _layer(kind, z.shape[-1 if kind == "linear" else 1], z.dim(), options)
            if layer is not None:
                for tensor in layer.state_dict().values():
                    if tensor.is_floating_point():
                        tensor.normal_(generator=made)
                if kind == "norm":
                    layer.running_var.uniform_(0.5, 2, generator=made)
                self.add_module(result, layer.double().eval())
            if kind == "constant":
                constant = torch.randn(options["shape"], generator=made, dtype=torch.float64)
                self.register_buffer(f"{result}_constant", constant)
            values[result] = self._result_of(operation, values, None, None)
        self.eval()

    def forward(self, x: Tensor, frozen: list[Tensor] | None = None, keep: list[Tensor] | None = None) -> Tensor:
        """Runs the network. `frozen` are the gates and the choices of max-pools to use; those of this run go to
        `keep`. A frozen network has no batch norms, gains and constants: their numbers are parts of weights, or move
        gates only."""
        values, masks = {"x": x}, None if frozen is None else iter(frozen)
        for operation in self.operations:
            values[operation[0]] = self._result_of(operation, values, masks, keep)
        return values[self.operations[-1][0]]

    def frozen(self, x: Tensor) -> list[Tensor]:
        """Returns the gates and the choices of max-pools of a run."""
        keep: list[Tensor] = []
        with torch.no_grad():
            self(x, keep=keep)
        return keep

    def inputs(self, n: int, seed: int = 0) -> Tensor:
        return torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def weights(self) -> dict[str, nn.Parameter]:
        """Returns the weights and the biases of all layers, in the order of the operations."""
        names = [f"{result}.{part}" for result, kind, _, _ in self.operations if kind in LAYERS for part in _PARTS]
        found = dict(self.named_parameters())
        return {name: found[name] for name in names if name in found}

    @property
    def has_paths_of_constants(self) -> bool:
        """Whether bias="path" is possible: no path carries the constant above the limit of ReLU6."""
        return all(kind != "relu6" for _, kind, _, _ in self.operations)

    def _result_of(
        self, operation: Operation, values: dict[str, Tensor], frozen: Masks | None, keep: list[Tensor] | None
    ) -> Tensor:
        result, kind, sources, options = operation
        z = values[sources[0]]
        match kind:
            case "conv" | "transposed" | "linear":
                return self.get_submodule(result)(z)
            case "norm" | "gain":
                return self.get_submodule(result)(z) if frozen is None else z
            case "relu" | "leaky" | "prelu" | "abs" | "relu6":
                return self._gated(operation, z, frozen, keep)
            case "max":
                return _max_pool(z, options, frozen, keep)
            case "add":
                return z + values[sources[1]]
            case "cat":
                return torch.cat([values[source] for source in sources], self.axis if z.dim() > 2 else 1)
            case "constant":
                return z + self.get_buffer(f"{result}_constant") if frozen is None else z
            case "scale":
                factor = options["factor"]
                return z * (factor if isinstance(factor, float) else self._by_channel(torch.tensor(factor), z))
            case "mean":
                return z.mean([axis for axis in range(1, z.dim()) if axis != self.axis])
            case "flatten":
                return z.flatten(1)
            case "slice" | "chunk" | "shuffle":
                return _channels(z, kind, options, self.axis if z.dim() > 2 else 1)
        return _pixels(z, kind, options)

    def _by_channel(self, numbers: Tensor, z: Tensor) -> Tensor:
        """Shapes numbers, one for each channel, so that they broadcast to z."""
        return numbers.to(z).view(-1, *[1] * (z.dim() - 1 - self.axis)) if z.dim() > 2 else numbers.to(z)

    def _gated(self, operation: Operation, z: Tensor, frozen: Masks | None, keep: list[Tensor] | None) -> Tensor:
        result, kind, _, options = operation
        mask = ((z > 0) & (z < 6) if kind == "relu6" else z > 0) if frozen is None else next(frozen)
        if keep is not None:
            keep.append(mask)
        slope = 0.0
        if kind == "prelu":
            slope = self.get_submodule(result).weight
            slope = self._by_channel(slope, z) if slope.numel() > 1 else slope
        elif kind in ("leaky", "abs"):
            slope = options.get("slope", -1.0)
        if frozen is not None:
            return torch.where(mask, z, slope * z)
        match kind:
            case "leaky":
                return F.leaky_relu(z, slope)
            case "prelu":
                return self.get_submodule(result)(z)
            case "abs":
                return z.abs()
            case "relu6":
                return F.relu6(z)
        return F.relu(z)


_PARTS = ("weight", "bias")


def _layer(kind: str, inside: int, axes: int, options: dict[str, Any]) -> nn.Module | None:
    match kind:
        case "conv":
            given = {name: options[name] for name in ("stride", "padding", "dilation", "groups", "bias")}
            layer = nn.Conv1d if axes == 3 else nn.Conv2d
            return layer(inside, options["out"], options["kernel"], padding_mode=options["mode"], **given)
        case "transposed":
            return nn.ConvTranspose2d(inside, options["out"], options["kernel"], options["stride"], options["padding"])
        case "linear":
            return nn.Linear(inside, options["out"], options["bias"])
        case "norm":
            return (nn.BatchNorm2d if axes == 4 else nn.BatchNorm1d)(inside)
        case "gain":
            return Gain(inside, axes - 2)
        case "prelu":
            return nn.PReLU(options["slopes"])
    return None


class Gain(nn.Module):
    """Multiplies each channel by a parameter."""

    def __init__(self, channels: int, pixel_axes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, *[1] * pixel_axes))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _max_pool(z: Tensor, options: dict[str, Any], frozen: Masks | None, keep: list[Tensor] | None) -> Tensor:
    given = (options["kernel"], options["stride"], options["padding"])
    if frozen is not None:
        index = next(frozen)
        return z.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    if keep is not None:
        keep.append(F.max_pool2d(z, *given, return_indices=True)[1])
    return F.max_pool2d(z, *given)


def _channels(z: Tensor, kind: str, options: dict[str, Any], axis: int) -> Tensor:
    """Takes some channels, or puts them in another order."""
    match kind:
        case "slice":
            part = slice(options["start"], options["stop"], options["step"])
            return z[(*[slice(None)] * axis, part)]
        case "chunk":
            return z.chunk(options["parts"], axis)[options["index"]]
    groups = options["groups"]
    return z.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pixels(z: Tensor, kind: str, options: dict[str, Any]) -> Tensor:
    """Averages, moves or resizes pixels."""
    match kind:
        case "avg":
            pool = F.avg_pool1d if z.dim() == 3 else F.avg_pool2d
            given = (options["kernel"], options["stride"], options["padding"])
            return pool(z, *given, count_include_pad=options["include"])
        case "adaptive":
            return F.adaptive_avg_pool2d(z, options["size"])
        case "pad":
            mode = options["mode"]
            return F.pad(z, options["sides"], "constant" if mode == "zeros" else mode)
        case "crop":
            top, bottom, left, right = options["sides"]
            return z[..., top : z.shape[-2] - bottom, left : z.shape[-1] - right]
        case "nearest":
            return F.interpolate(z, scale_factor=options["factor"])
        case "bilinear":
            return F.interpolate(z, options["size"], mode="bilinear")
    raise AssertionError(kind)


# --- listing -----------------------------------------------------------------------------------------------------


def listed(net: Recipe, x: Tensor) -> tuple[Listing, Units]:
    """Lists a network's paths, and returns the listing and the paths that end in each of its outputs."""
    listing = Listing(weights_of(net), len(x))
    return listing, follow(net, listing, x)


def follow(net: Recipe, listing: Listing, x: Tensor) -> Units:
    """Follows a network by a listing, and returns what it finds at the outputs."""
    images = x.movedim(net.axis, 1).reshape(len(x), x.shape[net.axis], *_size(net)).numpy()
    units = {"x": listing.input(images)}
    folded = _folded(net)
    for operation in net.operations:
        result, kind, sources, options = operation
        z = units[sources[0]]
        match kind:
            case "norm" | "gain":
                made = z if result in folded else listing.gain(z, result)
            case "add":
                made = listing.add(z, units[sources[1]])
            case "cat":
                made = np.concatenate([units[source] for source in sources])
            case "constant":
                made = listing.constant(z, f"{result}_constant")
            case "flatten":
                # Flattened tokens have the channels of each token side by side.
                made = listing.flatten(z if net.axis == 1 else z.transpose(1, 2, 0))
            case "slice" | "chunk" | "shuffle":
                order = _channels(torch.arange(len(z)).view(1, -1, 1), kind, options, 1)
                made = z[order.flatten().tolist()]
            case "conv" | "transposed" | "linear" | "relu" | "leaky" | "prelu" | "abs" | "relu6" | "scale":
                made = _follow_units(net, listing, operation, z)
            case _:
                made = _follow_pixels(net, listing, operation, z)
        units[result] = made
    return units[net.operations[-1][0]]


def _follow_units(net: Recipe, listing: Listing, operation: Operation, z: Units) -> Units:
    result, kind, _, o = operation
    match kind:
        case "conv":
            given = {name: o[name] for name in ("stride", "dilation", "groups", "mode")}
            return listing.conv(z, result, padding=_pair(net, o["padding"], 0), **given)
        case "transposed":
            return listing.transposed(z, result, stride=o["stride"], padding=o["padding"])
        case "linear":
            return listing.linear(z, result)
        case "leaky" | "abs":
            return listing.relu(z, o.get("slope", -1.0))
        case "prelu":
            return listing.relu(z, net.get_submodule(result).weight.detach().numpy())
        case "relu6":
            return listing.relu(z, limit=f"{result}_constant")
        case "relu":
            return listing.relu(z)
    return listing.scale(z, o["factor"]) if isinstance(o["factor"], float) else listing.standardize(z, result)


def _follow_pixels(net: Recipe, listing: Listing, operation: Operation, z: Units) -> Units:
    _, kind, _, o = operation
    (_, height, width) = z.shape
    match kind:
        case "max" | "avg":
            window = (_pair(net, o["kernel"], 1), _pair(net, o["stride"], 1), _pair(net, o["padding"], 0))
            return listing.max_pool(z, *window) if kind == "max" else listing.avg_pool(z, *window, include=o["include"])
        case "adaptive":
            return listing.adaptive(z, o["size"])
        case "mean":
            return listing.mean(z)
        case "pad":
            left, right, top, bottom = (*o["sides"], 0, 0)[:4]
            return listing.moved(z, places(height, top, bottom, o["mode"]), places(width, left, right, o["mode"]))
        case "crop":
            top, bottom, left, right = o["sides"]
            return listing.moved(z, range(top, height - bottom), range(left, width - right))
        case "nearest":
            rows, columns = (np.arange(size).repeat(o["factor"]).tolist() for size in (height, width))
            return listing.moved(z, rows if net.axis == 1 and len(net.shape) == 3 else [0], columns)
        case "bilinear":
            return listing.resample(z, _between(height, o["size"][0]), _between(width, o["size"][1]))
    raise AssertionError(kind)


def _size(net: Recipe) -> Pair:
    """The height and width of the images that inputs are."""
    return net.shape[1:] if len(net.shape) == 3 else (1, math.prod(net.shape) // net.shape[net.axis - 1])


def _pair(net: Recipe, across: int, down: int) -> Pair:
    """A number for the height and one for the width, which is the only one of one-dimensional convolutions."""
    return (across, across) if len(net.shape) == 3 else (down, across)


def _between(size: int, wanted: int) -> Array:
    """The weights (wanted, size) of linear interpolation between the centres of pixels."""
    weights = np.zeros((wanted, size))
    for to in range(wanted):
        at = min(max((to + 0.5) * size / wanted - 0.5, 0.0), size - 1.0)
        below = min(int(at), size - 2) if size > 1 else 0
        weights[to, below] += 1 - (at - below)
        weights[to, min(below + 1, size - 1)] += at - below
    return weights


def _folded(net: Recipe) -> dict[str, str]:
    """Maps each batch norm that is right behind a layer which nothing else reads to that layer."""
    kinds = {result: kind for result, kind, _, _ in net.operations}
    read = [source for _, _, sources, _ in net.operations for source in sources]
    return {
        result: source
        for result, kind, (source, *_), _ in net.operations
        if kind == "norm" and kinds.get(source) in LAYERS and read.count(source) == 1
    }


def weights_of(net: Recipe) -> dict[str, Array]:
    """Returns the weights by the names of the listing, with batch norms folded into the layers before them."""
    found = {name.removesuffix(".weight"): t.detach().numpy() for name, t in net.named_parameters()}
    constants = {name: t.numpy() for name, t in net.named_buffers() if "constant" in name}
    # Those of sequences are images of one row.
    found |= {name: value if value.ndim != 2 else value[:, None] for name, value in constants.items()}
    folded, kinds = _folded(net), {result: kind for result, kind, _, _ in net.operations}
    for result, kind, (source, *_), options in net.operations:
        if kind == "conv" and found[result].ndim == 3:
            found[result] = found[result][:, :, None]
        if kind == "gain":
            found[result] = found[result].ravel()
        if kind == "scale" and not isinstance(options["factor"], float):
            found[result] = np.array(options["factor"])
        if kind == "relu6":
            found[f"{result}_constant"] = np.array([6.0])
        if kind == "norm":
            norm = net.get_submodule(result)
            scale = found[result] / np.sqrt(norm.running_var.numpy() + norm.eps)
            shift = found[f"{result}.bias"] - norm.running_mean.numpy() * scale
            if result in folded:
                del found[result], found[f"{result}.bias"]
                before = found.get(f"{source}.bias", np.zeros(len(scale)))
                shape = [1] * found[source].ndim
                shape[1 if kinds[source] == "transposed" else 0] = -1
                found[source] = found[source] * scale.reshape(shape)
                found[f"{source}.bias"] = before * scale + shift
            else:
                found[result], found[f"{result}.bias"] = scale, shift
    return found
