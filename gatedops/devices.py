"""Says what a torch device can do."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes


def has_float64(device: torch.device) -> bool:
    """Whether torch computes in float64 on this device; Apple's GPUs and some of Intel's cannot."""
    return device.type in ("cpu", "cuda", "meta") or _computes(torch.float64, device)


# This is what torch.compiler.assume_constant_result does. Calling that would load the compiler, which adds a second to
# every import of gatedops.
has_float64._dynamo_marked_constant = True  # type: ignore[attr-defined]


def most_precise(device: torch.device) -> torch.dtype:
    """Returns float64, or float32 on a device without float64."""
    return torch.float64 if has_float64(device) else torch.float32


def in_float64(tensor: Tensor) -> Tensor:
    """Returns the same numbers in float64, on the CPU if their device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).to(torch.float64)


def can_be_read(tensor: Tensor) -> bool:
    """Whether Python can read the values of a tensor now: the tensor has memory, it is not traced and not wrapped by
    torch.func, and its GPU is not recording a graph."""
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
        # Fake tensors, which torch.export uses for example, compute in any dtype.
        with _disable_current_modes():
            torch.ones((), dtype=dtype, device=device).add_(1)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    return True
