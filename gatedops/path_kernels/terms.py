"""The terms that stand for a network's signals while its kernel is computed (docs/math.md, section 13).

A signal h with channels c and pixels p has, over random weights, the second moments

    E[h(c, p) h'(c, p')] = sum over its terms j of M_j(p, p') gamma_j(c, p) gamma'_j(c, p')

with one M_j for all channels of a term.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from gatedops.path_kernels.features import FeatureStep, Taken
from gatedops.path_kernels.masks import Indices, Mask, picked
from gatedops.path_kernels.program_builder import Value
from gatedops.trace.pooling import Pair


@dataclass(frozen=True)
class Kernel:
    """a is E[h h'] of a unit h, and t is E[<dh/dw, dh'/dw>] over the weights w so far. None stands for 0."""

    a: Value | None
    t: Value | None = None

    def each(self, function: Callable[[Value], Value]) -> Kernel:
        """Applies the function to each of the two that is not 0."""
        return Kernel(*(None if value is None else function(value) for value in (self.a, self.t)))

    def times(self, factor: float) -> Kernel:
        return self.each(lambda value: value.times(factor))


class DividedError(Exception):
    """A part of a sum over channels is needed."""


@dataclass(frozen=True)
class Term(ABC):
    """A part of the moments of a signal.

    Args:
        origins: the steps whose values it carries. Terms that share no origin are independent.
        channels: the channels of the signal that its units are. All other channels are 0.
        unfolded: the batch norms and factors that are parts of the weights of a later layer.
    """

    origins: frozenset[int]
    channels: Indices
    unfolded: frozenset[int]

    @abstractmethod
    def take(self, units: Indices) -> Term:
        """The term of some of its units."""

    def moved(self, channel_of: dict[int, list[int]]) -> Term | None:
        """The term where each channel lies at the given other channels; None if nothing is left of it."""
        units = [(unit, to) for unit, channel in enumerate(self.channels) for to in channel_of.get(channel, [])]
        if not units:
            return None
        units.sort(key=lambda pair: pair[1])
        taken = tuple(unit for unit, _ in units)
        kept = self if taken == tuple(range(len(self.channels))) else self.take(taken)
        return replace(kept, channels=tuple(to for _, to in units))


@dataclass(frozen=True)
class InputTerm(Term):
    """The network's input: gamma is the result of `features` for the input, and M is the number `a`. Several of its
    units may lie in one channel, whose moments they add up to.

    Args:
        t: the number that stands for M in the tangent kernel.
    """

    features: tuple[FeatureStep, ...] = ()
    a: float = 1.0
    t: float = 0.0

    def take(self, units: Indices) -> InputTerm:
        return replace(self, channels=picked(self.channels, units), features=(*self.features, Taken(units)))

    def then(self, step: FeatureStep) -> InputTerm:
        return replace(self, features=(*self.features, step))


@dataclass(frozen=True)
class ChannelTerm(Term):
    """A term with channels: M is `kernel`, and gamma is `mask`. If the mask has a window, M is between the pixels
    before the window."""

    kernel: Kernel
    mask: Mask

    def take(self, units: Indices) -> ChannelTerm:
        return replace(self, channels=picked(self.channels, units), mask=self.mask.take(units))


@dataclass(frozen=True)
class ChannelSumTerm(Term):
    """Moments that are summed over these channels. This is all that is known after pixels are averaged behind gates."""

    kernel: Kernel

    def take(self, units: Indices) -> ChannelSumTerm:
        """The term itself, if these are all its units.

        Raises:
            DividedError: the sum would have to be divided.
        """
        if sorted(units) != list(range(len(self.channels))):
            raise DividedError
        return self


@dataclass(frozen=True, eq=False)
class Signal:
    """The output of a step.

    Args:
        shape: channels, height, width.
        terms: the terms of its second moments.
    """

    shape: tuple[int, int, int]
    terms: tuple[Term, ...]

    @property
    def size(self) -> Pair:
        return self.shape[1:]

    @property
    def pixels(self) -> int:
        return math.prod(self.size)


def origins_of(terms: Iterable[Term]) -> frozenset[int]:
    return frozenset().union(*(term.origins for term in terms))


def unfolded_of(terms: Iterable[Term]) -> frozenset[int]:
    return frozenset().union(*(term.unfolded for term in terms))


def joined_alike(terms: Iterable[Term]) -> tuple[Term, ...]:
    """The same terms, in which those with the same kernel and the same kinds of gates are one."""
    joined: dict[object, Term] = {}
    for number, term in enumerate(terms):
        key: object = number
        if isinstance(term, ChannelTerm) and term.mask.kinds is not None:
            key = (term.kernel, term.unfolded, term.mask.kinds)
        same = joined.get(key)
        if isinstance(same, ChannelTerm) and isinstance(term, ChannelTerm):
            channels, mask = same.channels + term.channels, same.mask.joined(term.mask)
            order = tuple(sorted(range(len(channels)), key=channels.__getitem__))
            both = replace(same, origins=same.origins | term.origins, channels=channels, mask=mask)
            joined[key] = both if order == tuple(range(len(channels))) else both.take(order)
        else:
            joined[key] = term
    return tuple(joined.values())
