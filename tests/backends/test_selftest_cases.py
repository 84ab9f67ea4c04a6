"""Right kernels pass all cases of the self-test.

The right kernels are those in C++ on the CPU, and Triton's in its interpreter: two other implementations of every op.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import (
    CPU,
    DIGITS,
    TESTED,
    returned_by,
)
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.backends.families import FAMILIES
from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.portable.register import OPS
from gatedops.selftest.calls import whole_memory
from gatedops.selftest.case import Case
from gatedops.selftest.cases import cases_of, timings_of
from gatedops.selftest.compare import fault_of, fault_when_timed, unsteady_when_timed

pytestmark = pytest.mark.usefixtures("one_thread")


ALL_CASES = [case for family in TESTED for case in cases_of(family, FAMILIES[family])]


# --- right kernels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TESTED)
def test_the_kernels_in_cpp_pass(family):
    for case in cases_of(family, FAMILIES[family]):
        kernel = getattr(torch.ops.gatedops, case.op).default
        assert fault_of(case, kernel, CPU) is None, case.name


# The interpreter gets bfloat16 wrong, and takes a minute for the cases that are left out here.
IN_THE_INTERPRETER = """
import sys
import torch
from gatedops.backends.kernels import TRITON
from gatedops.selftest.cases import cases_of
from gatedops.selftest.compare import fault_of

kernels = TRITON.load()
for case in cases_of(sys.argv[1], TRITON.ops_of(sys.argv[1])):
    if "bfloat16" in case.name or "260" in case.name:
        continue
    fault = fault_of(case, kernels[case.op], torch.device("cpu"))
    assert fault is None, f"{case.name}: {fault}"
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gates", "gram", "gated_linear", "gated_linear_pair"])
def test_the_kernels_in_triton_pass_in_the_interpreter(family):
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER, family],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


# --- what there is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", KERNEL_BACKENDS, ids=lambda backend: backend.name)
def test_every_op_of_a_backend_has_cases_and_every_family_timings(backend):
    assert {case.op for case in ALL_CASES} >= set(backend.ops)
    for family in backend.families:
        ops = backend.ops_of(family)
        assert {timing.op for timing in timings_of(family, ops)} <= set(ops)
        assert {timing.size for timing in timings_of(family, ops)} == {"small", "large"}


def test_only_cases_of_the_given_ops_are_listed():
    assert {case.op for case in cases_of("gram", ["npk_diag"])} == {"npk_diag"}
    assert {timing.op for timing in timings_of("gram", ["npk_gram"])} == {"npk_gram"}
    for listed in (cases_of, timings_of):
        assert listed("gates", []) == []
        with pytest.raises(KeyError):
            listed("soft_gram", FAMILIES["soft_gram"])


def test_names_of_cases_tell_them_apart():
    names = [case.name for case in ALL_CASES]
    assert len(set(names)) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED)
def test_the_kernels_in_cpp_pass_when_they_are_timed(family):
    for timing in timings_of(family, FAMILIES[family]):
        args, kwargs = timing.make(CPU)
        assert kwargs == {}
        expected = OPS[timing.op](*args)
        found = getattr(torch.ops.gatedops, timing.op).default(*args)
        assert fault_when_timed(timing, found, expected) is None, timing.name
        assert unsteady_when_timed(found, found) is None


@pytest.mark.parametrize("family", TESTED)
def test_arguments_are_the_same_every_time_in_memory_of_their_own(family):
    for case in cases_of(family, FAMILIES[family]):
        (once, outs), (again, other_outs) = case.make(CPU, seed=1), case.make(CPU, seed=1)
        for one, other in zip(once, again, strict=True):
            if not isinstance(one, Tensor):
                assert one == other
                continue
            assert (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset())
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        for one, other in zip(pytree.tree_leaves((once, outs)), pytree.tree_leaves((again, other_outs)), strict=True):
            if isinstance(one, Tensor) and one.numel() > 0:
                assert one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED)
def test_other_seeds_give_other_numbers_in_the_same_form(family):
    for case in cases_of(family, FAMILIES[family]):
        (once, _), (other, _) = case.make(CPU), case.make(CPU, seed=1)
        changed = False
        for one, another in zip(once, other, strict=True):
            if not isinstance(one, Tensor):
                assert one == another
                continue
            assert (one.shape, one.dtype, one.stride()) == (another.shape, another.dtype, another.stride())
            assert whole_memory(one).shape == whole_memory(another).shape
            changed |= not torch.equal(one.nan_to_num(7), another.nan_to_num(7))
        assert changed or "all on" in case.name or once[0].numel() < 2 or once[0] is None, case.name


def absolute(case: Case, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments of a case, with floats replaced by their absolute values in float64."""
    args, outs = case.make(CPU, seed=seed)
    double = [t.double().abs() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args]
    double = [torch.float64 if isinstance(value, torch.dtype) else value for value in double]
    return double, {name: out.double() if out.is_floating_point() else out for name, out in outs.items()}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["gram", "conv_gram", "gated_linear", "gated_linear_pair"])
def test_exact_cases_are_exact_in_any_order_of_summation(family, seed):
    """The sum of the absolute values, and so every partial sum, has at most the bits of the dtype."""
    for case in cases_of(family, FAMILIES[family]):
        if case.close or "soft" in case.op or case.op in ("gate_neighbors", "gate_relu", "gate_select"):
            continue
        args, outs = absolute(case, seed)
        if case.op.startswith("npk_gram") and case.op != "npk_gram_backward":  # Sigma is a sum, but Lambda is not.
            x, y = (args[0], args[0] if args[2] is None else args[2]) if args[0] is not None else (None, None)
            bounds = [] if x is None or x.dtype == torch.uint8 else [x @ y.mT]
        else:
            bounds = returned_by(case.op, args, outs)
        for bound, result in zip(bounds, returned_by(case.op, *case.make(CPU, seed=seed)), strict=False):
            if isinstance(result, Tensor) and result.is_floating_point() and bound.isfinite().any():
                assert bound[bound.isfinite()].max() <= 2 ** DIGITS[result.dtype], case.name
