"""The terms behind operations on pixels: max-pools, averages, moved pixels, flattening (docs/math.md, section 13)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from gatedops import trace
from gatedops.path_kernels.canonical import Pixels
from gatedops.path_kernels.features import Flattened, Mapped, Pooled, Resampled, WindowSums
from gatedops.path_kernels.geometry import windows_of
from gatedops.path_kernels.masks import Chosen, Leaf, Mask
from gatedops.path_kernels.moments import Moments
from gatedops.path_kernels.network import pool_of
from gatedops.path_kernels.terms import ChannelSumTerm, ChannelTerm, InputTerm, Signal, Term, origins_of, unfolded_of
from gatedops.trace import Step
from gatedops.trace.pooling import Pair


def max_pooled(term: Term, step: trace.MaxPool, layer: int, size: Pair, contained: int | None) -> Term:
    """The term behind a max-pool.

    Args:
        layer: the recorded layer of its choices.
        size: the (height, width) of its input.
        contained: the recorded layer of the ReLU right before the pool; the choices contain its gates.
    """
    geometry = windows_of(step.window, step)
    match term:
        case InputTerm(channels=channels):
            return term.then(Pooled(layer, channels, geometry))
        case ChannelTerm(channels=channels, mask=mask):
            window = mask.window
            if window is not None and (not isinstance(window, Chosen) or window.inner.window is not None):
                raise ValueError(
                    f"model: {step.name} is a max-pool behind a depthwise convolution or two other max-pools; path"
                    " kernels need a layer that mixes channels between the two: put one there"
                )
            kept = frozenset(leaf for leaf in mask.leaves if not (leaf.layer == contained and _is_relu(leaf)))
            both = geometry if window is None else geometry.behind(window.geometry)
            inner = Mask(kept, window)
            return replace(term, mask=Mask(window=Chosen(both, inner, size, layer, channels, geometry)))
    raise ValueError(no_channels(step))


def _is_relu(leaf: Leaf) -> bool:
    return leaf.slope == 0 and leaf.pixels is None


class PixelSteps:
    """Makes the terms behind averages, moved pixels and flattening."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments

    def averaged(self, step: trace.AvgPool | trace.Mean, source: Signal) -> tuple[Term, ...]:
        window, weights = pool_of(step, *source.size)
        geometry = windows_of(window, step)
        made: list[Term] = []
        masked: list[Term] = []
        for term in source.terms:
            match term:
                case InputTerm():
                    made.append(term.then(WindowSums(geometry, weights)))
                case ChannelTerm(kernel=kernel, mask=mask) if mask == Mask():
                    made.append(replace(term, kernel=self._moments.pooled(kernel, geometry, weights)))
                case _:
                    masked.append(term)
        for term in self._summed(masked, source):
            made.append(replace(term, kernel=self._moments.pooled(term.kernel, geometry, weights)))
        return tuple(made)

    def resampled(self, step: trace.Resample, source: Signal) -> tuple[Term, ...]:
        rows, columns = _matrix(step.rows), _matrix(step.columns)
        made: list[Term] = []
        masked: list[Term] = []
        for term in source.terms:
            match term:
                case InputTerm():
                    made.append(term.then(Resampled(rows, columns)))
                case ChannelTerm(kernel=kernel, mask=mask) if mask == Mask():
                    made.append(replace(term, kernel=self._moments.resampled(kernel, rows, columns)))
                case _:
                    masked.append(term)
        for term in self._summed(masked, source):
            made.append(replace(term, kernel=self._moments.resampled(term.kernel, rows, columns)))
        return tuple(made)

    def moved(self, step: Pixels, source: Signal) -> tuple[Term, ...]:
        """Each output pixel is one input pixel, so the channels stay apart."""
        rows, columns = (
            tuple(tuple(float(pixel == at) for pixel in range(size)) for at in chosen)
            for chosen, size in zip((step.rows, step.columns), source.size, strict=True)
        )
        made: list[Term] = []
        masked: list[Term] = []
        for term in source.terms:
            match term:
                case InputTerm():
                    made.append(term.then(Mapped(step.rows, step.columns)))
                case ChannelTerm(kernel=kernel, mask=mask) if mask.window is None:
                    moved = frozenset(_moved_leaf(leaf, step) for leaf in mask.leaves)
                    kernel = self._moments.resampled(kernel, rows, columns)
                    made.append(replace(term, kernel=kernel, mask=Mask(moved)))
                case _:
                    masked.append(term)
        for term in self._summed(masked, source):
            made.append(replace(term, kernel=self._moments.resampled(term.kernel, rows, columns)))
        return tuple(made)

    def flattened(self, source: Signal) -> tuple[Term, ...]:
        if source.size == (1, 1):
            return source.terms
        made: list[Term] = []
        others: list[Term] = []
        for term in source.terms:
            if isinstance(term, InputTerm):
                channels = tuple(c * source.pixels + p for c in term.channels for p in range(source.pixels))
                made.append(replace(term.then(Flattened()), channels=channels))
            else:
                others.append(term)
        for term in self._summed(others, source):
            channels = tuple(c * source.pixels + p for c in term.channels for p in range(source.pixels))
            made.append(replace(term, kernel=self._moments.flattened(term.kernel), channels=channels))
        return tuple(made)

    def _summed(self, terms: list[Term], source: Signal) -> list[ChannelSumTerm]:
        """The sums over channels of terms, one for each set of channels."""
        by_channels: dict[tuple[int, ...], list[Term]] = {}
        for term in terms:
            by_channels.setdefault(tuple(sorted(set(term.channels))), []).append(term)
        return [
            ChannelSumTerm(
                origins_of(some), channels, unfolded_of(some), self._moments.channel_sum(tuple(some), source.size)
            )
            for channels, some in by_channels.items()
        ]


def _moved_leaf(leaf: Leaf, step: Pixels) -> Leaf:
    if leaf.pixels is None:
        return replace(leaf, pixels=(step.rows, step.columns))
    rows, columns = (
        tuple(-1 if at < 0 else before[at] for at in chosen)
        for before, chosen in zip(leaf.pixels, (step.rows, step.columns), strict=True)
    )
    return replace(leaf, pixels=(rows, columns))


def _matrix(weights: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, weights.tolist()))


def no_channels(step: Step) -> str:
    return (
        f"model: {step.name} acts on sums over channels (an average behind gates, flattened images, or moved pixels"
        " behind a max-pool or a depthwise layer); path kernels need a Linear or Conv2d layer between the two: put one"
        " there"
    )
