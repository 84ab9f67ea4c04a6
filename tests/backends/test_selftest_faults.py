"""The self-test finds faults of any kind in every op: one wrong bit, another form, or a write beside a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import (
    CPU,
    SOME_SLOW,
    TESTED,
    TESTED_OPS,
    as_bits,
    cases_of_op,
    changed,
    flip,
    results_of,
)
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.backends.families import FAMILIES, FAMILY_OF
from gatedops.backends.kernels import Kernel
from gatedops.portable.register import OPS
from gatedops.selftest import worker
from gatedops.selftest.calls import argument_names, output_names
from gatedops.selftest.case import Case
from gatedops.selftest.cases import cases_of, timings_of
from gatedops.selftest.compare import fault_of, fault_when_timed

pytestmark = pytest.mark.usefixtures("one_thread")


# --- faults of any kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOME_SLOW)
def test_one_wrong_bit_is_found_in_every_result_of_every_case(family):
    for case in cases_of(family, FAMILIES[family]):
        for index, result in enumerate(results_of(case)):
            if result.numel() > 0:
                kernel = changed(case.op, lambda results, i=index, c=case: flip(results[i], i in c.close))
                outcome, why = fault_of(case, kernel, CPU)
                assert (outcome, why.startswith(f"result {index}: 1 of")) == ("wrong", True), f"{case.name}: {why}"


def one_case(op: str) -> Case:
    """Returns a case whose first result has numbers, with two different first rows."""
    return next(case for case in cases_of_op(op) if swap(results_of(case)))


def swap(results: list[Any]) -> bool:
    """Swaps the first two rows of the first result, and returns whether that changes anything."""
    rows = results[0].movedim(-2, 0) if results[0].dim() == 3 else results[0]
    if rows.shape[0] < 2 or rows.numel() == 0 or torch.equal(rows[0], rows[1]):
        return False
    rows[:2] = rows[:2].flip(0)
    return True


def retype(results: list[Any]) -> None:
    results[0] = results[0].to(torch.int64 if results[0].dtype != torch.int64 else torch.int32)


def reshape(results: list[Any]) -> None:
    results[0] = results[0].unsqueeze(0)


@pytest.mark.parametrize("op", TESTED_OPS)
def test_rows_in_another_order_are_wrong(op):
    outcome, why = fault_of(one_case(op), changed(op, swap), CPU)
    assert outcome == "wrong"
    assert "expected" in why


@pytest.mark.parametrize("op", [op for op in TESTED_OPS if not output_names(op)])
def test_results_of_another_form_are_wrong(op):
    def one_more(*args, **kwargs):
        returned = OPS[op](*args, **kwargs)
        return (*returned, returned[0]) if isinstance(returned, tuple) else (returned, returned)

    for kernel in (changed(op, retype), changed(op, reshape), one_more, lambda *args: None):
        outcome, why = fault_of(one_case(op), kernel, CPU)
        assert outcome == "wrong"
        assert "expected" in why


@pytest.mark.parametrize("op", TESTED_OPS)
def test_a_second_run_that_differs_is_unsteady(op):
    runs = iter((False, True, False))
    kernel = changed(op, lambda results: flip(results[0]) if next(runs) else None)
    outcome, why = fault_of(one_case(op), kernel, CPU)
    assert (outcome, why.startswith("two runs differ: result 0: 1 of")) == ("unsteady", True)


@pytest.mark.parametrize("op", TESTED_OPS)
def test_an_error_is_told_by_its_first_line(op):
    def kernel(*args, **kwargs):
        raise RuntimeError("no such tile\nand more")

    assert fault_of(one_case(op), kernel, CPU) == ("raised", "RuntimeError: no such tile")


def test_only_marked_cases_may_be_refused():
    def refuses(*args, **kwargs):
        raise ValueError("unknown instruction")

    def fails(*args, **kwargs):
        raise RuntimeError("unknown error")

    for case in [*cases_of_op("conv_gram"), *cases_of_op("gate_neighbors")]:
        fault = ("raised", "ValueError: unknown instruction")
        assert fault_of(case, refuses, CPU) == (None if case.may_refuse else fault), case.name
        assert fault_of(case, fails, CPU) == ("raised", "RuntimeError: unknown error")


@pytest.mark.parametrize("op", TESTED_OPS)
def test_a_changed_argument_is_found(op):
    case = one_case(op)
    for position, value in enumerate(case.make(CPU)[0]):
        if not isinstance(value, Tensor):
            continue

        def kernel(*args, position=position, **kwargs):
            returned = OPS[op](*args, **kwargs)
            flip(args[position])
            return returned

        name = argument_names(op)[position]
        assert fault_of(case, kernel, CPU) == ("wrong", f"the kernel changed its argument {name}")


@pytest.mark.parametrize("op", [op for op in TESTED_OPS if output_names(op)])
@pytest.mark.parametrize("behind", [False, True])
def test_a_write_beside_an_output_is_found(op, behind):
    """The write is right before the first number, or right behind the first row or, if contiguous, behind the
    output."""
    for index, name in enumerate(output_names(op)):

        def change(results, index=index):
            out = results[index]
            row = out.numel() if out.is_contiguous() else out.shape[-1]
            out.as_strided((1,), (1,), out.storage_offset() + (row if behind else -1)).fill_(1)

        case = next(case for case in cases_of_op(op) if results_of(case)[0].numel() > 0)
        assert fault_of(case, changed(op, change), CPU) == ("wrong", f"wrote outside of {name}")


def test_an_output_that_is_not_filled_is_found():
    for op in (op for op in TESTED_OPS if output_names(op)):
        assert fault_of(one_case(op), lambda *args, **kwargs: None, CPU)[0] == "wrong"


def test_a_rounded_gram_that_is_not_symmetric_is_found():
    case = next(case for case in cases_of_op("npk_gram") if case.close and "symmetric" in case.name)
    kernel = changed("npk_gram", lambda results: as_bits(results[0])[:1, 1:].bitwise_xor_(1))
    outcome, why = fault_of(case, kernel, CPU)
    assert outcome == "wrong"
    assert "not symmetric" in why


def test_infinities_in_the_wrong_place_are_found():
    case = next(case for case in cases_of_op("npk_gram") if case.close)
    outcome, why = fault_of(case, changed("npk_gram", lambda results: results[0][2:3].fill_(torch.inf)), CPU)
    assert outcome == "wrong"
    assert "infinite or NaN in the wrong place" in why


# --- results of calls that are timed --------------------------------------------------------------------------------


def timed(op: str, kernel: Kernel) -> dict[str, Any]:
    """Returns what a worker reports about the timings of an op."""
    return worker._time(timings_of(FAMILY_OF[op], [op]), {op: kernel}, CPU, lambda line: None)


def test_a_result_that_is_wrong_only_where_it_is_timed_is_found():
    def cut(results: list[Any]) -> None:
        results[0][256:] = 0

    told = timed("pack_gates", changed("pack_gates", cut))
    assert told["outcome"] == "wrong"
    assert told["why"].startswith("pack_gates of 32768 x 2048, float32: result 0: ")


def test_a_result_of_another_form_is_found_when_it_is_timed():
    told = timed("unpack_gates", lambda words, positions, channels: torch.zeros(1))
    assert told["outcome"] == "wrong"


def test_a_run_that_differs_from_the_first_is_found_when_it_is_timed():
    runs = iter([False, False, True])
    told = timed("pack_gates", changed("pack_gates", lambda results: flip(results[0]) if next(runs) else None))
    assert told["outcome"] == "unsteady"
    assert told["why"].startswith("pack_gates of 512 x 512, float32: two runs differ: result 0: 1 of ")


@pytest.mark.parametrize("family", TESTED)
def test_half_of_the_rows_left_out_are_found_in_every_result_that_is_timed(family):
    for timing in timings_of(family, FAMILIES[family]):
        if timing.size == "large":
            continue
        args, _ = timing.make(CPU)
        for index, expected in enumerate(pytree.tree_leaves(OPS[timing.op](*args))):
            results = pytree.tree_leaves(OPS[timing.op](*args))
            results[index][results[index].shape[0] // 2 :] = 0
            if not torch.equal(results[index], expected):
                assert fault_when_timed(timing, tuple(results), OPS[timing.op](*args))[0] == "wrong", timing.name
