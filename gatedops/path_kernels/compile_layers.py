"""The terms behind layers with weights: full, in groups, one weight a channel and place (docs/math.md, section 13)."""

from __future__ import annotations

import math
from dataclasses import replace

from gatedops import trace
from gatedops.path_kernels.features import Windows
from gatedops.path_kernels.geometry import Geometry, geometry_of
from gatedops.path_kernels.masks import Boxed, Displaced, Mask
from gatedops.path_kernels.moments import Moments
from gatedops.path_kernels.terms import ChannelSumTerm, ChannelTerm, DividedError, InputTerm, Signal, Term, joined_alike
from gatedops.path_kernels.ties import Layer


class Layers:
    """Makes the terms behind layers.

    Args:
        moments: writes the instructions.
        variances: of the weights of each layer, by the id of its step.
        biases: biases start paths.
    """

    def __init__(self, moments: Moments, variances: dict[int, float], biases: bool) -> None:
        self._moments, self._variances, self._biases = moments, variances, biases

    def behind(self, index: int, layer: Layer, source: Signal) -> tuple[Term, ...]:
        """The terms of the output of a layer, which is step `index`."""
        groups = layer.groups if isinstance(layer, trace.Conv2d) else 1
        if groups == 1:
            return (self._full(index, layer, source.terms, source, tuple(range(len(layer.weight)))),)
        if layer.weight.shape[1] == 1:
            return self._depthwise(index, layer, source)
        return joined_alike(self._grouped(index, layer, source, groups))

    def _full(
        self, index: int, layer: Layer, terms: tuple[Term, ...], source: Signal, channels: tuple[int, ...]
    ) -> ChannelTerm:
        """The term of these output channels, each of which reads all units of the terms."""
        total = self._moments.channel_sum(terms, source.size)
        kernel = self._moments.layer(total, self._variances[id(layer)], geometry_of(layer), self._has_bias(layer))
        return ChannelTerm(frozenset([index]), channels, frozenset(), kernel, Mask())

    def _has_bias(self, layer: Layer) -> bool:
        return self._biases and layer.bias is not None

    def _grouped(self, index: int, layer: Layer, source: Signal, groups: int) -> list[ChannelTerm]:
        """One term for each group of channels."""
        given, made = source.shape[0] // groups, len(layer.weight) // groups
        found: list[ChannelTerm] = []
        for group in range(groups):
            inside = {channel: [channel] for channel in range(group * given, (group + 1) * given)}
            try:
                terms = tuple(part for term in source.terms if (part := term.moved(inside)) is not None)
            except DividedError:
                raise ValueError(_divided(layer)) from None
            channels = tuple(range(group * made, (group + 1) * made))
            found.append(self._full(index, layer, terms, source, channels))
        return found

    def _depthwise(self, index: int, layer: Layer, source: Signal) -> tuple[Term, ...]:
        """The terms of a convolution in which each output channel reads one input channel."""
        geometry, each = geometry_of(layer), len(layer.weight) // source.shape[0]
        readers = {channel: [channel * each + k for k in range(each)] for channel in range(source.shape[0])}
        made: list[Term] = []
        for term in source.terms:
            try:
                read = term.moved(readers)
            except DividedError:
                raise ValueError(_divided(layer)) from None
            if isinstance(read, ChannelSumTerm) and len(read.channels) > 1:
                raise ValueError(_divided(layer))
            if read is not None:
                read = replace(read, origins=frozenset([index]), unfolded=frozenset())
                made += self._each_alone(read, layer, geometry, source)
        if self._has_bias(layer):
            kernel = self._moments.constant(0, geometry.out)
            made.append(ChannelTerm(frozenset([index]), tuple(range(len(layer.weight))), frozenset(), kernel, Mask()))
        return tuple(made)

    def _each_alone(self, term: Term, layer: Layer, geometry: Geometry, source: Signal) -> list[Term]:
        """The terms of a depthwise convolution of one term, whose channels are those of the output."""
        variance = self._variances[id(layer)]
        match term:
            case InputTerm():
                t = variance * term.t + term.a if self._moments.tangent else 0.0
                moved = replace(term.then(Windows(geometry)), a=variance * term.a, t=t)
                return [replace(moved, channels=term.channels * math.prod(geometry.kernel))]
            case ChannelSumTerm(kernel=kernel):
                return [replace(term, kernel=self._moments.boxed(self._moments.weighed(kernel, variance), geometry))]
            case ChannelTerm(kernel=kernel, mask=mask):
                kernel = self._moments.weighed(kernel, variance)
                if mask == Mask():
                    return [replace(term, kernel=self._moments.boxed(kernel, geometry))]
                if mask.window is None:
                    return [replace(term, kernel=kernel, mask=Mask(window=Boxed(geometry, mask, source.size)))]
                places = range(math.prod(geometry.kernel))
                return [replace(term, kernel=kernel, mask=_displaced(mask, geometry, p, source)) for p in places]
        raise TypeError(type(term).__name__)


def _displaced(mask: Mask, outer: Geometry, place: int, source: Signal) -> Mask:
    """A mask with a window, at one place of the window of a depthwise convolution behind it."""
    assert mask.window is not None
    return Mask(window=Displaced(mask.window.geometry.inside(outer, place), mask, source.size, outer, place))


def _divided(layer: Layer) -> str:
    return (
        f"model: {layer.name} has groups of channels, but reads sums over channels (an average behind gates, flattened"
        " images, or moved pixels behind a max-pool or a depthwise layer); path kernels need a Linear or Conv2d layer"
        " without groups between the two: put one there"
    )
