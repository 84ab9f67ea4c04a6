"""Makes, for each input, the masks of gates and the real-valued features that decide which paths are active.

Both come from recorded layers, numbered in call order: gates, bool ``(n, C, H, W)``, and the choices of max-pools, bool
``(n, K, C, H, W)`` (docs/math.md, sections 9 and 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.path_kernels.geometry import Geometry

# Returns the masks of the recorded layer with an index.
Recorded = Callable[[int], Tensor]


@dataclass(frozen=True)
class Pooled:
    """A max-pool in a mask, and the gates before it.

    Args:
        choices: the recorded layer of the pool.
        geometry: that of the pool's window.
        gates: the recorded layers before the pool whose gates its choices do not contain.
    """

    choices: int
    geometry: Geometry
    gates: frozenset[int]


@dataclass(frozen=True)
class Mask:
    """The AND of the gates of recorded layers. A layer before a max-pool gives its gate at the pixel that the pool
    chose."""

    gates: frozenset[int] = frozenset()
    pooled: Pooled | None = None

    def gated(self, layer: int) -> Mask:
        return replace(self, gates=self.gates | {layer})

    @property
    def windows(self) -> int:
        """The number of masks for each output pixel."""
        return 1 if self.pooled is None else self.pooled.geometry.kernel[0] * self.pooled.geometry.kernel[1]

    @property
    def alone(self) -> int | None:
        """The recorded layer that equals this mask; None if there is none."""
        if self.pooled is not None:
            return None if self.gates or self.pooled.gates else self.pooled.choices
        return next(iter(self.gates)) if len(self.gates) == 1 else None

    def of(self, recorded: Recorded) -> Tensor:
        """The mask as bool ``(n, C, H, W)``, or ``(n, K, C, H, W)`` behind a max-pool."""
        parts = [recorded(layer) for layer in sorted(self.gates)]
        if self.pooled is not None:
            parts = [part.unsqueeze(1) for part in parts]
            inside = [recorded(layer) for layer in sorted(self.pooled.gates)]
            if inside:
                parts.append(at_windows(reduce(torch.logical_and, inside), self.pooled.geometry))
            parts.append(recorded(self.pooled.choices))
        return reduce(torch.logical_and, parts)


@dataclass(frozen=True)
class Gated:
    """Multiplies features by the gates of a recorded layer."""

    layer: int

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return features * recorded(self.layer).view_as(features)


@dataclass(frozen=True)
class Chosen:
    """Takes, from each window of features, the one that a max-pool chose."""

    layer: int
    geometry: Geometry

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return (at_windows(features, self.geometry) * recorded(self.layer)).sum(1)


@dataclass(frozen=True)
class WindowSums:
    """Sums windows, and multiplies each sum by the weight of its output pixel."""

    geometry: Geometry
    weights: tuple[float, ...]

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        weights = torch.tensor(self.weights, dtype=features.dtype, device=features.device).view(self.geometry.out)
        return at_windows(features, self.geometry).sum(1) * weights


@dataclass(frozen=True)
class Flattened:
    """Makes all features channels of one pixel."""

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return features.flatten(1)[:, :, None, None]


FeatureStep = Gated | Chosen | WindowSums | Flattened


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
