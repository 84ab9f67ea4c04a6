"""Moves images to the places in windows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.path_kernels.geometry import Geometry


def at_windows(images: Tensor, geometry: Geometry) -> Tensor:
    """Maps ``(n, C, H, W)`` to ``(n, K, C, H', W')``, the K pixels of every window. A pixel outside the image is 0 or
    False, or that of the opposite side if the geometry is circular."""
    height, width = images.shape[-2:]
    rows, columns = (
        torch.arange(geometry.out[axis], device=images.device)[:, None] * geometry.stride[axis]
        + torch.arange(geometry.kernel[axis], device=images.device) * geometry.dilation[axis]
        - geometry.before[axis]
        for axis in (0, 1)
    )
    rows, columns = (
        index % size if geometry.circular else torch.where((index >= 0) & (index < size), index, size)
        for index, size in ((rows, height), (columns, width))
    )
    windows = pad(images, (0, 1, 0, 1))[:, :, rows[:, :, None, None], columns]  # (n, C, H', kernel, W', kernel)
    return windows.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)


def at_places(images: Tensor, geometry: Geometry, place: int) -> Tensor:
    """Maps ``(n, C, H, W)`` to ``(n, C, H', W')``, the pixels at one place of every window."""
    return at_windows(images, geometry.at(place)).squeeze(1)


def map_pixels(images: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """The pixels (rows[r], columns[q]) of images ``(n, C, H, W)``; 0 or False if one of the two is -1."""
    index = [torch.tensor(chosen, device=images.device) for chosen in (rows, columns)]
    return pad(images, (0, 1, 0, 1))[:, :, index[0][:, None], index[1]]


def overlapped(chosen: Tensor, second: Geometry, first: Geometry, both: Geometry) -> Tensor:
    """Maps the choices of one max-pool behind another, ``(n, K_2, K_1, C, H, W)``, to those of one window over both,
    ``(n, K, C, H, W)``."""
    masks = chosen.new_zeros((chosen.shape[0], both.kernel[0] * both.kernel[1], *chosen.shape[3:]))
    for outer in range(chosen.shape[1]):
        for inner in range(chosen.shape[2]):
            at = [
                index * second.dilation[axis] * first.stride[axis] + below * first.dilation[axis]
                for axis, (index, below) in enumerate(
                    zip(divmod(outer, second.kernel[1]), divmod(inner, first.kernel[1]), strict=True)
                )
            ]
            masks[:, at[0] * both.kernel[1] + at[1]] |= chosen[:, outer, inner]
    return masks
