"""Calls an op, and keeps all that is compared later: its results, its arguments and the memory around them after the
call, and the state of the process."""

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

# The integer dtype of each size in bytes.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Every byte of outputs, and of the memory around them, has this value before a call.
_PATTERN = 0x5B
# A stream is kept busy for some milliseconds by this many products of square matrices of this size.
_PENDING = (20, 2048)


@dataclass(frozen=True)
class Run:
    """The results of one call of an op, and its arguments after it.

    Attributes:
        results: what the call returned or filled.
        arguments: all other arguments by name, after the call.
        spilled: the names of the outputs around which the call wrote.
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
        torch.cuda.current_stream(device).synchronize()  # An error of the kernel shows here at the latest.
    named = dict(zip(argument_names(op), args, strict=False)) | kwargs
    results = [named.pop(name) for name in outputs] if outputs else as_list(returned)
    spilled = [name for name, out in zip(outputs, results, strict=False) if _is_written_around(out)]
    return Run(results, named, spilled)


def run_late(op: str, kernel: Kernel, arguments: Arguments, values: Arguments, device: torch.device) -> Run:
    """Calls an implementation on arguments whose memory gets other values right before.

    On a GPU this happens in a stream that is busy, so that a kernel in any other stream reads the old values.
    """
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
    """Returns the results of an op as a list."""
    return list(returned) if isinstance(returned, tuple | list) else [returned]


def argument_names(op: str) -> list[str]:
    """Returns the names of an op's arguments, in the order of its schema."""
    return [argument.name for argument in _schema(op).arguments]


def output_names(op: str) -> list[str]:
    """Returns the names of the arguments that the op fills."""
    return [argument.name for argument in _schema(op).arguments if argument.is_out]


def _schema(op: str) -> Any:
    return getattr(torch.ops.gatedops, op).default._schema


# --- memory ---------------------------------------------------------------------------------------------------------


def copied(arguments: Arguments) -> Arguments:
    """Copies arguments into memory of their own, with the same strides, offsets and numbers around them."""
    return pytree.tree_map_only(Tensor, _copy, arguments)


def _copy(tensor: Tensor) -> Tensor:
    return whole_memory(tensor).clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def whole_memory(tensor: Tensor) -> Tensor:
    """Returns all numbers of the memory that a tensor is a part of."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def _every_byte(tensor: Tensor) -> Tensor:
    return whole_memory(tensor).view(torch.uint8)


def _pour(values: Arguments, arguments: Arguments) -> None:
    """Gives the positional arguments, and the memory around them, other values."""
    for value, argument in zip(values[0], arguments[0], strict=True):
        if isinstance(argument, Tensor):
            whole_memory(argument).copy_(whole_memory(value))


def _is_written_around(out: Tensor) -> bool:
    """Whether the bytes around an output changed."""
    inside = _copy(out)
    inside.view(INTEGERS[out.itemsize]).fill_(int.from_bytes([_PATTERN] * out.itemsize, "little"))
    return bool((_every_byte(inside) != _PATTERN).any())


# --- the state of the process ---------------------------------------------------------------------------------------


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Lets torch fill new memory with NaN, as its deterministic mode does. A number that a kernel does not write then
    shows, even if that memory held the right number before."""
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def state_of(device: torch.device) -> dict[str, Any]:
    """Returns the state that all parts of a program share, by names for people. A kernel must not change it."""
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
