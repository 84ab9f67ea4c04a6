"""Describes how the window of a layer or a pool moves over images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gatedops import trace
from gatedops.path_kernels.ties import Layer
from gatedops.trace import Step
from gatedops.trace.pooling import Pair, Window


@dataclass(frozen=True)
class Geometry:
    """How a window moves over images. Each pair is (height, width); before counts the pixels of padding above and to
    the left."""

    kernel: Pair
    stride: Pair
    before: Pair
    dilation: Pair
    out: Pair
    circular: bool = False

    @property
    def is_identity(self) -> bool:
        return self.kernel == self.stride == (1, 1) and self.before == (0, 0)

    def at(self, place: int) -> Geometry:
        """The window of one pixel at this place in this window."""
        offset = divmod(place, self.kernel[1])
        before = [b - d * u for b, d, u in zip(self.before, self.dilation, offset, strict=True)]
        return replace(self, kernel=(1, 1), before=(before[0], before[1]))

    def inside(self, outer: Geometry, place: int) -> Geometry:
        """This window at the pixels of the output of `outer`, whose window is at one place."""
        moved = outer.at(place)
        before = [b + s * m for b, s, m in zip(self.before, self.stride, moved.before, strict=True)]
        stride = [s * m for s, m in zip(self.stride, moved.stride, strict=True)]
        return replace(self, stride=(stride[0], stride[1]), before=(before[0], before[1]), out=outer.out)

    def behind(self, first: Geometry) -> Geometry:
        """The window over the pixels before `first` that holds all its windows inside this window."""
        kernel = [
            (k2 - 1) * d2 * s1 + (k1 - 1) * d1 + 1
            for k2, d2, s1, k1, d1 in zip(
                self.kernel, self.dilation, first.stride, first.kernel, first.dilation, strict=True
            )
        ]
        stride = [s2 * s1 for s2, s1 in zip(self.stride, first.stride, strict=True)]
        before = [b2 * s1 + b1 for b2, s1, b1 in zip(self.before, first.stride, first.before, strict=True)]
        pairs = [(pair[0], pair[1]) for pair in (kernel, stride, before)]
        return Geometry(pairs[0], pairs[1], pairs[2], (1, 1), self.out)

    def fields(self) -> dict[str, Any]:
        """The fields of an instruction that describe this window."""
        names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w")
        sizes = (*self.kernel, *self.stride, *self.before, *self.dilation)
        return dict(zip(names, sizes, strict=True)) | {"circular": int(self.circular)}


def _size_of(step: Step) -> Pair:
    return step.shape[1], step.shape[2]


def geometry_of(layer: Layer) -> Geometry:
    """The geometry of a layer's window; that of a Linear layer is one pixel."""
    if isinstance(layer, trace.Linear):
        return Geometry((1, 1), (1, 1), (0, 0), (1, 1), _size_of(layer))
    left, _, top, _ = layer.padding
    kernel, out = layer.weight.shape[2:], _size_of(layer)
    return Geometry(
        (kernel[0], kernel[1]), layer.stride, (top, left), layer.dilation, out, layer.padding_mode == "circular"
    )


def windows_of(window: Window, step: Step) -> Geometry:
    """The geometry of a pool's window."""
    return Geometry(window.kernel, window.stride, window.padding, window.dilation, _size_of(step))
