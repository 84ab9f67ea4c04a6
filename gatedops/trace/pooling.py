"""Max-pool calls: their windows, and which input each output takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatedops.trace.rectifiers import forms_of

_WITH_INDICES = frozenset(forms_of("max_pool2d_with_indices"))
_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The window of a 2-d max-pool, each pair (height, width) in pixels."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool = False

    @staticmethod
    def of_call(args: tuple, kwargs: dict[str, Any]) -> Window:
        """Of a call of torch's max_pool2d."""
        given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
        kernel = pair(given["kernel_size"])
        stride = given.get("stride")
        return Window(
            kernel,
            pair(stride) if stride is not None and stride != [] and stride != () else kernel,
            pair(given.get("padding", 0)),
            pair(given.get("dilation", 1)),
            bool(given.get("ceil_mode", False)),
        )

    def chosen(self, z: Tensor) -> Tensor:
        """int64 ``(n, C, H', W')``: where in the H*W pixels of z ``(n, C, H, W)`` each output's maximum lies."""
        return F.max_pool2d(
            z, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, return_indices=True
        )[1]

    def select(self, z: Tensor) -> Tensor:
        """bool ``(n, K, C, H', W')``, K = kernel height * width: mask u is on where the window's u-th input is the
        channel's maximum and its gate is on (docs/math.md, section 9).

        The gates of z are on where z > 0, provided z has passed gates, i.e. is nowhere negative; otherwise there are
        none and the maximum alone decides.
        """
        index = self.chosen(z)
        columns = z.shape[-1]
        down = torch.arange(index.shape[-2], device=z.device).unsqueeze(1) * self.stride[0] - self.padding[0]
        right = torch.arange(index.shape[-1], device=z.device) * self.stride[1] - self.padding[1]
        u = (index // columns - down) // self.dilation[0] * self.kernel[1]
        u += (index % columns - right) // self.dilation[1]
        if z.numel():
            on = z.flatten(2).gather(2, index.flatten(2)).view_as(index) > 0
            u = torch.where(on | ~(z.min() >= 0), u, -1)
        masks = torch.arange(self.kernel[0] * self.kernel[1], device=z.device)
        return u.unsqueeze(1) == masks.view(1, -1, 1, 1, 1)


def wants_indices(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the call returns (maxima, indices)."""
    given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
    return func in _WITH_INDICES or bool(given.get("return_indices", False))


def pair(value: Any) -> Pair:
    """torch's int or (int, int) or (int,) as (height, width)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])
