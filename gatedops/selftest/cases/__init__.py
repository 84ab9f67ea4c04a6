"""Lists, family by family, the calls that GPU kernels must get right, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Collection

from gatedops.selftest.case import Case, Timing
from gatedops.selftest.cases import conv_gram, gated_linear, gated_linear_pair, gates, gram

_MODULES = {
    "gates": gates,
    "gram": gram,
    "conv_gram": conv_gram,
    "gated_linear": gated_linear,
    "gated_linear_pair": gated_linear_pair,
}


def cases_of(family: str, ops: Collection[str]) -> list[Case]:
    """Returns the cases of these ops of a family; KeyError if the family has no cases."""
    return [case for case in _MODULES[family].cases() if case.op in ops]


def timings_of(family: str, ops: Collection[str]) -> list[Timing]:
    """Returns the timings of these ops of a family; KeyError if the family has no timings."""
    return [timing for timing in _MODULES[family].timings() if timing.op in ops]
