"""Reads networks that have a path kernel, and folds batch norms into the layers before them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gatedops import trace
from gatedops.devices import most_precise
from gatedops.gatebits import GateBits
from gatedops.nn import DGN
from gatedops.path_kernels.canonical import Layout, Network, network_of
from gatedops.path_kernels.ties import Layer, require_own_weights
from gatedops.trace import Step, record_gates
from gatedops.trace.bare import bare
from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.pooling import Window
from gatedops.trace.wrappers import unwrapped


def read_network(model: nn.Module, x: Tensor, *, biases: bool = True, output: int | str | None = None) -> Network:
    """Reads a network of vectors, tokens or images. Batch norms and factors right behind a layer are parts of it.

    Args:
        biases: biases and constants start paths, so that they too must be independent.
        output: as in :func:`gatedops.trace.steps`.

    Raises:
        TypeError, ValueError: as in :func:`gatedops.trace.steps`; the kernels do not cover a step, which the error
            names.
    """
    require_model(model)
    require_device(devices_of(model), x, "x")
    _require_one_network(model)
    _require_no_lookup(model)
    steps = trace.steps(model, x, name="x", output=output)
    require_own_weights(steps, biases=biases)
    return folded(network_of(steps))


def _require_no_lookup(model: nn.Module) -> None:
    """Raises ValueError, which names the module, if a network looks up rows by whole numbers."""
    for path, module in unwrapped(model).named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise ValueError(
                f"model: {path or 'it'} is an {type(module).__name__}, which takes whole numbers, and path kernels need"
                " inputs of real numbers: give the network behind it, and the embedded tokens as x"
            )


def _require_one_network(model: nn.Module) -> None:
    """Raises ValueError, which names the module, if gates come from another network than the values."""
    for path, module in unwrapped(model).named_modules():
        if isinstance(module, (trace.GatedTwin, DGN)):
            part = f"model.{path}.feature" if path else "model.feature"
            where = f"{path} " if path else ""
            raise ValueError(
                f"model: {where}is a {type(module).__name__}, which holds two networks; give the one whose gates you"
                f" mean: npk({part}, x)"
            )


def pool_of(step: trace.AvgPool | trace.Mean, height: int, width: int) -> tuple[Window, tuple[float, ...]]:
    """The window that a step averages over, and for each output pixel the factor of its sum."""
    if isinstance(step, trace.Mean):
        return Window((height, width), (height, width), (0, 0), (1, 1)), (1 / (height * width),)
    window, ones = step.window, torch.ones(1, 1, height, width, dtype=torch.float64, device="cpu")
    average = nn.functional.avg_pool2d
    arguments = (ones, window.kernel, window.stride, window.padding, window.ceil_mode)
    weights = average(*arguments, step.count_include_pad, step.divisor) / average(*arguments, True, 1)
    # A window that is all padding gives 0 / 0.
    return window, tuple(weights.nan_to_num(0.0).flatten().tolist())


def is_number(step: trace.Scale) -> bool:
    """Whether a step multiplies all by one number that is not a parameter."""
    return step.factor.numel() == 1 and not any(source.is_parameter for source in step.made_of)


def folded(network: Network) -> Network:
    """The same network, in which each batch norm, and each factor that is not a number, is a part of the layer before
    it if nothing else reads that layer."""
    readers = Counter(index for step in network.steps for index in step.inputs)
    kept: list[Step] = []
    layouts: list[Layout] = []
    # Gives the new index of each old one.
    index_of: list[int] = []
    for step, layout in zip(network.steps, network.layouts, strict=True):
        if isinstance(step, trace.BatchNorm) or (isinstance(step, trace.Scale) and not is_number(step)):
            index = index_of[step.inputs[0]]
            layer = kept[index]
            if isinstance(layer, Layer) and readers[step.inputs[0]] == 1 and _is_by_channel(step):
                kept[index] = _with_factors(layer, step)
                index_of.append(index)
                continue
        index_of.append(len(kept))
        kept.append(replace(step, inputs=tuple(index_of[index] for index in step.inputs)))
        layouts.append(layout)
    return Network(kept, layouts)


def _is_by_channel(step: trace.BatchNorm | trace.Scale) -> bool:
    return isinstance(step, trace.BatchNorm) or step.factor.shape[-2:].numel() == 1


def scale_and_shift(step: trace.BatchNorm | trace.Scale) -> tuple[Tensor, Tensor | None]:
    """What a step multiplies each channel by, and then adds to it: ``(C,)``, in float64 if the device has it."""
    if isinstance(step, trace.Scale):
        return step.factor.detach().to(most_precise(step.factor.device)).flatten().expand(step.shape[0]), None
    scale = (step.var.to(most_precise(step.var.device)) + step.eps).rsqrt()
    if step.weight is not None:
        scale = scale * step.weight
    shift = -step.mean * scale
    return scale.detach(), (shift if step.bias is None else shift + step.bias).detach()


def has_shift(step: trace.BatchNorm) -> bool:
    """Whether a batch norm adds something; False if it maps 0 to 0, whatever its parameters are."""
    return step.bias is not None or step.mean.is_meta or bool(step.mean.any())


def _with_factors(layer: Layer, step: trace.BatchNorm | trace.Scale) -> Layer:
    """A layer that computes the same as the layer and the step behind it."""
    scale, shift = scale_and_shift(step)
    bias = None if layer.bias is None else layer.bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return replace(layer, weight=weight.detach(), bias=None if bias is None else bias.detach())


def weighted_layers(steps: Sequence[Step]) -> list[Layer]:
    """The layers that have weights, in order."""
    return [step for step in steps if isinstance(step, Layer)]


def recorded_of(network: Network) -> list[tuple[trace.Gate | trace.MaxPool, Layout]]:
    """The steps whose masks record_gates records, in order, and how their outputs lie in the model."""
    pairs = zip(network.steps, network.layouts, strict=True)
    return [(step, layout) for step, layout in pairs if isinstance(step, trace.Gate | trace.MaxPool)]


def recorded_gates(
    model: nn.Module, network: Network, inputs: Tensor | None, batch_size: int, progress: bool | None
) -> GateBits | None:
    """The recorded layers, one for each gate and max-pool of the network; None if there are none."""
    expected = [
        (step.name, layout.image if isinstance(step, trace.MaxPool) else layout.shape)
        for step, layout in recorded_of(network)
    ]
    if inputs is None or not expected:
        return None
    with bare(model) as inner, warnings.catch_warnings():
        # An activation without gates can stand only at the end, where it is left out; trace.steps refuses any other.
        warnings.filterwarnings("ignore", "these activations have no gates", UserWarning)
        bits = record_gates(inner, inputs, batch_size, max_pool=True, activations="piecewise", progress=progress)
    found, needed = [layer.name for layer in bits.layers], [name for name, _ in expected]
    first = network.steps[0]
    if not isinstance(first, trace.Input) or found != list(first.activations):
        raise ValueError(
            f"model: calls the activations and max-pools {found}, but its output depends on {needed}; path kernels need"
            " a network without unused ones: remove the others"
        )
    # Those that are left belong to other outputs.
    bits = bits if found == needed else bits.select_layers(needed)
    shapes = [layer.shape[1:] if layer.kind == "select" else layer.shape for layer in bits.layers]
    if shapes != [shape for _, shape in expected]:
        raise RuntimeError(f"gates have shapes {shapes}, needs {expected}")
    return bits
