"""One call of an op whose result kernels must get right, and one that they are timed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

Arguments = tuple[list[Any], dict[str, Any]]  # positional and keyword arguments of an op


class Make(Protocol):
    """Makes the arguments of a call: for a seed the same values, in memory of their own, on every call; for another
    seed others, in the same form."""

    def __call__(self, device: torch.device, seed: int = 0) -> Arguments: ...


@dataclass(frozen=True)
class Case:
    """A call of an op.

    Attributes:
        name: what it calls, and with what, for people: "npk_gram of uint8 x, 3 layers, 37 x 129".
        op: an op of csrc/ops.cpp.
        make: its arguments. Outputs that the op fills are among the keyword arguments.
        close: which of its results (for an op that fills outputs: which of those, in the order of the schema) are
            rounded, and so held to the rules for rounded results instead of to the same bits.
    """

    name: str
    op: str
    make: Make
    close: frozenset[int] = field(default=frozenset())


@dataclass(frozen=True)
class Timing:
    """A call of an op that is timed, at one of two sizes, "small" or "large". It fills no outputs; `close` as of a
    case."""

    name: str
    op: str
    size: str
    make: Make
    close: frozenset[int] = field(default=frozenset())
