"""The calls that kernels of GPUs must get right, and those that they are timed on, family by family."""

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
    """The cases of these ops of a family; KeyError for a family without any."""
    return [case for case in _MODULES[family].cases() if case.op in ops]


def timings_of(family: str, ops: Collection[str]) -> list[Timing]:
    """The timings of these ops of a family; KeyError for a family without any."""
    return [timing for timing in _MODULES[family].timings() if timing.op in ops]
