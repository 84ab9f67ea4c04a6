"""Runs a list of steps in plain torch: the specification of what each step computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gatedops import trace


def run(steps: list[trace.Step], x: Tensor) -> list[Tensor]:
    """Computes the output of every step."""
    outputs: list[Tensor] = []
    for step in steps:
        sources = [outputs[index] for index in step.inputs] or [x]
        outputs.append(run_step(step, *sources))
        assert tuple(outputs[-1].shape[1:]) == step.shape, step
    return outputs


def run_step(step: trace.Step, x: Tensor, *others: Tensor) -> Tensor:
    match step:
        case trace.Input():
            return x
        case trace.Linear(weight=weight, bias=bias):
            return F.linear(x, weight, bias)
        case trace.Conv2d() | trace.AvgPool() | trace.Resample() | trace.MaxPool() if x.dim() == 3:
            # Channels with one axis are images of one row.
            return _on_images(step, x.unsqueeze(2)).squeeze(2)
        case trace.Conv2d() | trace.AvgPool() | trace.Resample() | trace.MaxPool():
            return _on_images(step, x)
        case trace.Gate():
            return _gated(step, x)
        case trace.Add():
            return x + others[0]
        case trace.AddConstant(constant=constant):
            return x + constant
        case trace.Scale(factor=factor):
            return x * factor
        case trace.Concat(axis=axis):
            return torch.cat([x, *others], axis + 1)
        case trace.Rearrange(source=source):
            assert source.dtype == torch.int64
            with_zero = torch.cat([torch.zeros(len(x), 1, dtype=x.dtype), x.flatten(1)], 1)
            return with_zero[:, source + 1]
        case trace.Flatten():
            return x.flatten(1)
        case trace.Mean(axes=axes, keepdim=keepdim):
            return x.mean([axis + 1 for axis in axes], keepdim)
        case trace.BatchNorm():
            return F.batch_norm(x, step.mean, step.var, step.weight, step.bias, eps=step.eps)
        case trace.Squash(function=function):
            return x.sigmoid() if function == "sigmoid" else getattr(torch, function)(x, 1)
    raise AssertionError(step)


def kinds(steps: list[trace.Step]) -> list[str]:
    return [type(step).__name__ for step in steps]


def _on_images(step: trace.Step, x: Tensor) -> Tensor:
    match step:
        case trace.Conv2d():
            padded = F.pad(x, step.padding, mode={"zeros": "constant", "circular": "circular"}[step.padding_mode])
            return F.conv2d(padded, step.weight, step.bias, step.stride, 0, step.dilation, step.groups)
        case trace.MaxPool(window=w):
            return F.max_pool2d(x, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode)
        case trace.AvgPool(window=w):
            return F.avg_pool2d(x, w.kernel, w.stride, w.padding, w.ceil_mode, step.count_include_pad, step.divisor)
        case trace.Resample(rows=rows, columns=columns):
            assert rows.dtype == columns.dtype == torch.float64
            return rows @ x @ columns.T
    raise AssertionError(step)


def _gated(step: trace.Gate, x: Tensor) -> Tensor:
    if step.inside is not None:
        low, high = step.inside
        inside = (x > low) & (x < high)
        return torch.where(inside, x, torch.where(x <= low, low, high))
    slope = step.slope
    if isinstance(slope, Tensor):
        slope = slope.view(-1, *[1] * (x.dim() - 2))
    return torch.where(x > 0, x, slope * x)
