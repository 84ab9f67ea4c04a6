"""What flows through a network while its kernel is computed: lists of terms (docs/math.md, section 13).

A signal h with channels c and pixels p has, over the values of the paths, the second moments

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
    """a: E[h h'] of a unit h; t: E[<dh/dw, dh'/dw>] over the weights w so far. None is 0."""

    a: Value | None
    t: Value | None = None

    def each(self, function: Callable[[Value], Value]) -> Kernel:
        """The function of each of the two that is not 0."""
        return Kernel(*(None if value is None else function(value) for value in (self.a, self.t)))


@dataclass(frozen=True)
class InputTerm:
    """The network's input: M is 1 and gamma is what `features` make of the input."""

    origins: frozenset[int]
    features: tuple[FeatureStep, ...] = ()


@dataclass(frozen=True)
class ChannelTerm:
    """(M, gamma, gamma'): M is `kernel`, gamma is `mask`; an empty mask is 1 everywhere.

    Behind a max-pool M is still between the pixels before it.
    """

    origins: frozenset[int]
    kernel: Kernel
    mask: Mask

    def gated(self, layer: int) -> ChannelTerm:
        return replace(self, mask=self.mask.gated(layer))


@dataclass(frozen=True)
class SummedTerm:
    """Moments summed over the channels: what is left once pixels are averaged behind gates."""

    origins: frozenset[int]
    kernel: Kernel


Term = InputTerm | ChannelTerm | SummedTerm


@dataclass(frozen=True, eq=False)
class Signal:
    """The output of a step.

    Args:
        shape: channels, height, width.
        origins of a term: the steps that made what it carries. Values of terms that share none are independent.
    """

    shape: tuple[int, int, int]
    terms: tuple[Term, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[1:]
