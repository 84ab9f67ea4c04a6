"""Lists every path of a small convolutional or residual network: the ground truth for the tests of npk and npf.

It uses numpy and Python loops and nothing of gatedops, so the listing shares no code with what it checks. A unit is one
channel at one pixel. It is stored as the dictionary of the bundles of paths that end in it. The key of a bundle is the
weights on its paths, in order, and its value is its feature for every input: the sum over its paths of x times the
gates on them. The value of a unit follows from its bundles, so the gates and the choices of max-pools come from the
listing too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# A Weight is the name of a tensor and the index of a number in it.
Weight = tuple[str, tuple[int, ...]]
Bundle = tuple[Weight, ...]
Unit = dict[Bundle, Array]  # features (n,)
Units = NDArray[np.object_]  # (C, H, W) of Unit


class Listing:
    """Follows the paths of a network through its operations.

    Args:
        weights: every weight, bias and constant by name; the bias of the layer "conv" is "conv.bias".
        n: inputs.
    """

    def __init__(self, weights: dict[str, Array], n: int) -> None:
        self.weights, self.n = weights, n

    def value(self, bundle: Bundle) -> float:
        """Returns the product of the weights of a bundle."""
        return math.prod(float(self.weights[name][index]) for name, index in bundle)

    def output(self, unit: Unit) -> Array:
        """Returns what a unit computes, (n,)."""
        return sum((phi * self.value(bundle) for bundle, phi in unit.items()), np.zeros(self.n))

    def input(self, x: Array) -> Units:
        """Starts paths at x (n, C, H, W)."""
        return grid(x.shape[1:], lambda c, p, q: {(): x[:, c, p, q]})

    def conv(self, units: Units, name: str, stride: int, padding: int, dilation: int, circular: bool) -> Units:
        """Applies the convolution `name`, with weights (C', C, kh, kw) and its bias if it has one."""
        weight, (_, height, width) = self.weights[name], units.shape
        sizes = zip((height, width), weight.shape[2:], strict=True)
        out = [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k in sizes]

        def unit(o: int, p: int, q: int) -> Unit:
            made = self._bias(name, o)
            for c, i, j in np.ndindex(weight.shape[1:]):
                row, column = p * stride + i * dilation - padding, q * stride + j * dilation - padding
                if circular:
                    row, column = row % height, column % width
                if 0 <= row < height and 0 <= column < width:
                    _add(made, units[c, row, column], (name, (o, c, i, j)))
            return made

        return grid((len(weight), *out), unit)

    def linear(self, units: Units, name: str) -> Units:
        """Applies the linear layer `name`, with weights (out, in), to units of one pixel."""
        weight = self.weights[name]

        def unit(o: int, p: int, q: int) -> Unit:
            made = self._bias(name, o)
            for c in range(weight.shape[1]):
                _add(made, units[c, 0, 0], (name, (o, c)))
            return made

        return grid((len(weight), 1, 1), unit)

    def relu(self, units: Units) -> Units:
        return grid(units.shape, lambda *index: _times(units[index], self.output(units[index]) > 0))

    def max_pool(self, units: Units, kernel: int, stride: int, padding: int) -> Units:
        """Keeps the paths of the largest unit of each window; the first if several are equal."""

        def unit(c: int, p: int, q: int) -> Unit:
            inputs = [units[index] for index in window(units.shape, c, p, q, kernel, stride, padding)]
            largest = np.stack([self.output(each) for each in inputs]).argmax(0)
            made: Unit = {}
            for index, each in enumerate(inputs):
                _add(made, _times(each, largest == index))
            return made

        return grid(pooled(units.shape, kernel, stride, padding), unit)

    def avg_pool(self, units: Units, kernel: int, stride: int, padding: int, include: bool) -> Units:
        """Averages over windows. If `include`, pixels of padding count."""

        def unit(c: int, p: int, q: int) -> Unit:
            inputs = list(window(units.shape, c, p, q, kernel, stride, padding))
            made: Unit = {}
            for index in inputs:
                _add(made, _times(units[index], 1 / (kernel**2 if include else len(inputs))))
            return made

        return grid(pooled(units.shape, kernel, stride, padding), unit)

    def mean(self, units: Units) -> Units:
        """Averages over all pixels."""

        def unit(c: int, p: int, q: int) -> Unit:
            made: Unit = {}
            for index in np.ndindex(units.shape[1:]):
                _add(made, _times(units[c, *index], 1 / units[0].size))
            return made

        return grid((len(units), 1, 1), unit)

    def flatten(self, units: Units) -> Units:
        return units.reshape(-1, 1, 1)

    def add(self, units: Units, others: Units) -> Units:
        def unit(*index: int) -> Unit:
            made = dict(units[index])
            _add(made, others[index])
            return made

        return grid(units.shape, unit)

    def constant(self, units: Units, name: str) -> Units:
        """Adds the constant `name`, (C or 1, H or 1, W or 1)."""
        given = self.weights[name].shape

        def unit(*index: int) -> Unit:
            entry = tuple(0 if size == 1 else i for i, size in zip(index, given, strict=True))
            return {**units[index], ((name, entry),): np.ones(self.n)}

        return grid(units.shape, unit)

    def _bias(self, name: str, channel: int) -> Unit:
        bias = f"{name}.bias"
        return {((bias, (channel,)),): np.ones(self.n)} if bias in self.weights else {}


def features(unit: Unit, *, biases: bool) -> tuple[list[Bundle], Array]:
    """Returns the bundles that end in a unit, and their features (n, P); without biases only bundles from an input.

    The names of constants contain "constant".
    """
    starts = ("bias", "constant")
    kept = [b for b in unit if biases or not (b and any(start in b[0][0] for start in starts))]
    return kept, np.stack([unit[b] for b in kept], 1)


def grid(shape: tuple[int, ...], unit: Callable[..., Unit]) -> Units:
    units = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        units[index] = unit(*index)
    return units


def _add(unit: Unit, other: Unit, *weight: Weight) -> None:
    """Adds the paths of another unit, each extended by one more weight if one is given."""
    for bundle, phi in other.items():
        longer = (*bundle, *weight)
        unit[longer] = unit[longer] + phi if longer in unit else phi


def _times(unit: Unit, factor: Array | float) -> Unit:
    return {bundle: phi * factor for bundle, phi in unit.items()}


def pooled(shape: tuple[int, ...], kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    return (shape[0], *((size + 2 * padding - kernel) // stride + 1 for size in shape[1:]))


def window(
    shape: tuple[int, ...], c: int, p: int, q: int, kernel: int, stride: int, padding: int
) -> Iterator[tuple[int, int, int]]:
    """Yields the pixels of the window that are inside the image, row by row."""
    for i, j in np.ndindex(kernel, kernel):
        row, column = p * stride + i - padding, q * stride + j - padding
        if 0 <= row < shape[1] and 0 <= column < shape[2]:
            yield c, row, column
