"""Calls of an op, and all that is kept of one to be compared: its results, what it left of its arguments and of the
memory around them, and the state of the process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.backends.kernels import Kernel
from gatedops.selftest.case import Arguments

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of a size in bytes

_PATTERN = 0x5B  # every byte of outputs, and of what lies around them, before they are filled
_PENDING = (20, 2048)  # products of square matrices of this size that a stream is busy with: some milliseconds


@dataclass(frozen=True)
class Run:
    """What one call of an op made of its arguments.

    Attributes:
        results: what it returned or filled.
        arguments: all others, by their names, as it left them.
        spilled: the outputs around which it wrote.
    """

    results: list[Any]
    arguments: dict[str, Any]
    spilled: list[str]


def run(op: str, kernel: Kernel, arguments: Arguments, device: torch.device) -> Run:
    """Calls an implementation of an op, and waits until it is done."""
    args, kwargs = arguments
    outputs = output_names(op)
    for name in outputs:
        _every_byte(kwargs[name]).fill_(_PATTERN)
    returned = kernel(*args, **kwargs)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # an error of the kernel shows here at the latest
    named = dict(zip(argument_names(op), args, strict=False)) | kwargs
    results = [named.pop(name) for name in outputs] if outputs else as_list(returned)
    spilled = [name for name, out in zip(outputs, results, strict=False) if _is_written_around(out)]
    return Run(results, named, spilled)


def run_late(op: str, kernel: Kernel, arguments: Arguments, values: Arguments, device: torch.device) -> Run:
    """Calls it on arguments, in the memory where they are, that get other values right before. On a GPU in a stream
    that gets there late, so that a kernel in any other stream reads the values of before."""
    if device.type != "cuda":
        _pour(values, arguments)
        return run(op, kernel, arguments, device)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        count, size = _PENDING
        matrix = torch.zeros(size, size, device=device)
        for _ in range(count):
            matrix = matrix @ matrix
        _pour(values, arguments)
        done = run(op, kernel, arguments, device)
    torch.cuda.synchronize(device)
    return done


def as_list(returned: Any) -> list[Any]:
    """What an op returned, as the list of its results."""
    return list(returned) if isinstance(returned, tuple | list) else [returned]


def argument_names(op: str) -> list[str]:
    """The arguments of an op, in the order of its schema."""
    return [argument.name for argument in _schema(op).arguments]


def output_names(op: str) -> list[str]:
    """Those of them that the op fills."""
    return [argument.name for argument in _schema(op).arguments if argument.is_out]


def _schema(op: str) -> Any:
    return getattr(torch.ops.gatedops, op).default._schema


# --- memory ---------------------------------------------------------------------------------------------------------


def copied(arguments: Arguments) -> Arguments:
    """The same arguments in memory of their own, with the same strides, offsets and numbers around them."""
    return pytree.tree_map_only(Tensor, _copy, arguments)


def _copy(tensor: Tensor) -> Tensor:
    return whole_memory(tensor).clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def whole_memory(tensor: Tensor) -> Tensor:
    """All numbers of the memory that a tensor is a part of."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def _every_byte(tensor: Tensor) -> Tensor:
    return whole_memory(tensor).view(torch.uint8)


def _pour(values: Arguments, arguments: Arguments) -> None:
    """Gives the positional arguments, and the memory around them, other values."""
    for value, argument in zip(values[0], arguments[0], strict=True):
        if isinstance(argument, Tensor):
            whole_memory(argument).copy_(whole_memory(value))


def _is_written_around(out: Tensor) -> bool:
    """Whether the bytes around an output are no longer those of before."""
    inside = _copy(out)
    inside.view(INTEGERS[out.itemsize]).fill_(int.from_bytes([_PATTERN] * out.itemsize, "little"))
    return bool((_every_byte(inside) != _PATTERN).any())


# --- the state of the process ---------------------------------------------------------------------------------------


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Fills what torch.empty gives, so that a result that is not written shows even where that memory held it before:
    what torch does where it is told to be deterministic."""
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def state_of(device: torch.device) -> dict[str, Any]:
    """What every part of a program shares, by names for people: a kernel may not change it."""
    state = {
        "the default dtype": torch.get_default_dtype(),
        "the precision of products": torch.get_float32_matmul_precision(),
        "the deterministic mode": torch.get_deterministic_debug_mode(),
        "the state of the random numbers": torch.get_rng_state().tolist(),
    }
    if device.type == "cuda":
        state["the current device"] = torch.cuda.current_device()
        state["the current stream"] = torch.cuda.current_stream().cuda_stream
    return state
