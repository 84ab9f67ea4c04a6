"""Writes a convolution of volumes as one of images.

A volume (C, D, H, W) is an image of D * H rows. A kernel of kd x kh x kw voxels reads kd * kh rows of pixels, so the
image's rows are moved to each of these places, the copies lie side by side as channels of their own, and a kernel of
kw pixels in one row reads them. Each weight meets the same numbers as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from gatedops import trace


@dataclass(frozen=True)
class RowConvolution:
    """A convolution of volumes, as one of images.

    Args:
        rows: for each place, the row of the input that each row of the output meets; -1: zeros.
        order: the order of the channels, from all channels of the first place to all of the last.
        layer: the convolution of the channels in this order.
    """

    rows: list[tuple[int, ...]]
    order: tuple[int, ...]
    layer: trace.Conv2d


def row_convolution(step: trace.Conv3d, shape: tuple[int, ...]) -> RowConvolution:
    """The convolution of images that gives the output of a convolution of volumes of this shape (C, D, H, W)."""
    channels, inside = shape[0], step.weight.shape[1]
    rows = list(_rows_at_places(step, shape))
    order = [
        place * channels + group * inside + channel
        for group in range(step.groups)
        for place in range(len(rows))
        for channel in range(inside)
    ]
    left, right = step.padding[:2]
    drawn = step.weight_drawn
    layer = trace.Conv2d(
        step.name,
        (),
        (),
        _in_rows(step.weight),
        step.bias,
        (1, step.stride[2]),
        (left, right, 0, 0),
        (1, step.dilation[2]),
        step.groups,
        "zeros",
        step.weight_made_of,
        step.bias_made_of,
        None if drawn is None else lambda seed: _in_rows(drawn(seed)),
        step.bias_drawn,
    )
    return RowConvolution(rows, tuple(order), layer)


def _in_rows(weight: Tensor) -> Tensor:
    """``(C', C, kd, kh, kw)`` as ``(C', kd * kh * C, 1, kw)``."""
    return weight.permute(0, 2, 3, 1, 4).flatten(1, 3).unsqueeze(2)


def _rows_at_places(step: trace.Conv3d, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """For each place (depth, height) of the kernel the rows that the rows of the output meet there."""
    _, depth, height, _ = shape
    _, _, top, _, front, _ = step.padding
    for i in range(step.weight.shape[2]):
        for j in range(step.weight.shape[3]):
            at = (
                (d * step.stride[0] + i * step.dilation[0] - front, h * step.stride[1] + j * step.dilation[1] - top)
                for d in range(step.shape[1])
                for h in range(step.shape[2])
            )
            yield tuple(d * height + h if 0 <= d < depth and 0 <= h < height else -1 for d, h in at)
