"""Kernels with planted faults, for tests of the self-test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.backends.families import FAMILIES, FAMILY_OF
from gatedops.backends.kernels import KERNEL_BACKENDS, Kernel
from gatedops.portable.register import OPS
from gatedops.selftest.calls import argument_names
from gatedops.selftest.case import Case
from gatedops.selftest.cases import cases_of
from gatedops.selftest.compare import fault_of

CPU = torch.device("cpu")
TESTED = [family for family in FAMILIES if any(backend.ops_of(family) for backend in KERNEL_BACKENDS)]
SOME_SLOW = [
    pytest.param(family, marks=pytest.mark.slow if family in ("conv_gram", "gated_linear_pair") else ())
    for family in TESTED
]
TESTED_OPS = [op for family in TESTED for op in FAMILIES[family]]
LAYERS = [op for op in TESTED_OPS if op.startswith("gated_linear")]
DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def cases_of_op(op: str) -> list[Case]:
    return cases_of(FAMILY_OF[op], [op])


# A Change changes a list of results in place.
Change = Callable[[list[Any]], None]


def changed(op: str, change: Change) -> Kernel:
    """Returns the portable op with its results changed."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        returned = OPS[op](*args, **kwargs)
        results = list(kwargs.values()) or pytree.tree_leaves(returned)
        change(results)
        if kwargs:
            return None
        return tuple(results) if isinstance(returned, tuple) else results[0]

    return kernel


def as_bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def flip(tensor: Tensor, close: bool = False) -> None:
    """Changes one bit: the sign of the largest number if results are rounded, else the last bit of a number."""
    if close:
        sizes = torch.where(tensor.isfinite(), tensor.abs(), 0)
        place = tuple((sizes == sizes.max()).nonzero()[0])
        tensor[place] = -tensor[place] if tensor[place] != 0 else 1
    else:
        place = (~tensor.isnan()).nonzero()[-1]
        as_bits(tensor)[tuple(place)] ^= 1


def results_of(case: Case) -> list[Tensor]:
    return returned_by(case.op, *case.make(CPU))


def returned_by(op: str, args: list[Any], outs: dict[str, Any]) -> list[Tensor]:
    """Returns what the portable op returns or fills."""
    returned = OPS[op](*args, **outs)
    return list(outs.values()) or pytree.tree_leaves(returned)


def assert_found(op: str, kernel: Kernel) -> None:
    """Checks that a case tells a kernel from the portable op."""
    faults = (fault_of(case, kernel, CPU) for case in cases_of_op(op))
    first = next((fault for fault in faults if fault is not None), None)
    assert first is not None
    assert first[0] == "wrong", first


def on_changed_arguments(op: str, change: Callable[[str, Any], Any]) -> Kernel:
    """Returns the portable op on changed arguments."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return OPS[op](*map(change, argument_names(op), args), **kwargs)

    return kernel


def tf32(tensor: Tensor) -> Tensor:
    """Rounds to 10 bits behind the first."""
    return ((tensor.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def of_dtype(dtype: torch.dtype, rounded: Callable[[Tensor], Tensor]) -> Callable[[str, Any], Any]:
    """Rounds the tensors of a dtype."""
    return lambda _, value: rounded(value) if isinstance(value, Tensor) and value.dtype == dtype else value
