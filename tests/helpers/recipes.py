"""Networks as lists of operations, so that a test can run one, list its paths, and run it with frozen gates.

An operation is (result, kind, sources, options). Results and sources are names; "x" is the input, and the last result
is the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from conv_paths import Array, Listing, Units
from torch import Tensor, nn

Operation = tuple[str, str, tuple[str, ...], dict[str, Any]]
Masks = Iterator[Tensor]


def op(result: str, kind: str, *sources: str, **options: Any) -> Operation:
    return result, kind, sources, options


class Recipe(nn.Module):
    """A network of float64. Its weights are small numbers, so that products of many weights stay in range.

    Args:
        operations: of kinds conv, norm, linear, relu, max, avg, mean, flatten, add, constant.
        shape: (C, H, W) of an input, or (d,).
    """

    def __init__(self, operations: Sequence[Operation], shape: tuple[int, ...], seed: int = 0) -> None:
        super().__init__()
        self.operations, self.shape = list(operations), shape
        made = torch.Generator().manual_seed(seed)
        run = torch.zeros(1, *shape, dtype=torch.float64)
        values = {"x": run}
        for result, kind, sources, options in self.operations:
            inside = values[sources[0]].shape[1]
            layer = _layer(kind, inside, options)
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
            values[result] = self._result_of((result, kind, sources, options), values, None, None)
        self.eval()

    def forward(self, x: Tensor, frozen: list[Tensor] | None = None, keep: list[Tensor] | None = None) -> Tensor:
        """Runs the network. `frozen` are the gates and the choices of max-pools to use; those of this run go to
        `keep`."""
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

    def _result_of(
        self, operation: Operation, values: dict[str, Tensor], frozen: Masks | None, keep: list[Tensor] | None
    ) -> Tensor:
        result, kind, sources, options = operation
        z = values[sources[0]]
        match kind:
            case "conv" | "linear" | "norm":
                return self.get_submodule(result)(z)
            case "relu":
                mask = z > 0 if frozen is None else next(frozen)
                if keep is not None:
                    keep.append(mask)
                return F.relu(z) if frozen is None else z * mask
            case "max":
                return _max_pool(z, options, frozen, keep)
            case "avg":
                given = (options["kernel"], options["stride"], options["padding"])
                return F.avg_pool2d(z, *given, count_include_pad=options["include"])
            case "mean":
                return z.mean((2, 3))
            case "flatten":
                return z.flatten(1)
            case "add":
                return z + values[sources[1]]
            case "constant":
                return z + self.get_buffer(f"{result}_constant")
        raise AssertionError(kind)


def _layer(kind: str, inside: int, options: dict[str, Any]) -> nn.Module | None:
    match kind:
        case "conv":
            given = {name: options[name] for name in ("stride", "padding", "dilation", "bias")}
            mode = "circular" if options["circular"] else "zeros"
            return nn.Conv2d(inside, options["out"], options["kernel"], padding_mode=mode, **given)
        case "linear":
            return nn.Linear(inside, options["out"], options["bias"])
        case "norm":
            return nn.BatchNorm2d(inside)
    return None


def _max_pool(z: Tensor, options: dict[str, Any], frozen: Masks | None, keep: list[Tensor] | None) -> Tensor:
    given = (options["kernel"], options["stride"], options["padding"])
    if frozen is not None:
        index = next(frozen)
        return z.flatten(2).gather(2, index.flatten(2)).view(index.shape)
    if keep is not None:
        keep.append(F.max_pool2d(z, *given, return_indices=True)[1])
    return F.max_pool2d(z, *given)


def listed(net: Recipe, x: Tensor) -> tuple[Listing, Units]:
    """Lists a network's paths, and returns the listing and the paths that end in each of its outputs."""
    listing = Listing(weights_of(net), len(x))
    return listing, follow(net, listing, x)


def follow(net: Recipe, listing: Any, x: Tensor) -> Units:
    """Follows a network by a listing, and returns what it finds at the outputs."""
    units = {"x": listing.input(x.reshape(len(x), *net.shape, *[1] * (3 - len(net.shape))).numpy())}
    for result, kind, sources, o in net.operations:
        z = units[sources[0]]
        match kind:
            case "conv":
                made = listing.conv(z, result, o["stride"], o["padding"], o["dilation"], o["circular"])
            case "linear":
                made = listing.linear(z, result)
            case "norm":
                made = z  # The batch norm is folded into the convolution before it.
            case "relu":
                made = listing.relu(z)
            case "max":
                made = listing.max_pool(z, o["kernel"], o["stride"], o["padding"])
            case "avg":
                made = listing.avg_pool(z, o["kernel"], o["stride"], o["padding"], o["include"])
            case "mean":
                made = listing.mean(z)
            case "flatten":
                made = listing.flatten(z)
            case "add":
                made = listing.add(z, units[sources[1]])
            case "constant":
                made = listing.constant(z, f"{result}_constant")
        units[result] = made
    return units[net.operations[-1][0]]


def weights_of(net: Recipe) -> dict[str, Array]:
    """Returns the weights by the names of the listing, with batch norms folded into the convolutions before them."""
    found = {name.removesuffix(".weight"): t.detach().numpy() for name, t in net.named_parameters()}
    found |= {name: t.numpy() for name, t in net.named_buffers() if "constant" in name}
    for result, kind, (source, *_), _ in net.operations:
        if kind == "norm":
            norm = net.get_submodule(result)
            gain, shift = found.pop(result), found.pop(f"{result}.bias")
            scale = gain / np.sqrt(norm.running_var.numpy() + norm.eps)
            before = found.get(f"{source}.bias", np.zeros(len(scale)))
            found[source] = found[source] * scale[:, None, None, None]
            found[f"{source}.bias"] = (before - norm.running_mean.numpy()) * scale + shift
    return found
