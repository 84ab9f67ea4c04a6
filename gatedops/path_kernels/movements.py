"""Tells what a rearrangement of an image does to its channels and to its pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops import trace
from gatedops.trace.pooling import Pair


@dataclass(frozen=True)
class Moved:
    """A rearrangement: output channel c is the input channel ``channels[c]``, output pixel (r, q) the input pixel
    (rows[r], columns[q]). -1 stands for zeros.

    Args:
        axis: of the output's shape, the one that holds the channels.
        flattened: the input is flattened first, so that every number is a channel of one pixel.
        lying: if not (), the output is flattened at the end, from this shape, whose axis `axis` holds the channels.
    """

    axis: int
    channels: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    flattened: bool = False
    lying: tuple[int, ...] = ()


def moved_by(step: trace.Rearrange, shape: tuple[int, ...], axis: int, size: Pair, otherwise: str) -> Moved:
    """What a step does to an image that lies in `shape` with its channels along `axis` and pixels of (height, width)
    `size`.

    Raises:
        ValueError: the step mixes channels and pixels, or moves rows and columns together.
    """
    channels, pixels = shape[axis], math.prod(size)
    # Gives for each number of the input its channel and its pixel; the last entry stands for 0.
    order = torch.arange(channels * pixels).view(channels, *(s for a, s in enumerate(shape) if a != axis))
    number = torch.cat([order.movedim(0, axis).flatten(), torch.tensor([-1])])[step.source.cpu()]
    number = number if number.dim() else number.unsqueeze(0)
    for at in range(number.dim()):
        found = _along(number.movedim(at, 0), pixels, size, at)
        if found is not None:
            return found
    found = _before_flattening(number, pixels, size) if number.dim() == 1 else None
    if found is not None:
        return found
    if number.dim() == 1 and bool((number >= 0).all()):
        return Moved(0, tuple(number.tolist()), (0,), (0,), flattened=True)
    raise ValueError(
        f"model: {step.name} moves numbers between channels and pixels, as a pixel shuffle does, and path kernels have"
        f" no rule for that; {otherwise}"
    )


def _before_flattening(number: Tensor, pixels: int, size: Pair) -> Moved | None:
    """The movement if `number` is a moved image, flattened at the end; None if it is not."""
    total = len(number)
    for channels in (k for k in range(1, total + 1) if total % k == 0):
        rest = total // channels
        for height in (h for h in range(1, rest + 1) if rest % h == 0):
            for axis, shape in ((0, (channels, height, rest // height)), (2, (height, rest // height, channels))):
                found = _along(number.view(shape).movedim(axis, 0), pixels, size, axis)
                if found is not None:
                    return replace(found, lying=shape)
    return None


def _along(number: Tensor, pixels: int, size: Pair, axis: int) -> Moved | None:
    """The movement if the first axis of `number` (``c * pixels + p``, or -1) holds the channels, else None."""
    images = number.flatten(1) if number.dim() > 1 else number.unsqueeze(1)
    absent = images < 0
    # A channel, or a pixel, that is 0 as a whole.
    no_channel, no_pixel = absent.all(1), absent.all(0)
    if bool(no_channel.all()) or bool((absent != (no_channel[:, None] | no_pixel)).any()):
        return None
    here = images[~no_channel][:, ~no_pixel]
    channel, pixel = here // pixels, here % pixels
    if bool((channel != channel[:, :1]).any()) or bool((pixel != pixel[:1]).any()):
        return None
    taken = torch.full((len(images),), -1).masked_scatter(~no_channel, channel[:, 0])
    pixel = torch.full((images.shape[1],), -1).masked_scatter(~no_pixel, pixel[0])
    chosen = _rows_and_columns(pixel, tuple(number.shape[1:]), size)
    return None if chosen is None else Moved(axis, tuple(taken.tolist()), *chosen)


def _rows_and_columns(
    pixel: Tensor, shape: tuple[int, ...], size: Pair
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The rows and columns of the pixels that the output takes; None if they do not form a grid."""
    height, width = size
    if pixel.numel() == height * width and bool((pixel == torch.arange(height * width)).all()):
        return tuple(range(height)), tuple(range(width))
    grid = pixel.view(-1, shape[-1]) if shape else pixel.view(1, 1)
    row, column = grid // width, grid % width
    inside = grid >= 0
    rows = torch.where(inside.any(1), row.masked_fill(~inside, -1).amax(1), -1)
    columns = torch.where(inside.any(0), column.masked_fill(~inside, -1).amax(0), -1)
    made = torch.where((rows[:, None] >= 0) & (columns >= 0), rows[:, None] * width + columns, -1)
    return (tuple(rows.tolist()), tuple(columns.tolist())) if torch.equal(made, grid) else None
