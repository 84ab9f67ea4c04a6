"""The masks of terms: products of gates and of the choices of max-pools, made for each input (docs/math.md, sections 9
and 13).

A mask has k units, which are some channels of a signal, at the pixels of an image. Behind a window (a max-pool, a
depthwise convolution) it has one mask for each place in the window. A gate with a slope a is the number
``a + (1 - a) g``; `expanded` writes a mask with such gates as a sum of masks of ones and zeros.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from gatedops.path_kernels.geometry import Geometry
from gatedops.path_kernels.windows import at_places, at_windows, map_pixels, overlapped
from gatedops.trace.pooling import Pair


class Recorded(Protocol):
    """The recorded layers of some inputs."""

    def __call__(self, layer: int) -> Tensor:
        """The gates of a layer, bool (n, C, H, W), or the choices of a max-pool, (n, K, C, H, W)."""

    def ones(self, units: int, size: Pair) -> Tensor:
        """Gates that are all on, (n, units, height, width)."""


# Some channels of a recorded layer, one for each unit.
Indices = tuple[int, ...]


def picked(indices: Indices, units: Indices) -> Indices:
    return tuple(indices[unit] for unit in units)


@dataclass(frozen=True)
class Leaf:
    """The gates of a recorded layer, one channel for each unit.

    Args:
        slope: the factor where the gate is off.
        pixels: rows and columns of the layer's pixels that lie at the pixels of the mask (-1: there the gate is off);
            None: all.
    """

    layer: int
    channels: Indices
    slope: float = 0.0
    pixels: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def of(self, recorded: Recorded) -> Tensor:
        gates = channels_of(recorded(self.layer), self.channels, 1)
        return gates if self.pixels is None else map_pixels(gates, *self.pixels)


@dataclass(frozen=True)
class Window(ABC):
    """What lies between a mask and the pixels of its kernel M.

    Args:
        geometry: the window, from the pixels of the mask to those of M.
        inner: the mask before the window.
        size: the (height, width) of the pixels of `inner`.
    """

    geometry: Geometry
    inner: Mask
    size: Pair

    @property
    def places(self) -> int:
        return math.prod(self.geometry.kernel)

    @property
    @abstractmethod
    def is_diagonal(self) -> bool:
        """Whether both inputs are at the same place in their windows."""

    @abstractmethod
    def of(self, recorded: Recorded, units: int) -> Tensor:
        """The masks of all places, ``(n, K, k, H, W)``."""

    def take(self, units: Indices) -> Window:
        return replace(self, inner=self.inner.take(units))


@dataclass(frozen=True)
class Boxed(Window):
    """The window of a depthwise convolution; `inner` has no window."""

    @property
    def is_diagonal(self) -> bool:
        return True

    def of(self, recorded: Recorded, units: int) -> Tensor:
        return at_windows(self.inner.of(recorded, units, self.size), self.geometry)


@dataclass(frozen=True)
class Displaced(Window):
    """One place in the window of a depthwise convolution behind another window, which `inner` has.

    Args:
        outer, place: the window of the depthwise convolution, and the place in it.
    """

    outer: Geometry
    place: int

    @property
    def is_diagonal(self) -> bool:
        return self._window.is_diagonal

    @property
    def _window(self) -> Window:
        assert self.inner.window is not None
        return self.inner.window

    def of(self, recorded: Recorded, units: int) -> Tensor:
        inner = self.inner.of(recorded, units, self.size)
        return at_places(inner.flatten(1, 2), self.outer, self.place).unflatten(1, inner.shape[1:3])


@dataclass(frozen=True)
class Chosen(Window):
    """The window of a max-pool.

    Args:
        layer: the recorded layer of its choices.
        channels: a channel of that layer for each unit.
        own: the window of the max-pool itself. If `inner` has the window of another max-pool, `geometry` covers both.
    """

    layer: int
    channels: Indices
    own: Geometry

    @property
    def is_diagonal(self) -> bool:
        return False

    def of(self, recorded: Recorded, units: int) -> Tensor:
        choices = channels_of(recorded(self.layer), self.channels, 2)
        if self.inner == Mask():
            return choices
        inner = self.inner.of(recorded, units, self.size)
        first = self.inner.window
        if first is None:
            return choices & at_windows(inner, self.own)
        moved = at_windows(inner.flatten(1, 2), self.own).unflatten(2, inner.shape[1:3])
        return overlapped(choices.unsqueeze(2) & moved, self.own, first.geometry, self.geometry)

    def take(self, units: Indices) -> Window:
        return replace(self, inner=self.inner.take(units), channels=picked(self.channels, units))


@dataclass(frozen=True)
class Mask:
    """A product of gates and a window; a mask without either is 1 everywhere."""

    leaves: frozenset[Leaf] = frozenset()
    window: Window | None = None

    def gated(self, leaf: Leaf) -> Mask:
        return replace(self, leaves=self.leaves | {leaf})

    def take(self, units: Indices) -> Mask:
        """The mask of some of its units."""
        leaves = frozenset(replace(leaf, channels=picked(leaf.channels, units)) for leaf in self.leaves)
        return Mask(leaves, None if self.window is None else self.window.take(units))

    @property
    def kinds(self) -> frozenset[object] | None:
        """The layers, slopes and pixels of its gates, without their channels; None if it has a window, or two gates of
        a kind. Masks of the same kinds can be joined."""
        kinds = frozenset((leaf.layer, leaf.slope, leaf.pixels) for leaf in self.leaves)
        return kinds if self.window is None and len(kinds) == len(self.leaves) else None

    def joined(self, other: Mask) -> Mask:
        """The mask of the units of both, which have the same kinds of gates."""
        channels = {(leaf.layer, leaf.slope, leaf.pixels): leaf.channels for leaf in other.leaves}
        return Mask(
            frozenset(
                replace(leaf, channels=leaf.channels + channels[leaf.layer, leaf.slope, leaf.pixels])
                for leaf in self.leaves
            )
        )

    @property
    def places(self) -> int:
        """The number of masks for each output pixel."""
        return 1 if self.window is None else self.window.places

    def of(self, recorded: Recorded, units: int, size: Pair) -> Tensor:
        """The mask as bool ``(n, k, H, W)``, or ``(n, K, k, H, W)`` behind a window."""
        leaves = [leaf.of(recorded) for leaf in self.leaves]
        if self.window is not None:
            return reduce(torch.logical_and, [leaf.unsqueeze(1) for leaf in leaves], self.window.of(recorded, units))
        if leaves:
            return reduce(torch.logical_and, leaves)
        return recorded.ones(units, size)

    def expanded(self) -> list[tuple[float, Mask]]:
        """Masks of ones and zeros and their factors, whose sum this mask is."""
        hard = Mask(frozenset(leaf for leaf in self.leaves if not leaf.slope))
        parts: list[list[tuple[float, Mask]]] = [[(1.0, hard)]]
        for leaf in sorted(self.leaves, key=lambda leaf: (leaf.layer, leaf.channels)):
            if leaf.slope:
                parts.append([(leaf.slope, Mask()), (1 - leaf.slope, Mask(frozenset([replace(leaf, slope=0.0)])))])
        if self.window is not None:
            inner = self.window.inner.expanded()
            parts.append([(factor, Mask(window=replace(self.window, inner=mask))) for factor, mask in inner])
        sums: dict[Mask, float] = {}
        for chosen in product(*parts):
            leaves = frozenset().union(*(mask.leaves for _, mask in chosen))
            window = next((mask.window for _, mask in chosen if mask.window is not None), None)
            made = Mask(leaves, window)
            sums[made] = sums.get(made, 0.0) + math.prod(factor for factor, _ in chosen)
        return [(factor, mask) for mask, factor in sums.items() if factor != 0]

    @property
    def bare(self) -> list[tuple[int, Indices]] | None:
        """The recorded layers, with their channels, whose AND this mask is pixel by pixel; None if it is another."""
        if self.window is None and all(leaf.pixels is None for leaf in self.leaves):
            return [(leaf.layer, leaf.channels) for leaf in self.leaves]
        if isinstance(self.window, Chosen) and not self.leaves and self.window.inner == Mask():
            return [(self.window.layer, self.window.channels)]
        return None

    @property
    def unpacked(self) -> int:
        """How many gates for each unit and pixel are held while the mask is made."""
        window = self.window
        if window is None:
            return 1
        return window.inner.unpacked * (math.prod(window.own.kernel) if isinstance(window, Chosen) else window.places)

    @property
    def is_one(self) -> bool:
        """Whether it is 1 wherever its kernel has pixels."""
        return not self.leaves and (self.window is None or (type(self.window) is Boxed and self.window.inner == Mask()))


def channels_of(recorded: Tensor, channels: Indices, dim: int) -> Tensor:
    """These channels of a recorded layer; a view if they are all of them."""
    if channels == tuple(range(recorded.shape[dim])):
        return recorded
    return recorded.index_select(dim, torch.tensor(channels, device=recorded.device))
