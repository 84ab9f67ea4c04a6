"""path_norm: computes a norm of the values of all paths, in one pass (docs/math.md, section 13)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops import trace
from gatedops.ops.checks import require_float64
from gatedops.path_kernels.geometry import windows_of
from gatedops.path_kernels.masks import at_windows
from gatedops.path_kernels.network import folded, pool_of
from gatedops.path_kernels.npk_args import as_floats, inputs_of
from gatedops.scalars import real_number
from gatedops.trace import Step
from gatedops.trace.bare import bare
from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.example import example_of

_PART = "take the norm of the part before it: path_norm(part, p)"


def path_norm(model: nn.Module, p: float, x: Tensor | np.ndarray | None = None) -> float:
    """Returns ``(sum over all paths to all outputs of |value| ** p) ** (1 / p)`` (Neyshabur, Tomioka & Srebro 2015,
    arXiv 1503.00036).

    It runs an input of ones once through the network without gates, with every weight w replaced by ``|w| ** p``. Every
    path from a pixel to an output counts on its own, also paths of a convolution that share weights. A max-pool passes
    on the paths of all pixels of a window, and an average divides the values of its paths. Biases and constants start
    paths of their own, and batch norms are folded into the layers before them. So the norm does not change if the
    weights into a unit are multiplied by a number and those out of it are divided by it.

    Args:
        model: has only operations of :func:`gatedops.trace.steps`, is in evaluation mode, and has batch norms only
            behind layers.
        p: greater than 0.
        x: an input ``(n, ...)``, of which only the shape is used: the number of paths depends on the size of images.
            None: the shape is looked for, and the model must take only one.

    Returns:
        The norm, computed in float64.

    Raises:
        TypeError, ValueError: an argument has another form; :func:`gatedops.trace.steps` refuses the model; the norm
            overflows float64.
    """
    p = _power_of(p)
    require_model(model)
    if x is None:
        with bare(model) as inner:
            x = example_of(inner, unique=True)
    x = as_floats(inputs_of(x, otherwise="flatten them")[0], model)
    require_device(devices_of(model), x, "x")
    require_float64(x.device, "x")
    sums: list[Tensor] = []
    for step in folded(trace.steps(model, x, name="x", otherwise=_PART)):
        inputs = [sums[index] for index in step.inputs]
        sums.append(_through(step, p, *inputs) if inputs else torch.ones(1, *step.shape, device=x.device).double())
    total = float(sums[-1].sum())
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


def _through(step: Step, p: float, z: Tensor, other: Tensor | None = None) -> Tensor:
    """The sums of |value| ** p over the paths to each unit of a step, from the sums for its inputs."""
    match step:
        case trace.Linear(weight=weight, bias=bias):
            return F.linear(z, _power(weight, p), None if bias is None else _power(bias, p))
        case trace.Conv2d(weight=weight, bias=bias):
            padded = F.pad(z, step.padding, "circular" if step.padding_mode == "circular" else "constant")
            values = (_power(weight, p), None if bias is None else _power(bias, p))
            return F.conv2d(padded, *values, step.stride, 0, step.dilation, step.groups)
        case trace.Gate():
            return z
        case trace.MaxPool(window=window):
            return at_windows(z, windows_of(window, step)).sum(1)
        case trace.AvgPool() | trace.Mean(axes=(1, 2)):
            window, weights = pool_of(step, *z.shape[-2:])
            sums = at_windows(z, windows_of(window, step)).sum(1)
            return (sums * z.new_tensor(weights).abs().view(sums.shape[-2:]) ** p).view(1, *step.shape)
        case trace.Flatten():
            return z.flatten(1)
        case trace.Add() if other is not None:
            return z + other
        case trace.AddConstant(constant=constant):
            return z + _power(constant, p)
    raise ValueError(f"model: {step.name} is a {type(step).__name__}, which path norms do not cover; {_PART}")


def _power(values: Tensor, p: float) -> Tensor:
    return values.detach().double().abs() ** p
