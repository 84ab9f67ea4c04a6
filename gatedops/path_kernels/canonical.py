"""Brings the steps of a network into one form: every output is an image (channels, height, width).

A vector is an image of one pixel, tokens (T, d) are an image of one row with d channels, and so is the (C, T) of a
one-dimensional convolution. Which axis of an output holds the channels follows from the layers that read it: Linear
layers need the last axis, convolutions the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops import trace
from gatedops.path_kernels.movements import moved_by
from gatedops.path_kernels.volumes import row_convolution
from gatedops.trace import Step
from gatedops.trace.pooling import Pair
from gatedops.trace.step_builder import GATES_ALONE


@dataclass(frozen=True)
class Layout:
    """How the output of a step lies in the model: its shape there, the axis of the channels, and the size (height,
    width) of the image that its other axes are."""

    shape: tuple[int, ...]
    axis: int
    size: Pair

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.shape[self.axis], *self.size)

    @property
    def is_image(self) -> bool:
        """Whether the axes other than the channels are those of the image, behind the channels: (C, H, W), (C, T) or
        (C,)."""
        if self.axis != 0 or _size_of(self.shape, 0) != self.size:
            return False
        return len(self.shape) > 2 or self.size[0] == 1

    def to_images(self, values: Tensor) -> Tensor:
        """Values ``(n, *shape)`` as ``(n, C, H, W)``."""
        return values.movedim(self.axis + 1, 1).reshape(len(values), *self.image)

    def constant(self, value: Tensor) -> Tensor:
        """A constant that broadcasts to `shape`, as one that broadcasts to the image."""
        value = value.reshape(*[1] * (len(self.shape) - value.dim()), *value.shape).movedim(self.axis, 0)
        pixels = tuple(value.shape[1:])
        if math.prod(pixels) == 1:
            return value.reshape(-1, 1, 1)
        if len(pixels) == 2 and self.size == tuple(size for axis, size in enumerate(self.shape) if axis != self.axis):
            return value
        if len(pixels) == 1 and self.size[0] == 1:
            return value.unsqueeze(1)
        given = [size for axis, size in enumerate(self.shape) if axis != self.axis]
        if pixels != tuple(given):
            raise ValueError(f"a constant of shape {tuple(value.shape)}, which is the same along some axes of pixels")
        return value.reshape(-1, *self.size)


@dataclass(frozen=True, eq=False)
class Channels(Step):
    """Output channel i is the input channel ``index[i]``, or 0 if that is -1."""

    index: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pixels(Step):
    """Output pixel (r, q) is the input pixel ``(rows[r], columns[q])``; it is 0 if one of them is -1."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """The steps of a network, in one form.

    Args:
        steps: the shape of each is (channels, height, width).
        layouts: of each step, how its output lies in the model.
    """

    steps: list[Step]
    layouts: list[Layout]


def network_of(steps: Sequence[Step], *, otherwise: str = GATES_ALONE) -> Network:
    """Brings steps into one form; the functions of all outputs at the end (softmax) are left out.

    Args:
        otherwise: what errors tell the user to do if no rule covers a step.

    Raises:
        ValueError: a step needs its channels along another axis, or mixes channels and pixels; the error names it.
    """
    refused: ValueError | None = None
    for axis in _axes_of_input(steps[0].shape):
        try:
            return _Former(axis, otherwise).formed(steps)
        except ValueError as error:
            refused = refused or error
    if refused is None:
        shape = steps[0].shape
        raise ValueError(
            f"x: got inputs {shape}, needs (n, d), (n, T, d), (n, C, T), (n, C, H, W) or (n, C, D, H, W); {otherwise}"
        )
    raise refused


def _axes_of_input(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an input that may hold its channels, the likelier one first."""
    return {1: (0,), 2: (1, 0), 3: (0, 2), 4: (0, 3)}.get(len(shape), ())


class _Former:
    """Forms the steps of a network whose input has its channels along `axis`."""

    def __init__(self, axis: int, otherwise: str) -> None:
        self._axis, self._otherwise = axis, otherwise
        self._steps: list[Step] = []
        self._layouts: list[Layout] = []

    def formed(self, steps: Sequence[Step]) -> Network:
        # Gives the new index of each old step.
        index_of: list[int] = []
        for step in steps:
            if isinstance(step, trace.Squash):
                # Nothing but a change of shape can follow.
                index_of.append(index_of[step.inputs[0]])
                continue
            self._form(step, tuple(index_of[index] for index in step.inputs))
            index_of.append(len(self._steps) - 1)
        return Network(self._steps, self._layouts)

    def _add(self, step: Step, inputs: tuple[int, ...], layout: Layout) -> None:
        self._steps.append(replace(step, inputs=inputs, shape=layout.image))
        self._layouts.append(layout)

    def _form(self, step: Step, inputs: tuple[int, ...]) -> None:
        before = [self._layouts[index] for index in inputs]
        match step:
            case trace.Rearrange():
                self._rearrange(step, inputs)
            case trace.Flatten():
                self._flatten(step, inputs, before[0])
            case trace.AddConstant() | trace.Scale():
                self._constant(step, inputs, before[0])
            case trace.Mean():
                self._mean(step, inputs, before[0])
            case trace.Conv3d():
                self._conv3d(step, inputs[0])
            case trace.Concat(axis=axis):
                if any(layout.axis != axis or layout.size != before[0].size for layout in before):
                    raise ValueError(
                        f"model: {step.name} puts outputs side by side along axis {axis} of {step.shape}, which does"
                        " not hold their channels; path kernels need torch.cat along the channels"
                    )
                self._add(replace(step, axis=0), inputs, replace(before[0], shape=step.shape))
            case _:
                self._add(step, inputs, self._layout(step, before))

    def _constant(self, step: trace.AddConstant | trace.Scale, inputs: tuple[int, ...], before: Layout) -> None:
        try:
            if isinstance(step, trace.Scale):
                self._add(replace(step, factor=before.constant(step.factor)), inputs, before)
            else:
                self._add(replace(step, constant=before.constant(step.constant)), inputs, before)
        except ValueError as error:
            raise ValueError(
                f"model: {step.name} has {error}; give it a number for each channel, or one for each pixel"
            ) from None

    def _layout(self, step: Step, before: list[Layout]) -> Layout:
        """The layout of a step's output that follows from that of its inputs."""
        match step:
            case trace.Input():
                return Layout(step.shape, self._axis, _size_of(step.shape, self._axis))
            case trace.Linear():
                if before[0].axis != len(before[0].shape) - 1:
                    raise ValueError(
                        f"model: {step.name} is a Linear layer over axis {len(before[0].shape)} of (n,"
                        f" {', '.join(map(str, before[0].shape))}), which holds positions: it uses the same weights for"
                        " all channels, and path kernels have no rule for that; flatten its input, or"
                        f" {self._otherwise}"
                    )
                return replace(before[0], shape=step.shape)
            case trace.Conv2d() | trace.MaxPool() | trace.AvgPool() | trace.Resample() | trace.BatchNorm():
                self._require_image(step, before[0])
                return Layout(step.shape, 0, _size_of(step.shape, 0))
            case trace.Add():
                if before[0] != before[1]:
                    raise ValueError(
                        f"model: {step.name} adds two outputs whose channels lie along different axes; path kernels"
                        " need both along the same axis: permute one"
                    )
        return before[0]

    def _require_image(self, step: Step, before: Layout) -> None:
        if not before.is_image:
            raise ValueError(
                f"model: {step.name} needs the channels in front of the pixels, but axis {before.axis + 1} of (n,"
                f" {', '.join(map(str, before.shape))}) holds them; permute its input"
            )

    def _mean(self, step: trace.Mean, inputs: tuple[int, ...], before: Layout) -> None:
        pixels = tuple(axis for axis in range(len(before.shape)) if axis != before.axis)
        if before.axis in step.axes:
            if not pixels:
                raise ValueError(
                    f"model: {step.name} is a mean over channels, with equal weights, and path kernels have no rule for"
                    f" that; {self._otherwise}"
                )
            raise ValueError(
                f"model: {step.name} is a mean over axes {step.axes}, channels included; path kernels need one over"
                " pixels: use x.mean((2, 3)) of (n, C, H, W)"
            )
        axis = before.axis if step.keepdim else before.axis - sum(axis < before.axis for axis in step.axes)
        if step.axes == pixels:
            self._add(replace(step, axes=(1, 2)), inputs, Layout(step.shape, axis, (1, 1)))
            return
        if len(before.shape) != 3 or before.size != tuple(before.shape[axis] for axis in pixels):
            raise ValueError(
                f"model: {step.name} is a mean over axes {step.axes}; path kernels need one over all pixels: use"
                " x.mean((2, 3)) of (n, C, H, W)"
            )
        over = pixels.index(step.axes[0])
        kept = [size if axis != over else 1 for axis, size in enumerate(before.size)]
        rows, columns = (
            torch.full((1, size), 1 / size, dtype=torch.float64) if axis == over else torch.eye(size).double()
            for axis, size in enumerate(before.size)
        )
        size = (kept[0], kept[1])
        layout = Layout(step.shape, axis, size)
        self._add(trace.Resample(step.name, (), (), rows, columns), inputs, layout)

    def _conv3d(self, step: trace.Conv3d, source: int) -> None:
        before = self._layouts[source]
        self._require_image(step, before)
        made = row_convolution(step, before.shape)
        columns, copies = tuple(range(before.size[1])), []
        for rows in made.rows:
            layout = Layout((before.shape[0], len(rows), len(columns)), 0, (len(rows), len(columns)))
            self._add(Pixels(step.name, (), (), rows, columns), (source,), layout)
            copies.append(len(self._steps) - 1)
        beside = Layout((len(made.order), *layout.size), 0, layout.size)
        self._add(trace.Concat(step.name, (), (), 0), tuple(copies), beside)
        self._add(Channels(step.name, (), (), made.order), (len(self._steps) - 1,), beside)
        self._add(made.layer, (len(self._steps) - 1,), Layout(step.shape, 0, _size_of(step.shape, 0)))

    def _flatten(self, step: Step, inputs: tuple[int, ...], before: Layout) -> None:
        layout = Layout(step.shape, 0, (1, 1))
        self._add(step, inputs, layout)
        channels, pixels = before.image[0], math.prod(before.size)
        if before.axis > 0 and channels > 1 and pixels > 1:
            order = torch.arange(channels * pixels).view(channels, pixels)
            lying = order.view(channels, *(s for a, s in enumerate(before.shape) if a != before.axis))
            index = lying.movedim(0, before.axis).flatten()
            self._add(Channels(step.name, (), (), tuple(index.tolist())), (len(self._steps) - 1,), layout)

    def _rearrange(self, step: trace.Rearrange, inputs: tuple[int, ...]) -> None:
        before = self._layouts[inputs[0]]
        found = moved_by(step, before.shape, before.axis, before.size, self._otherwise)
        name, at = step.name, inputs[0]
        if found.flattened:
            self._add(trace.Flatten(name, (), ()), (at,), Layout((math.prod(before.image),), 0, (1, 1)))
            at = len(self._steps) - 1
        if found.rows != tuple(range(before.size[0])) or found.columns != tuple(range(before.size[1])):
            size = (len(found.rows), len(found.columns))
            shape = (before.shape[before.axis], *size)
            self._add(Pixels(name, (), (), found.rows, found.columns), (at,), Layout(shape, 0, size))
            at = len(self._steps) - 1
        # An output without axes is one channel.
        layout = Layout(found.lying or step.shape or (1,), found.axis, (len(found.rows), len(found.columns)))
        # If only the axes change, which images do not show, the copy gives the output its new layout.
        if at == inputs[0] or found.channels != tuple(range(self._steps[at].shape[0])):
            self._add(Channels(name, (), (), found.channels), (at,), layout)
        else:
            self._layouts[at] = layout
        if found.lying:
            self._flatten(trace.Flatten(name, (), step.shape), (len(self._steps) - 1,), layout)


def _size_of(shape: tuple[int, ...], axis: int) -> Pair:
    """The (height, width) of the axes other than that of the channels."""
    pixels = [size for index, size in enumerate(shape) if index != axis]
    return (math.prod(pixels[:-1]), pixels[-1]) if pixels else (1, 1)
