"""The terms that stand for a network's signals while its kernel is computed (docs/math.md, section 13).

A signal h with channels c and pixels p has, over random weights, the second moments

    E[h(c, p) h'(c, p')] = sum over its terms j of M_j(p, p') gamma_j(c, p) gamma'_j(c, p')

with one M_j for all channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gatedops.path_kernels.masks import FeatureStep, Mask
from gatedops.path_kernels.program_builder import Value


@dataclass(frozen=True)
class Kernel:
    """a is E[h h'] of a unit h, and t is E[<dh/dw, dh'/dw>] over the weights w so far. None stands for 0."""

    a: Value | None
    t: Value | None = None

    def each(self, function: Callable[[Value], Value]) -> Kernel:
        """Applies the function to each of the two that is not 0."""
        return Kernel(*(None if value is None else function(value) for value in (self.a, self.t)))


@dataclass(frozen=True)
class InputTerm:
    """The network's input: M is 1, and gamma is the result of `features` for the input."""

    origins: frozenset[int]
    features: tuple[FeatureStep, ...] = ()


@dataclass(frozen=True)
class ChannelTerm:
    """A term with channels: M is `kernel`, and gamma is `mask`; an empty mask is 1 everywhere.

    Behind a max-pool, M is still between the pixels before the pool.
    """

    origins: frozenset[int]
    kernel: Kernel
    mask: Mask

    def gated(self, layer: int) -> ChannelTerm:
        return replace(self, mask=self.mask.gated(layer))


@dataclass(frozen=True)
class ChannelSumTerm:
    """Moments that are summed over the channels. This is all that is known after pixels are averaged behind gates."""

    origins: frozenset[int]
    kernel: Kernel


Term = InputTerm | ChannelTerm | ChannelSumTerm


@dataclass(frozen=True, eq=False)
class Signal:
    """The output of a step.

    The origins of a term are the steps whose values it carries. Terms that share no origin are independent.

    Args:
        shape: channels, height, width.
        terms: the terms of its second moments.
    """

    shape: tuple[int, int, int]
    terms: tuple[Term, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[1:]
