"""The second moments of a network over random weights, without channel sets, masks or programs: what npk has to give,
for every kind of step.

For a pair of inputs it holds E[h_i(u) h'_j(u')] for all pairs of steps (i, j) and all units u, u' of both, as a dense
matrix. A step that is linear once the gates are fixed is applied to the rows and to the columns of these matrices; a
layer with random weights of mean 0 and variance 1 starts anew, with the sums over the places that share a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gatedops import trace

LAYERS = (trace.Linear, trace.Conv2d)


class Side:
    """One input: for each step, the linear map that its gates and max-pools make of earlier outputs."""

    def __init__(self, steps: Sequence[trace.Step], outputs: Sequence[Tensor], row: int) -> None:
        self.steps, self._outputs, self._row = steps, outputs, row

    def apply(self, step: trace.Step, source: int, rows: Tensor) -> Tensor:
        """A deterministic step on rows (N, units of the source); adds what this source alone gives."""
        given = self.steps[step.inputs[source]]
        x = rows.reshape(len(rows), *given.shape)
        q = self._outputs[step.inputs[source]][self._row]
        match step:
            case trace.Gate(slope=slope, inside=inside):
                on = q > 0 if inside is None else (q > inside[0]) & (q < inside[1])
                if isinstance(slope, Tensor) and slope.numel() > 1:
                    slope = slope.view(-1, *[1] * (q.dim() - 1)).to(q)
                x = torch.where(on, x, x * slope)
            case trace.MaxPool(window=w):
                index = F.max_pool2d(q, w.kernel, w.stride, w.padding, w.dilation, w.ceil_mode, return_indices=True)[1]
                x = x.flatten(2).gather(2, index.flatten(1).expand(len(x), -1, -1))
            case trace.AvgPool(window=w):
                x = F.avg_pool2d(x, w.kernel, w.stride, w.padding, w.ceil_mode, step.count_include_pad, step.divisor)
            case trace.Mean(axes=axes, keepdim=keepdim):
                x = x.mean([axis + 1 for axis in axes], keepdim)
            case trace.Resample():
                x = step.rows @ x.reshape(len(x), given.shape[0], -1, given.shape[-1]) @ step.columns.T
            case trace.Rearrange(source=position):
                x = F.pad(x.flatten(1), (0, 1))[:, position.flatten()]
            case trace.Scale(factor=factor):
                x = x * factor
            case trace.Concat(axis=axis):
                parts = [
                    x if number == source else x.new_zeros((len(x), *self.steps[index].shape))
                    for number, index in enumerate(step.inputs)
                ]
                x = torch.cat(parts, axis + 1)
            case trace.Add() | trace.Flatten() | trace.AddConstant() | trace.BatchNorm():
                pass
            case _:
                raise AssertionError(step)
        return x.flatten(1)


def patches(layer: trace.Step, given: trace.Step, rows: Tensor) -> Tensor:
    """The numbers that each weight of a layer meets at each output pixel, (N, groups, weights of an output, pixels)."""
    if isinstance(layer, trace.Linear):
        return rows.reshape(len(rows), -1, given.shape[-1]).mT.unsqueeze(1)
    assert isinstance(layer, trace.Conv2d)
    x = rows.reshape(len(rows), given.shape[0], -1, given.shape[-1])
    x = F.pad(x, layer.padding, "circular" if layer.padding_mode == "circular" else "constant")
    kernel = layer.weight.shape[-2:]
    found = F.unfold(x, kernel, layer.dilation, 0, layer.stride)
    return found.unflatten(1, (layer.groups, -1))


class Pair:
    """E[h_i h'_j] and E[<dh_i/dw, dh'_j/dw>] for the steps i of one input and j of another.

    Args:
        left, right: the sides, with their inputs x and y.
        biases: biases and constants start paths. In the second moments of the tangent kernel they start at 0.
    """

    def __init__(self, left: Side, right: Side, x: Tensor, y: Tensor, *, biases: bool, tangent: bool) -> None:
        self._sides, self._x, self._y = (left, right), x.flatten(), y.flatten()
        self._steps, self._biases, self._tangent = left.steps, biases, tangent
        self._known: dict[tuple[int, int, bool], Tensor] = {}

    def output(self) -> float:
        """The kernel of output 0."""
        last = len(self._steps) - 1
        return float(self._moment(last, last, self._tangent)[0, 0])

    def _moment(self, i: int, j: int, of_weights: bool) -> Tensor:
        """The moments of the units of i and j; with `of_weights`, those of the derivatives by all weights."""
        key = (i, j, of_weights)
        if key not in self._known:
            self._known[key] = self._made(i, j, of_weights)
        return self._known[key]

    def _made(self, i: int, j: int, of_weights: bool) -> Tensor:
        a, b = self._steps[i], self._steps[j]
        nothing = self._x.new_zeros(math.prod(a.shape), math.prod(b.shape))
        if isinstance(a, trace.Input) and isinstance(b, trace.Input):
            return nothing if of_weights else self._x[:, None] * self._y
        # The later step is written in terms of the earlier ones.
        if i > j or (i == j and not isinstance(a, LAYERS)):
            if isinstance(a, LAYERS):
                return nothing
            made = [self._sides[0].apply(a, k, self._moment(s, j, of_weights).mT).mT for k, s in enumerate(a.inputs)]
            return sum(made, self._started(a, i == j, of_weights, nothing))
        if i < j:
            if isinstance(b, LAYERS):
                return nothing
            return sum(self._sides[1].apply(b, k, self._moment(i, s, of_weights)) for k, s in enumerate(b.inputs))
        source = a.inputs[0]
        before = self._moment(source, source, of_weights)
        if of_weights:
            before = before + self._moment(source, source, False)
        starts = self._biases and a.bias is not None and (of_weights or not self._tangent)
        return behind_layer(a, self._steps[source], before, float(starts))

    def _started(self, step: trace.Step, same: bool, of_weights: bool, nothing: Tensor) -> Tensor:
        """What a constant that stands for a weight of its own adds."""
        if not same or not self._biases or of_weights != self._tangent or not isinstance(step, trace.AddConstant):
            return nothing
        pixels = len(nothing) // step.shape[0]
        return torch.block_diag(*[nothing.new_ones(pixels, pixels)] * step.shape[0])


def behind_layer(layer: trace.Step, given: trace.Step, before: Tensor, bias: float) -> Tensor:
    """The moments behind a layer: outputs of one channel only, and places that meet the same weight."""
    rows = patches(layer, given, before.mT)  # (units of the right input, groups, weights, pixels)
    groups, weights, pixels = rows.shape[1:]
    both = patches(layer, given, rows.flatten(1).mT)  # (groups weights pixels, groups, weights, pixels of the right)
    both = both.view(groups, weights, pixels, groups, weights, pixels)
    kernel = torch.einsum("gwpgwq->gpq", both) + bias
    assert isinstance(layer, LAYERS)
    channels = len(layer.weight)
    out = kernel.new_zeros(channels, pixels, channels, pixels)
    for channel in range(channels):
        out[channel, :, channel] = kernel[channel * groups // channels]
    if isinstance(layer, trace.Linear):
        out = out.permute(1, 0, 3, 2)
    return out.reshape(channels * pixels, channels * pixels)


def exact_kernel(
    steps: Sequence[trace.Step], outputs: Sequence[Tensor], x: Tensor, *, biases: bool = False, tangent: bool = False
) -> Tensor:
    """E[f f'], or E[K^V], of output 0 for all pairs of inputs; `outputs` are those of every step for x, in float64."""
    sides = [Side(steps, outputs, row) for row in range(len(x))]
    rows = [
        [Pair(a, b, x[i], x[j], biases=biases, tangent=tangent).output() for j, b in enumerate(sides)]
        for i, a in enumerate(sides)
    ]
    return torch.tensor(rows, dtype=torch.float64)
