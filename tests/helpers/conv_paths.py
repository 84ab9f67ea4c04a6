"""Lists every path of a small network of images: the ground truth for the tests of npk and npf.

It uses numpy and Python loops and nothing of gatedops, so the listing shares no code with what it checks. A unit is one
channel at one pixel. It is stored as the dictionary of the bundles of paths that end in it. The key of a bundle is the
weights on its paths, in order, and its value is its feature for every input: the sum over its paths of x times the
factors on them (gates, slopes, averages). The value of a unit follows from its bundles, so the gates and the choices of
max-pools come from the listing too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# A Weight is the name of a tensor and the index of a number in it.
Weight = tuple[str, tuple[int, ...]]
Bundle = tuple[Weight, ...]
Unit = dict[Bundle, Array]  # features (n,)
Units = NDArray[np.object_]  # (C, H, W) of Unit
Pair = tuple[int, int]

# These are numpy's names of torch's ways to pad.
_PADDING: dict[str, dict[str, Any]] = {
    "zeros": {"mode": "constant", "constant_values": -1},
    "circular": {"mode": "wrap"},
    "reflect": {"mode": "reflect"},
    "replicate": {"mode": "edge"},
}


class Listing:
    """Follows the paths of a network through its operations.

    Another class may follow something else by other methods `start`, `constant_unit`, `total`, `times`, `through`,
    `gated` and `largest`, which are all that knows what a unit is.

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

    # --- what a unit is ------------------------------------------------------------------------------------------

    def start(self, x: Array) -> Unit:
        """Starts paths at a number of every input."""
        return {(): x}

    def constant_unit(self, weight: Weight) -> Unit:
        """Starts paths at a bias or constant."""
        return {(weight,): np.ones(self.n)}

    def total(self, units: Iterable[Unit]) -> Unit:
        made: Unit = {}
        for unit in units:
            for bundle, phi in unit.items():
                made[bundle] = made[bundle] + phi if bundle in made else phi
        return made

    def times(self, unit: Unit, factor: Array | float) -> Unit:
        """Multiplies the features."""
        return {bundle: phi * factor for bundle, phi in unit.items()}

    def through(self, unit: Unit, weight: Weight) -> Unit:
        """Extends every path by one more weight."""
        return {(*bundle, weight): phi for bundle, phi in unit.items()}

    def gated(self, unit: Unit, slope: float, limit: Weight | None) -> Unit:
        """Multiplies by the gate, which is `slope` where it is off. With a limit the gate is on between 0 and that
        number, and a path of the constant starts above it."""
        q = self.output(unit)
        if limit is None:
            return self.times(unit, np.where(q > 0, 1.0, slope))
        high = self.weights[limit[0]][limit[1]]
        return self.times(unit, (q > 0) & (q < high)) | self.times(self.constant_unit(limit), q >= high)

    def largest(self, units: Sequence[Unit]) -> Unit:
        """Keeps the paths of the largest unit; the first if several are equal."""
        chosen = np.stack([self.output(unit) for unit in units]).argmax(0)
        return self.total(self.times(unit, chosen == index) for index, unit in enumerate(units))

    # --- operations ----------------------------------------------------------------------------------------------

    def input(self, x: Array) -> Units:
        """Starts paths at x (n, C, H, W)."""
        return grid(x.shape[1:], lambda c, p, q: self.start(x[:, c, p, q]))

    def conv(
        self, units: Units, name: str, *, stride: int, padding: Pair, dilation: int, groups: int, mode: str
    ) -> Units:
        """Applies the convolution `name`, with weights (C', C / groups, kh, kw) and its bias if it has one."""
        weight = self.weights[name]
        each, read = len(weight) // groups, weight.shape[1]
        # Gives the pixel at each place of the padded image; -1 for a pixel of zeros.
        rows, columns = (places(size, p, p, mode) for size, p in zip(units.shape[1:], padding, strict=True))
        out = [
            (len(at) - dilation * (k - 1) - 1) // stride + 1
            for at, k in zip((rows, columns), weight.shape[2:], strict=True)
        ]

        def unit(o: int, p: int, q: int) -> Unit:
            parts = self._bias(name, o)
            for c, i, j in np.ndindex(weight.shape[1:]):
                row, column = rows[p * stride + i * dilation], columns[q * stride + j * dilation]
                if row >= 0 and column >= 0:
                    parts.append(self.through(units[o // each * read + c, row, column], (name, (o, c, i, j))))
            return self.total(parts)

        return grid((len(weight), *out), unit)

    def transposed(self, units: Units, name: str, *, stride: int, padding: int) -> Units:
        """Applies the transposed convolution `name` of images, with weights (C, C', k, k) and its bias if it has
        one."""
        weight = self.weights[name]
        size = [(pixels - 1) * stride - 2 * padding + weight.shape[2] for pixels in units.shape[1:]]

        def unit(o: int, p: int, q: int) -> Unit:
            parts = self._bias(name, o)
            for c, row, column in np.ndindex(units.shape):
                i, j = p + padding - row * stride, q + padding - column * stride
                if 0 <= i < weight.shape[2] and 0 <= j < weight.shape[3]:
                    parts.append(self.through(units[c, row, column], (name, (c, o, i, j))))
            return self.total(parts)

        return grid((weight.shape[1], *size), unit)

    def linear(self, units: Units, name: str) -> Units:
        """Applies the linear layer `name`, with weights (out, in), to the units of each pixel."""
        weight = self.weights[name]

        def unit(o: int, p: int, q: int) -> Unit:
            inputs = [self.through(units[c, p, q], (name, (o, c))) for c in range(weight.shape[1])]
            return self.total(self._bias(name, o) + inputs)

        return grid((len(weight), *units.shape[1:]), unit)

    def gain(self, units: Units, name: str) -> Units:
        """Multiplies each channel by the weight `name` (C,), and adds the bias of it if it has one."""

        def unit(c: int, p: int, q: int) -> Unit:
            return self.total([*self._bias(name, c), self.through(units[c, p, q], (name, (c,)))])

        return grid(units.shape, unit)

    def relu(self, units: Units, slopes: Array | float = 0.0, limit: str | None = None) -> Units:
        """Applies a gate with one slope or one for each channel. With a limit, that constant `limit` (1,) is the
        largest output."""
        slope = np.broadcast_to(slopes, units.shape[:1])
        end = None if limit is None else (limit, (0,))
        return grid(units.shape, lambda c, p, q: self.gated(units[c, p, q], float(slope[c]), end))

    def max_pool(self, units: Units, *window: Pair) -> Units:
        """Keeps the paths of the largest unit of each window (kernel, stride, padding)."""
        return grid(pooled(units.shape, *window), lambda *at: self.largest(list(units[inside(units, at, *window)])))

    def avg_pool(self, units: Units, *window: Pair, include: bool) -> Units:
        """Averages over windows (kernel, stride, padding). If `include`, pixels of padding count."""

        def unit(*at: int) -> Unit:
            inputs = units[inside(units, at, *window)]
            return self.times(self.total(inputs), 1 / (math.prod(window[0]) if include else len(inputs)))

        return grid(pooled(units.shape, *window), unit)

    def adaptive(self, units: Units, size: Pair) -> Units:
        """Averages over windows of different sizes, from the pixel floor(i H / H') to ceil((i + 1) H / H')."""
        (_, height, width), (rows, columns) = units.shape, size

        def unit(c: int, p: int, q: int) -> Unit:
            row = slice(p * height // rows, -(-(p + 1) * height // rows))
            column = slice(q * width // columns, -(-(q + 1) * width // columns))
            inputs = units[c, row, column].ravel()
            return self.times(self.total(inputs), 1 / len(inputs))

        return grid((len(units), *size), unit)

    def mean(self, units: Units) -> Units:
        """Averages over all pixels."""
        pixels = units[0].size
        return grid((len(units), 1, 1), lambda c, p, q: self.times(self.total(units[c].ravel()), 1 / pixels))

    def moved(self, units: Units, rows: Sequence[int], columns: Sequence[int]) -> Units:
        """Puts the pixel (rows[p], columns[q]) at (p, q), and zeros if one of the two is -1."""

        def unit(c: int, p: int, q: int) -> Unit:
            return self.total([units[c, rows[p], columns[q]]] if rows[p] >= 0 and columns[q] >= 0 else [])

        return grid((len(units), len(rows), len(columns)), unit)

    def resample(self, units: Units, rows: Array, columns: Array) -> Units:
        """Puts rows @ image @ columns.T in the place of each image."""

        def unit(c: int, p: int, q: int) -> Unit:
            factors = np.outer(rows[p], columns[q])
            return self.total(
                self.times(units[c, i, j], factors[i, j]) for i, j in zip(*np.nonzero(factors), strict=True)
            )

        return grid((len(units), len(rows), len(columns)), unit)

    def flatten(self, units: Units) -> Units:
        return units.reshape(-1, 1, 1)

    def add(self, units: Units, others: Units) -> Units:
        return grid(units.shape, lambda *index: self.total([units[index], others[index]]))

    def scale(self, units: Units, factor: float) -> Units:
        return grid(units.shape, lambda *index: self.times(units[index], factor))

    def standardize(self, units: Units, name: str) -> Units:
        """Multiplies each channel of the input by the constant `name` (C,). The paths of constants that were added to
        the input take the constant as a weight."""

        def unit(c: int, p: int, q: int) -> Unit:
            direct = {bundle: phi for bundle, phi in units[c, p, q].items() if not bundle}
            others = {bundle: phi for bundle, phi in units[c, p, q].items() if bundle}
            factor = float(self.weights[name][c])
            return self.total([self.times(direct, factor), self.through(others, (name, (c,)))])

        return grid(units.shape, unit)

    def constant(self, units: Units, name: str) -> Units:
        """Adds the constant `name`, (C or 1, H or 1, W or 1)."""
        given = self.weights[name].shape

        def unit(*index: int) -> Unit:
            entry = tuple(0 if size == 1 else i for i, size in zip(index, given, strict=True))
            return self.total([units[index], self.constant_unit((name, entry))])

        return grid(units.shape, unit)

    def _bias(self, name: str, channel: int) -> list[Unit]:
        bias = f"{name}.bias"
        return [self.constant_unit((bias, (channel,)))] if bias in self.weights else []


def starts_at_constant(bundle: Bundle) -> bool:
    """Says whether paths start at a bias or constant; the names of constants contain "constant"."""
    return bool(bundle) and any(start in bundle[0][0] for start in ("bias", "constant"))


def features(unit: Unit, *, biases: bool) -> tuple[list[Bundle], Array]:
    """Returns the bundles that end in a unit, and their features (n, P); without biases only bundles from an input."""
    kept = [bundle for bundle in unit if biases or not starts_at_constant(bundle)]
    return kept, np.stack([unit[b] for b in kept], 1)


def second_moment(bundle: Bundle, variances: dict[str, float], *, tangent: bool) -> float:
    """Returns the mean of the squared value of a bundle over independent weights, or of its squared gradient.

    The mean of the product of two different bundles is 0. Biases and constants are 0 when the tangent kernel is taken.

    Args:
        variances: of the weights of each layer; all other numbers on paths are parts of those weights.
    """
    found = [variances[name] for name, _ in bundle if name in variances]
    if not tangent:
        return math.prod(found)
    if starts_at_constant(bundle):
        start = bundle[0][0]
        is_trained = "constant" in start or start.removesuffix(".bias") in variances
        return math.prod(found) * is_trained
    return sum(math.prod(found) / variance for variance in found)


def grid(shape: tuple[int, ...], unit: Callable[..., Unit]) -> Units:
    units = np.empty(shape, dtype=object)
    for index in np.ndindex(*shape):
        units[index] = unit(*index)
    return units


def places(size: int, before: int, after: int, mode: str) -> list[int]:
    """Returns the pixel at each place of a padded row, and -1 for zeros. Negative padding takes pixels away."""
    cut = list(range(size))[max(-before, 0) : size - max(-after, 0)]
    given: list[int] = np.pad(cut, (max(before, 0), max(after, 0)), **_PADDING[mode]).tolist()
    return given


def pooled(shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> tuple[int, ...]:
    windows = zip(shape[1:], kernel, stride, padding, strict=True)
    return (shape[0], *((size + 2 * p - k) // s + 1 for size, k, s, p in windows))


def inside(units: Units, at: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> tuple[Any, ...]:
    """Returns the index of the pixels of the window at (channel, row, column) that are inside the image, row by
    row."""
    found = []
    for i, j in np.ndindex(*kernel):
        row, column = at[1] * stride[0] + i - padding[0], at[2] * stride[1] + j - padding[1]
        if 0 <= row < units.shape[1] and 0 <= column < units.shape[2]:
            found.append((row, column))
    rows, columns = zip(*found, strict=True)
    return at[0], list(rows), list(columns)
