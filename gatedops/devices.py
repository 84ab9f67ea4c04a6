"""What a device of torch can do."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes


def has_float64(device: torch.device) -> bool:
    """Whether torch computes in float64 on this device; Apple's and some of Intel's GPUs have none."""
    return device.type in ("cpu", "cuda", "meta") or _computes(torch.float64, device)


# What torch.compiler.assume_constant_result does, which loads the compiler: a second of every import of gatedops.
has_float64._dynamo_marked_constant = True  # type: ignore[attr-defined]


def most_precise(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it."""
    return torch.float64 if has_float64(device) else torch.float32


def in_float64(tensor: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU where their device has none."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).to(torch.float64)


def can_be_read(tensor: Tensor) -> bool:
    """Whether the values of a tensor are there to be looked at: it is not traced, wrapped by torch.func or without
    memory, and its GPU is not recording a graph."""
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


@functools.cache
def _computes(dtype: torch.dtype, device: torch.device) -> bool:
    try:
        with _disable_current_modes():  # fake tensors, of torch.export for one, compute in any dtype
            torch.ones((), dtype=dtype, device=device).add_(1)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True
