"""Whether a kernel gives what the portable op gives: the same bits or, where sums are rounded, as small an error.

A kernel runs twice, on arguments of their own each time. Both runs must give the same bits. A result that is not in
`close` of the case must then have the bits of the portable op's, whatever its strides. One that is must have

    max|kernel - truth| <= 2 * max|portable - truth| + TINY[dtype] * max|truth|

with the truth from the portable op in float64; a float64 result, for which nothing more precise is at hand, must lie
within FLOAT64_SUMS * max|truth|. Infinities and NaN must stand where they stand in the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatedops.backends.kernels import Kernel
from gatedops.portable.register import OPS
from gatedops.selftest.case import Case

Fault = tuple[str, str]  # an outcome, a key of gatedops.backends.verdicts.OUTCOMES, and what went wrong, one sentence

# One unit in the last place of the largest result: for cases where the portable op happens to be exact.
TINY = {
    torch.float64: 2.0**-52,
    torch.float32: 2.0**-23,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}
# Relative error of float64 sums of at most a few hundred terms against the same sums in another order.
FLOAT64_SUMS = 1e-12

_PATTERN = 0x5B  # every byte of outputs, and of what lies around them, before they are filled
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of a size in bytes
_SYMMETRIC = ("npk_gram", "npk_gram_out", "conv_gram")  # give a symmetric matrix where y_words is None


@dataclass(frozen=True)
class _Run:
    """What one call of an op made of arguments of its own.

    Attributes:
        results: what it returned or filled.
        arguments: all others, by their names, as it left them.
        spilled: the outputs around which it wrote.
    """

    results: list[Any]
    arguments: dict[str, Any]
    spilled: list[str]


def fault_of(case: Case, kernel: Kernel, device: torch.device) -> Fault | None:
    """What is wrong with a kernel on a case: one of "wrong", "unsteady" and "raised", and a sentence. None: nothing."""
    with torch.no_grad():
        expected = _run(case, OPS[case.op], device)
        try:
            first, second = (_run(case, kernel, device) for _ in range(2))
        except Exception as error:
            return "raised", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        unsteady = _difference(first, second, exactly=range(len(first.results)))
        if unsteady is not None:
            return "unsteady", f"two runs differ: {unsteady}"
        wrong = _wrong_result(case, first, expected, device) or _side_effect(case, first, device)
        return None if wrong is None else ("wrong", wrong)


def _run(case: Case, op: Kernel, device: torch.device) -> _Run:
    args, kwargs = case.make(device)
    outputs = output_names(case.op)
    for name in outputs:
        _whole_storage(kwargs[name]).fill_(_PATTERN)
    returned = op(*args, **kwargs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an error of the kernel shows here at the latest
    arguments = dict(zip(argument_names(case.op), args, strict=False)) | kwargs
    results = [arguments.pop(name) for name in outputs] if outputs else _as_list(returned)
    spilled = [name for name, out in zip(outputs, results, strict=False) if _is_written_around(out)]
    return _Run(results, arguments, spilled)


def _as_list(returned: Any) -> list[Any]:
    return list(returned) if isinstance(returned, tuple | list) else [returned]


def argument_names(op: str) -> list[str]:
    """The arguments of an op, in the order of its schema."""
    return [argument.name for argument in _schema(op).arguments]


def output_names(op: str) -> list[str]:
    """Those of them that the op fills."""
    return [argument.name for argument in _schema(op).arguments if argument.is_out]


def _schema(op: str) -> Any:
    return getattr(torch.ops.gatedops, op).default._schema


# --- outputs that are filled ----------------------------------------------------------------------------------------


def _whole_storage(tensor: Tensor) -> Tensor:
    """All bytes of the memory that a tensor is a part of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _is_written_around(out: Tensor) -> bool:
    """Whether the bytes around an output are no longer those of before."""
    whole = _whole_storage(out).clone()
    integer = _INTEGERS[out.itemsize]
    inside = torch.empty(0, dtype=integer, device=out.device)
    inside.set_(whole.untyped_storage(), out.storage_offset(), out.shape, out.stride())
    inside.fill_(int.from_bytes([_PATTERN] * out.itemsize, "little"))
    return bool((whole != _PATTERN).any())


# --- comparisons ----------------------------------------------------------------------------------------------------


def _wrong_result(case: Case, found: _Run, expected: _Run, device: torch.device) -> str | None:
    exactly = [index for index in range(len(expected.results)) if index not in case.close]
    wrong = _difference(found, expected, exactly)
    if wrong is not None or not case.close:
        return wrong
    truth = _run(_in_float64(case), OPS[case.op], device)
    for index in sorted(case.close):
        ours, exact = found.results[index], truth.results[index]
        wrong = _error(ours, expected.results[index], exact)
        if wrong is None and case.op in _SYMMETRIC and found.arguments["y_words"] is None:
            asymmetry = _bits_difference(ours, ours.mT)
            wrong = None if asymmetry is None else f"not symmetric, {asymmetry}"
        if wrong is not None:
            return f"result {index}: {wrong}"
    return None


def _in_float64(case: Case) -> Case:
    """The same case with every floating tensor and dtype argument in float64."""

    def precise(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def make(device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = case.make(device)
        return [precise(value) for value in args], {name: precise(value) for name, value in kwargs.items()}

    return Case(case.name, case.op, make)


def _difference(found: _Run, expected: _Run, exactly: Sequence[int]) -> str | None:
    """The first difference in number or form of the results, or in the bits of those listed in `exactly`."""
    if len(found.results) != len(expected.results):
        return f"{len(found.results)} results, expected {len(expected.results)}"
    for index, (ours, theirs) in enumerate(zip(found.results, expected.results, strict=True)):
        wrong = _form_difference(ours, theirs)
        if wrong is None and theirs is not None and index in exactly:
            wrong = _bits_difference(ours, theirs)
        if wrong is not None:
            return f"result {index}: {wrong}"
    return None


def _form_difference(found: Any, expected: Any) -> str | None:
    """Between two results, their numbers aside."""
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
    """Between the bits of two tensors of the same form; every NaN is the same."""
    differ = _bits(found) != _bits(expected)
    if expected.is_floating_point():
        differ &= ~(found.isnan() & expected.isnan())
    return _told(differ, found, expected, "differ") if differ.any() else None


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.itemsize])


def _told(wrong: Tensor, found: Tensor, expected: Tensor, how: str) -> str:
    place = tuple(wrong.nonzero()[0].tolist())
    values = f"{found[place].item()}, expected {expected[place].item()}"
    return f"{int(wrong.sum())} of {wrong.numel()} numbers {how}, the first at {list(place)}: {values}"


def _error(found: Tensor, portable: Tensor, truth: Tensor) -> str | None:
    """How far a rounded result is from the truth, where that is too far."""
    ours, theirs = found.double(), portable.double()
    finite = truth.isfinite()
    misplaced = torch.where(finite, ~ours.isfinite(), ~((ours == truth) | (ours.isnan() & truth.isnan())))
    if misplaced.any():
        return _told(misplaced, found, truth, "are infinite or NaN in the wrong place")
    if not finite.any():
        return None
    largest = truth[finite].abs().max().item()
    errors = torch.where(finite, (ours - truth).abs(), 0.0)
    allowed = FLOAT64_SUMS * largest
    if found.dtype != torch.float64:
        allowed = 2 * (theirs - truth)[finite].abs().max().item() + TINY[found.dtype] * largest
    wrong = errors > allowed
    if not wrong.any():
        return None
    return _told(wrong, found, truth, f"are off by more than the allowed {allowed:.3g}")


def _side_effect(case: Case, found: _Run, device: torch.device) -> str | None:
    """What a kernel changed beside its results."""
    if found.spilled:
        return f"wrote outside of {found.spilled[0]}"
    args, kwargs = case.make(device)
    fresh = dict(zip(argument_names(case.op), args, strict=False)) | kwargs
    for name, value in found.arguments.items():
        if isinstance(value, Tensor) and not torch.equal(_bits(value), _bits(fresh[name])):
            return f"the kernel changed its argument {name}"
    return None
