"""Describes how the window of a layer or a pool moves over images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gatedops import trace
from gatedops.path_kernels.network import shape_of
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

    def fields(self) -> dict[str, Any]:
        """The fields of an instruction that describe this window."""
        names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_top", "pad_left", "dilation_h", "dilation_w")
        sizes = (*self.kernel, *self.stride, *self.before, *self.dilation)
        return dict(zip(names, sizes, strict=True)) | {"circular": int(self.circular)}


def geometry_of(layer: Layer) -> Geometry:
    """The geometry of a layer's window; that of a Linear layer is one pixel."""
    if isinstance(layer, trace.Linear):
        return Geometry((1, 1), (1, 1), (0, 0), (1, 1), (1, 1))
    left, _, top, _ = layer.padding
    kernel, out = layer.weight.shape[2:], shape_of(layer)[1:]
    return Geometry(
        (kernel[0], kernel[1]), layer.stride, (top, left), layer.dilation, out, layer.padding_mode == "circular"
    )


def windows_of(window: Window, step: Step) -> Geometry:
    """The geometry of a pool's window."""
    return Geometry(window.kernel, window.stride, window.padding, window.dilation, shape_of(step)[1:])
