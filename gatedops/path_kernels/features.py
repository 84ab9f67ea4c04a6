"""The real numbers that the network's input gives each unit that no layer with weights lies before (docs/math.md,
section 13)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.path_kernels.geometry import Geometry
from gatedops.path_kernels.masks import Indices, Recorded, channels_of
from gatedops.path_kernels.windows import at_windows, map_pixels


@dataclass(frozen=True)
class Gated:
    """Multiplies features by the gates of a recorded layer; where a gate is off, by its slope.

    Args:
        channels: a channel of the layer for each feature.
        slopes: one, or one for each feature.
    """

    layer: int
    channels: Indices
    slopes: tuple[float, ...] = (0.0,)

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        gates = channels_of(recorded(self.layer), self.channels, 1)
        if self.slopes == (0.0,):
            return features * gates
        slopes = torch.tensor(self.slopes, dtype=features.dtype, device=features.device).view(-1, 1, 1)
        return torch.where(gates, features, features * slopes)


@dataclass(frozen=True)
class Pooled:
    """Takes, from each window of features, the one that a max-pool chose."""

    layer: int
    channels: Indices
    geometry: Geometry

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return (at_windows(features, self.geometry) * channels_of(recorded(self.layer), self.channels, 2)).sum(1)


@dataclass(frozen=True)
class WindowSums:
    """Sums windows, and multiplies each sum by the weight of its output pixel."""

    geometry: Geometry
    weights: tuple[float, ...]

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        weights = torch.tensor(self.weights, dtype=features.dtype, device=features.device).view(self.geometry.out)
        return at_windows(features, self.geometry).sum(1) * weights


@dataclass(frozen=True)
class Windows:
    """Makes each pixel of a window a feature of its own: those of the first place come first."""

    geometry: Geometry

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return at_windows(features, self.geometry).flatten(1, 2)


@dataclass(frozen=True)
class Mapped:
    """Takes the pixels (rows[r], columns[q]); -1 gives 0."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return map_pixels(features, self.rows, self.columns)


@dataclass(frozen=True)
class Resampled:
    """Multiplies each image by `rows` from the left and by the transpose of `columns` from the right."""

    rows: tuple[tuple[float, ...], ...]
    columns: tuple[tuple[float, ...], ...]

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return features.new_tensor(self.rows) @ features @ features.new_tensor(self.columns).T


@dataclass(frozen=True)
class Taken:
    """Takes some features."""

    units: Indices

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return channels_of(features, self.units, 1)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Multiplies features by a constant, which has a channel for each feature, or one for all."""

    factor: Tensor

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return features * self.factor.to(features)


@dataclass(frozen=True)
class Flattened:
    """Makes all features channels of one pixel."""

    def of(self, features: Tensor, recorded: Recorded) -> Tensor:
        return features.flatten(1)[:, :, None, None]


FeatureStep = Gated | Pooled | WindowSums | Windows | Mapped | Resampled | Taken | Scaled | Flattened
