"""Checks the steps of networks that have a path kernel, and folds batch norms into the layers before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gatedops import trace
from gatedops.devices import most_precise
from gatedops.gatebits import GateBits
from gatedops.nn import DGN
from gatedops.path_kernels.ties import Layer, require_own_weights
from gatedops.trace import Step, record_gates
from gatedops.trace.bare import bare
from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.pooling import Window
from gatedops.trace.step_builder import GATES_ALONE
from gatedops.trace.wrappers import unwrapped


def steps_of(model: nn.Module, x: Tensor, *, biases: bool = True) -> list[Step]:
    """The steps of a network of vectors or images, without batch norms: each is folded into the layer before it.

    Args:
        biases: biases and constants start paths, so that they too must be independent.

    Raises:
        TypeError, ValueError: as in :func:`gatedops.trace.steps`; the kernels do not cover a step, which the error
            names.
    """
    require_model(model)
    require_device(devices_of(model), x, "x")
    _require_one_network(model)
    steps = trace.steps(model, x, name="x")
    for step in steps:
        _require_covered(step, [steps[index] for index in step.inputs])
    require_own_weights(steps, biases=biases)
    return folded(steps)


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


def shape_of(step: Step) -> tuple[int, int, int]:
    """(channels, height, width) of a step's output; an output without images is one pixel."""
    channels, height, width = step.shape if len(step.shape) == 3 else (step.shape[0], 1, 1)
    return channels, height, width


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


def _require_covered(step: Step, inputs: list[Step]) -> None:
    match step:
        case trace.Conv2d(groups=groups) if groups != 1:
            raise ValueError(f"model: {step.name} has {groups} groups; path kernels cover only groups=1: {GATES_ALONE}")
        case trace.Linear() if len(inputs[0].shape) != 1:
            raise ValueError(f"model: {step.name} is a Linear layer on {inputs[0].shape}; flatten its input")
        case trace.Mean(axes=axes) if axes != (1, 2) or len(inputs[0].shape) != 3:
            raise ValueError(
                f"model: {step.name} is a mean over axes {axes}, but path kernels need one over all pixels, (1, 2): use"
                " x.mean((2, 3)) of (n, C, H, W)"
            )


def folded(steps: list[Step]) -> list[Step]:
    """The same steps with each batch norm folded into the layer before it; only the batch norm may read that layer."""
    readers = Counter(index for step in steps for index in step.inputs)
    kept: list[Step] = []
    # Gives the new index of each old one.
    index_of: list[int] = []
    for step in steps:
        if isinstance(step, trace.BatchNorm):
            index = index_of[step.inputs[0]]
            layer = kept[index]
            if not isinstance(layer, Layer) or readers[step.inputs[0]] != 1:
                raise ValueError(
                    f"model: {step.name} is a batch norm behind {layer.name}; path kernels cover it only right behind a"
                    " Linear or Conv2d layer whose output nothing else reads: put it there, or replace it by"
                    " nn.Identity()"
                )
            kept[index] = _with_batch_norm(layer, step)
            index_of.append(index)
        else:
            index_of.append(len(kept))
            kept.append(replace(step, inputs=tuple(index_of[index] for index in step.inputs)))
    return kept


def _with_batch_norm(layer: Layer, norm: trace.BatchNorm) -> Layer:
    """A layer that computes the same as the layer and the batch norm, in float64 if the device has it."""
    scale = (norm.var.to(most_precise(norm.var.device)) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.mean if layer.bias is None else layer.bias - norm.mean
    bias = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    return replace(layer, weight=weight.detach(), bias=bias.detach())


def weighted_layers(steps: Sequence[Step]) -> list[Layer]:
    """The layers that have weights, in order."""
    return [step for step in steps if isinstance(step, Layer)]


def recorded_of(steps: Sequence[Step]) -> list[trace.Gate | trace.MaxPool]:
    """The steps whose masks record_gates records, in order."""
    return [step for step in steps if isinstance(step, trace.Gate | trace.MaxPool)]


def recorded_gates(
    model: nn.Module, steps: list[Step], inputs: Tensor | None, batch_size: int, progress: bool | None
) -> GateBits | None:
    """The recorded layers, one for each gate and max-pool of the steps; None if there are none."""
    expected = [(step.name, step.shape) for step in recorded_of(steps)]
    if inputs is None or not expected:
        return None
    with bare(model) as inner:
        bits = record_gates(inner, inputs, batch_size, max_pool=True, progress=progress)
    found = [(layer.name, layer.shape[-3:]) for layer in bits.layers]
    if found != expected:
        raise ValueError(
            f"model: calls the ReLUs and max-pools {[name for name, _ in found]}, but its output depends on"
            f" {[name for name, _ in expected]}; path kernels need a network without unused ones: remove the others"
        )
    return bits
