"""Defines a call of an op whose result kernels must get right (Case), and one that is timed (Timing)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

# The positional and the keyword arguments of an op.
Arguments = tuple[list[Any], dict[str, Any]]


class Make(Protocol):
    """Makes the arguments of a call. A seed gives the same values on every call, in new memory; another seed gives
    other values in the same form."""

    def __call__(self, device: torch.device, seed: int = 0) -> Arguments: ...


@dataclass(frozen=True)
class Case:
    """A call of an op.

    Attributes:
        name: describes the call for people: "npk_gram of uint8 x, 3 layers, 37 x 129".
        op: an op of csrc/ops.cpp.
        make: makes its arguments. Outputs that the op fills are among the keyword arguments.
        close: the indices of the results that are rounded. The rules for rounded results hold for them; all others must
            have the same bits. For an op that fills outputs, these count as its results, in the order of the schema.
        may_refuse: says that a kernel may refuse the call by a ValueError, because the portable op then takes the call.
    """

    name: str
    op: str
    make: Make
    close: frozenset[int] = field(default=frozenset())
    may_refuse: bool = False


@dataclass(frozen=True)
class Timing:
    """A call of an op that is timed, at one of two sizes, "small" or "large". It fills no outputs. `close` is that of a
    Case."""

    name: str
    op: str
    size: str
    make: Make
    close: frozenset[int] = field(default=frozenset())
