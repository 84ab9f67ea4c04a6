"""Compares a kernel with the portable op: the results must have the same bits or, if rounded, as small an error.

A kernel runs three times: twice on the same values, which must give the same bits, and then on other values in the same
memory. It must not change anything but its results: no argument, nothing around an argument or an output, no earlier
result, and no state of the process. A result that is not in `close` of the case must have the bits of the portable op's
result, whatever its strides. A result in `close` must have

    max|kernel - truth| <= 2 * max|portable - truth| + TINY[dtype] * max|truth|

and in half precision, where sums are rounded once,

    rms(kernel - truth) <= 1.5 * rms(portable - truth) + TINY[dtype] / 64 * rms(truth)

The truth is the portable op's result in float64. A float64 result has no more precise truth, so it must lie within
FLOAT64_SUMS * max|truth|. Infinities and NaN must be where they are in the truth.

Timed results are as large as a user's. There a rounded result must be within NEAR[dtype] * max|portable| of the
portable op's, and every run must give the same bits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.backends.kernels import Kernel
from gatedops.portable.register import OPS
from gatedops.selftest.calls import (
    INTEGERS,
    Run,
    as_list,
    copied,
    new_memory_is_nan,
    run,
    run_late,
    state_of,
    whole_memory,
)
from gatedops.selftest.case import Arguments, Case, Timing

# An outcome, which is a key of gatedops.backends.verdicts.OUTCOMES, and a sentence that says what went wrong.
Fault = tuple[str, str]

# One unit in the last place of the largest result, for cases in which the portable op happens to be exact.
TINY = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
# The relative error of float64 sums of at most a few hundred terms against the same sums in another order.
FLOAT64_SUMS = 1e-12
# The relative error of sums of thousands of terms against the same sums in another order; in half precision it allows a
# few roundings. Numbers that a kernel left out, or put in the wrong place, are off by far more.
NEAR = {
    torch.float64: 1e-11,
    torch.float32: 2.0**-15,
    torch.float16: 2.0**-8,
    torch.bfloat16: 2.0**-5,
}

# These ops give a symmetric matrix if y_words is None.
_SYMMETRIC = ("npk_gram", "npk_gram_out", "conv_gram")


@dataclass(frozen=True)
class _Runs:
    """Three calls of a kernel.

    Attributes:
        first, second, other: two calls on the same values, and one on others. Their results were copied at once.
        left: the results of the first call, after all calls.
        changed: the parts of the process's state that the kernel changed.
    """

    first: Run
    second: Run
    other: Run
    left: list[Any]
    changed: list[str]


def fault_of(case: Case, kernel: Kernel, device: torch.device) -> Fault | None:
    """Returns what is wrong with a kernel on a case: "wrong", "unsteady" or "raised", and a sentence. Returns None if
    nothing is wrong, or if the kernel refuses a case that it may refuse.

    It raises the errors of the portable op, and torch.OutOfMemoryError if there is too little memory to tell.
    """
    with torch.no_grad():
        values, others = case.make(device), case.make(device, seed=1)
        try:
            runs = _runs_of(case, kernel, values, others, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if case.may_refuse and isinstance(error, ValueError):
                return None
            return "raised", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        unsteady = _difference(runs.second.results, runs.first.results)
        if unsteady is not None:
            return "unsteady", f"two runs differ: {unsteady}"
        wrong = _wrong_result(case, runs.first, values, device) or _side_effect(runs, values)
        if wrong is None:
            wrong = _wrong_result(case, runs.other, others, device)
            wrong = wrong and f"after a call with other values: {wrong}"
        return None if wrong is None else ("wrong", wrong)


def _runs_of(case: Case, kernel: Kernel, values: Arguments, others: Arguments, device: torch.device) -> _Runs:
    state = state_of(device)
    with new_memory_is_nan():
        returned = run(case.op, kernel, copied(values), device)
    first = _kept(returned)
    arguments = copied(values)
    second = _kept(run(case.op, kernel, arguments, device))
    # The memory of the arguments is used again, but that of outputs is not.
    reused = (arguments[0], copied(others)[1])
    other = _kept(run_late(case.op, kernel, reused, others, device))
    changed = [name for name, value in state_of(device).items() if value != state[name]]
    return _Runs(first, second, other, returned.results, changed)


def _kept(done: Run) -> Run:
    """Copies the results of a call, so that no later call can change them."""
    return replace(done, results=pytree.tree_map_only(Tensor, torch.clone, done.results))


def fault_when_timed(timing: Timing, found: Any, expected: Any) -> Fault | None:
    """Returns what is wrong with a timed kernel's results, compared with the portable op's."""
    ours, theirs = as_list(found), as_list(expected)
    wrong = _difference(ours, theirs, but=timing.close)
    for index in sorted(timing.close) if wrong is None else ():
        error = _far(ours[index], theirs[index])
        wrong = wrong or (error and f"result {index}: {error}")
    return None if wrong is None else ("wrong", wrong)


def unsteady_when_timed(again: Any, first: Any) -> Fault | None:
    """Returns what is wrong with a timed kernel's results, compared with those of its first run."""
    unsteady = _difference(as_list(again), as_list(first))
    return None if unsteady is None else ("unsteady", f"two runs differ: {unsteady}")


# --- comparisons ----------------------------------------------------------------------------------------------------


def _wrong_result(case: Case, found: Run, values: Arguments, device: torch.device) -> str | None:
    expected = run(case.op, OPS[case.op], copied(values), device)
    wrong = _difference(found.results, expected.results, but=case.close)
    if wrong is not None or not case.close:
        return wrong
    truth = run(case.op, OPS[case.op], _in_float64(values), device)
    for index in sorted(case.close):
        ours, exact = found.results[index], truth.results[index]
        wrong = _error(ours, expected.results[index], exact)
        if wrong is None and case.op in _SYMMETRIC and found.arguments["y_words"] is None:
            asymmetry = _bits_difference(ours, ours.mT)
            wrong = None if asymmetry is None else f"not symmetric, {asymmetry}"
        if wrong is not None:
            return f"result {index}: {wrong}"
    return None


def _in_float64(arguments: Arguments) -> Arguments:
    """Returns the arguments with every float tensor and float dtype changed to float64."""

    def precise(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = copied(arguments)
    return [precise(value) for value in args], {name: precise(value) for name, value in kwargs.items()}


def _difference(found: list[Any], expected: list[Any], *, but: Collection[int] = ()) -> str | None:
    """Returns the first difference in the number or form of results, or in the bits of any result not in `but`."""
    if len(found) != len(expected):
        return f"{len(found)} results, expected {len(expected)}"
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        wrong = _form_difference(ours, theirs)
        if wrong is None and isinstance(theirs, Tensor) and index not in but:
            wrong = _bits_difference(ours, theirs)
        if wrong is not None:
            return f"result {index}: {wrong}"
    return None


def _form_difference(found: Any, expected: Any) -> str | None:
    """Returns how two results differ in type, shape, dtype or device."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return None if type(found) is type(expected) else f"{type(found).__name__}, expected {type(expected).__name__}"
    for ours, theirs in (
        (tuple(found.shape), tuple(expected.shape)),
        (found.dtype, expected.dtype),
        (found.device, expected.device),
    ):
        if ours != theirs:
            return f"{ours}, expected {theirs}"
    return None


def _bits_difference(found: Tensor, expected: Tensor) -> str | None:
    """Returns how the bits of two tensors of the same form differ; all NaNs count as equal."""
    if torch.equal(_bits(found), _bits(expected)):
        return None
    differ = _bits(found) != _bits(expected)
    if expected.is_floating_point():
        differ &= ~(found.isnan() & expected.isnan())
    return _told(differ, found, expected, "differ") if differ.any() else None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(INTEGERS[tensor.itemsize])


def _told(wrong: Tensor, found: Tensor, expected: Tensor, how: str) -> str:
    first = wrong.flatten().view(torch.uint8).argmax()
    place = tuple(int(index) for index in torch.unravel_index(first, wrong.shape))
    values = f"{found[place].item()}, expected {expected[place].item()}"
    return f"{int(wrong.sum())} of {wrong.numel()} numbers {how}, the first at {list(place)}: {values}"


def _error(found: Tensor, portable: Tensor, truth: Tensor) -> str | None:
    """Returns how far a rounded result is from the truth, if it is too far."""
    misplaced = _misplaced(found, truth)
    finite = truth.isfinite()
    if misplaced is not None or not finite.any():
        return misplaced
    exact = torch.where(finite, truth, 0.0)
    ours, theirs = (torch.where(finite, result.double(), 0.0) - exact for result in (found, portable))
    largest = exact.abs().max().item()
    allowed = FLOAT64_SUMS * largest
    if found.dtype != torch.float64:
        allowed = 2 * theirs.abs().max().item() + TINY[found.dtype] * largest
    wrong = ours.abs() > allowed
    if wrong.any():
        return _told(wrong, found, truth, f"are off by more than the allowed {allowed:.3g}")
    if found.dtype in (torch.float16, torch.bfloat16):
        mean, allowed = _mean(ours), 1.5 * _mean(theirs) + TINY[found.dtype] / 64 * _mean(exact)
        if mean > allowed:
            return f"off by {mean:.3g} in the root mean square, more than the allowed {allowed:.3g}"
    return None


def _mean(errors: Tensor) -> float:
    """Returns the root mean square."""
    return errors.square().mean().sqrt().item()


def _far(found: Tensor, portable: Tensor) -> str | None:
    """Returns how far a rounded result is from the portable op's, if it is too far."""
    misplaced = _misplaced(found, portable)
    finite = portable.isfinite()
    if misplaced is not None or not finite.any():
        return misplaced
    allowed = NEAR[portable.dtype] * portable[finite].abs().max().item()
    wrong = finite & ((found.double() - portable).abs() > allowed)
    return _told(wrong, found, portable, f"are off by more than the allowed {allowed:.3g}") if wrong.any() else None


def _misplaced(found: Tensor, expected: Tensor) -> str | None:
    """Returns a sentence about infinities and NaN that are not where they are expected."""
    same = (found == expected) | (found.isnan() & expected.isnan())
    misplaced = torch.where(expected.isfinite(), ~found.isfinite(), ~same)
    return _told(misplaced, found, expected, "are infinite or NaN in the wrong place") if misplaced.any() else None


def _side_effect(runs: _Runs, values: Arguments) -> str | None:
    """Returns what a kernel changed beside its results."""
    if runs.first.spilled:
        return f"wrote outside of {runs.first.spilled[0]}"
    for name, value in zip(runs.first.arguments, values[0], strict=False):
        if isinstance(value, Tensor):
            now = runs.first.arguments[name]
            if not torch.equal(_bits(whole_memory(now)), _bits(whole_memory(value))):
                inside = torch.equal(_bits(now), _bits(value))
                return f"the kernel changed {'memory around ' if inside else ''}its argument {name}"
    if _difference(runs.left, runs.first.results) is not None:
        return "a later call changed an earlier result"
    return f"the kernel changed {runs.changed[0]}" if runs.changed else None
