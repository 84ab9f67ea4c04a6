"""Reads max-pool calls: their windows, and which input each output takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatedops.trace.mode import Call

_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
# Gives the place of return_indices among the arguments of torch.nn.functional's pools, by the start of their names.
_RETURN_INDICES = {"max_pool": 6, "adaptive_max_pool": 2, "fractional_max_pool": 4}

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
        """The window of a call of torch's max_pool2d."""
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

    def of_one_row(self) -> Window:
        """The window of a 1-d max-pool on sequences as images of one row."""
        pairs = zip((self.kernel, self.stride, self.padding, self.dilation), (1, 1, 0, 1), strict=True)
        kernel, stride, padding, dilation = ((down, size[1]) for size, down in pairs)
        return Window(kernel, stride, padding, dilation, self.ceil_mode)

    def chosen(self, z: Tensor) -> Tensor:
        """int64 ``(n, C, H', W')``: the position, among the H*W pixels of z ``(n, C, H, W)``, of each output's maximum.
        Among equal maxima it is the first in row order."""
        return F.max_pool2d(
            z, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode, return_indices=True
        )[1]

    def select(self, z: Tensor) -> Tensor:
        """bool ``(n, K, C, H', W')``, K = kernel height * width: mask u is on if the window's u-th input is the
        channel's maximum and its gate is on (docs/math.md, section 9).

        An image of z that is nowhere negative counts as one that passed gates, and its gates are on where z > 0. Any
        other image has no gates, and the maximum alone decides.
        """
        index = self.chosen(z)
        masks = self.masks(index, z.shape[-1])
        if not z.numel():
            return masks
        on = gathered(z, index, 2) > 0
        # Each image is judged by itself, so its masks do not depend on its batch.
        ungated = ~(z.flatten(1).amin(1) >= 0)
        return masks & (on | ungated.view(-1, 1, 1, 1)).unsqueeze(1)

    def masks(self, index: Tensor, columns: int) -> Tensor:
        """bool ``(n, K, C, H', W')``: mask u is on if the window's u-th input is the one chosen.

        Args:
            index: ``(n, C, H', W')``, as :meth:`chosen` gives it.
            columns: the width W of the image that is pooled.
        """
        down, right = self._corners(index)
        u = (index // columns - down) // self.dilation[0] * self.kernel[1]
        u += (index % columns - right) // self.dilation[1]
        masks = torch.arange(self.kernel[0] * self.kernel[1], device=index.device)
        return u.unsqueeze(1) == masks.view(1, -1, 1, 1, 1)

    def index(self, masks: Tensor, columns: int) -> Tensor:
        """Inverts :meth:`masks`, if exactly one mask is on at each output."""
        u = masks.to(torch.uint8).argmax(1)
        down, right = self._corners(u)
        row = down + u // self.kernel[1] * self.dilation[0]
        return row * columns + right + u % self.kernel[1] * self.dilation[1]

    def _corners(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The row (H', 1) and the column (W',) of the first input of each window; a negative one lies in the
        padding."""
        down = torch.arange(index.shape[-2], device=index.device).unsqueeze(1) * self.stride[0] - self.padding[0]
        return down, torch.arange(index.shape[-1], device=index.device) * self.stride[1] - self.padding[1]


def pooled(call: Call) -> tuple[Tensor, Tensor]:
    """The maxima of a max-pool call of any kind, and the position of each of them in the input."""
    if gives_indices(call) and not _is_functional(call):
        maxima, index = call.run()
        return maxima, index
    kwargs = {"input" if name == "self" else name: value for name, value in call.kwargs.items()}
    maxima, index = getattr(F, f"{_plain_name(call)}_with_indices")(*call.args, **kwargs)
    return maxima, index


def gives_indices(call: Call) -> bool:
    """Whether a max-pool call returns (maxima, indices)."""
    name = _plain_name(call)
    if call.name != name:
        return True
    # The functions of these names outside torch.nn.functional return indices, except the plain max-pools.
    if not _is_functional(call):
        return not name.startswith("max_pool")
    place = _RETURN_INDICES[name[: -len("1d")]]
    return bool(call.args[place] if place < len(call.args) else call.kwargs.get("return_indices", False))


def is_max_pool1d(call: Call) -> bool:
    """Whether a call is torch's max_pool1d, with indices or not."""
    return _plain_name(call) == "max_pool1d"


def dimensions(call: Call) -> int:
    """The number of axes that a max-pool call pools over: 1, 2 or 3."""
    return int(_plain_name(call)[-2])


def gathered(z: Tensor, index: Tensor, axes: int) -> Tensor:
    """The entries of z at these positions, which count over its last `axes` axes."""
    return z.flatten(-axes).gather(-1, index.flatten(-axes)).view_as(index)


def pair(value: Any) -> Pair:
    """torch's int or (int, int) or (int,) as (height, width)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def _plain_name(call: Call) -> str:
    return call.name.removesuffix("_with_indices")


def _is_functional(call: Call) -> bool:
    """Whether the function called is one of torch.nn.functional."""
    return getattr(call.func, "__module__", None) == F.__name__
