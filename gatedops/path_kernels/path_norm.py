"""path_norm: computes a norm of the values of all paths, in one pass (docs/math.md, section 13)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops import trace
from gatedops.ops.checks import require_float64
from gatedops.path_kernels.canonical import Channels, Network, Pixels, network_of
from gatedops.path_kernels.geometry import windows_of
from gatedops.path_kernels.network import folded, pool_of, scale_and_shift
from gatedops.path_kernels.npk_args import as_floats, inputs_of
from gatedops.path_kernels.windows import at_windows, map_pixels
from gatedops.scalars import real_number
from gatedops.trace import Step
from gatedops.trace.bare import bare
from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.example import example_of

_PART = "take the norm of the part before it: path_norm(part, p)"

# A Power maps the factors of paths to powers of their absolute values, in the dtype of the sums.
Power = Callable[[Tensor], Tensor]


def path_norm(
    model: nn.Module, p: float, x: Tensor | np.ndarray | None = None, *, output: int | str | None = None
) -> float:
    """Returns ``(sum over all paths to all outputs of |value| ** p) ** (1 / p)`` (Neyshabur, Tomioka & Srebro 2015,
    arXiv 1503.00036).

    It runs an input of ones once through the network without gates, with every weight w replaced by ``|w| ** p``. Every
    path from a pixel to an output counts on its own, also paths of a convolution that share weights. A gate passes on
    all paths as they are, also one that has a slope (LeakyReLU) or is off above a bound (ReLU6). A max-pool passes on
    the paths of all pixels of a window. Averages, interpolation and factors multiply the values of their paths. Biases
    and constants start paths of their own. A batch norm is folded into the layer before it; if there is none, its scale
    is a factor and its shift starts paths. So the norm does not change if the weights into a unit are multiplied by a
    number and those out of it are divided by it. A softmax, log_softmax or sigmoid of all outputs is left out.

    Args:
        model: has only operations of :func:`gatedops.trace.steps`, none of which mixes channels and pixels, and is in
            evaluation mode.
        p: greater than 0.
        x: an input ``(n, ...)``, of which only the shape is used: the number of paths depends on the size of images.
            None: the shape is looked for, and the model must take only one.
        output: the index or key of the output whose norm is wanted, if the model returns several.

    Returns:
        The norm, computed in float64.

    Raises:
        TypeError, ValueError: an argument has another form; :func:`gatedops.trace.steps` refuses the model; channels
            and pixels are mixed; the norm overflows float64.
    """
    p = _power_of(p)
    require_model(model)
    if x is None:
        with bare(model) as inner:
            x = example_of(inner, unique=True)
    x = as_floats(inputs_of(x, otherwise="flatten them")[0], model)
    require_device(devices_of(model), x, "x")
    require_float64(x.device, "x")
    steps = trace.steps(model, x, output=output, name="x", otherwise=_PART)
    network = folded(network_of(steps, otherwise=_PART))
    total = float(path_sums(network, lambda factor: factor.detach().double().abs() ** p, x.device).sum())
    if not math.isfinite(total):
        raise ValueError(f"p: the sum of |value| ** {p} over the model's paths overflows float64; take a smaller p")
    return total ** (1 / p)


def _power_of(p: Any) -> float:
    """p as a float; ValueError unless it is a finite number greater than 0."""
    number = real_number(p)
    if number is None:
        raise ValueError(f"p: got {type(p).__name__}, needs a number greater than 0; the arguments are (model, p)")
    if not 0 < number < math.inf:
        raise ValueError(f"p: got {number:g}, needs a finite number greater than 0")
    return number


def path_sums(network: Network, power: Power, device: torch.device) -> Tensor:
    """The sums of |value| ** p over the paths to each output, ``(1, C, H, W)``; `power` maps a tensor to its |.| ** p.

    Raises:
        ValueError: path norms do not cover a step.
    """
    sums: list[Tensor] = []
    for step in network.steps:
        inputs = [sums[index] for index in step.inputs]
        sums.append(_behind(step, power, inputs) if inputs else power(torch.ones(1, *step.shape, device=device)))
    return sums[-1]


def _behind(step: Step, power: Power, inputs: list[Tensor]) -> Tensor:
    """The sums over the paths to each unit of a step, from those for its inputs."""
    z = inputs[0]
    match step:
        case trace.Linear(weight=weight, bias=bias):
            return F.linear(z.movedim(1, -1), power(weight), None if bias is None else power(bias)).movedim(-1, 1)
        case trace.Conv2d(weight=weight, bias=bias):
            padded = F.pad(z, step.padding, "circular" if step.padding_mode == "circular" else "constant")
            values = (power(weight), None if bias is None else power(bias))
            return F.conv2d(padded, *values, step.stride, 0, step.dilation, step.groups)
        case trace.Gate():
            return z
        case trace.Add():
            return z + inputs[1]
        case trace.AddConstant(constant=constant):
            return z + power(constant)
        case trace.Scale(factor=factor):
            return z * power(factor)
        case trace.BatchNorm():
            scale, shift = scale_and_shift(step)
            scaled = z * power(scale).view(-1, 1, 1)
            return scaled if shift is None else scaled + power(shift).view(-1, 1, 1)
    return _moved(step, power, inputs)


def _moved(step: Step, power: Power, inputs: list[Tensor]) -> Tensor:
    """The same for a step that moves, sums or averages units."""
    z = inputs[0]
    match step:
        case trace.MaxPool(window=window):
            return at_windows(z, windows_of(window, step)).sum(1)
        case trace.AvgPool() | trace.Mean():
            window, weights = pool_of(step, *z.shape[-2:])
            geometry = windows_of(window, step)
            return at_windows(z, geometry).sum(1) * power(z.new_tensor(weights)).view(geometry.out)
        case trace.Resample(rows=rows, columns=columns):
            return power(rows.to(z.device)) @ z @ power(columns.to(z.device)).T
        case Pixels(rows=taken, columns=across):
            return map_pixels(z, taken, across)
        case Channels(index=index):
            chosen = torch.tensor(index, device=z.device)
            return z[:, chosen] * (chosen >= 0).view(-1, 1, 1)
        case trace.Concat():
            return torch.cat(inputs, 1)
        case trace.Flatten():
            return z.flatten(1)[:, :, None, None]
    raise ValueError(f"model: {step.name} is a {type(step).__name__}, which path norms do not cover; {_PART}")
