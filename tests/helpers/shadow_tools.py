"""Compares calls on the device "shadow" with the same calls on the CPU: moves arguments, and compares results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import shadow
import torch
from public_calls import fields, on
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops import devices

# Results may differ by these shares of the largest number of a tensor, because sums are in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def moved(value: Any) -> Any:
    """Copies all tensors in a value to shadow."""
    return on("shadow", value)


def assert_alike(
    found: Any, expected: Any, *, exact: bool = False, device: str = "shadow", tolerance: float | None = None
) -> None:
    """Checks that the results of both devices have one form, with tensors on `device`, equal or close to `expected`.
    The tolerance is a share of the largest number of a tensor; None means that of TOLERANCE."""
    (ours, form), (theirs, other) = pytree.tree_flatten(fields(found)), pytree.tree_flatten(fields(expected))
    assert form == other
    for one, truth in zip(ours, theirs, strict=True):
        if not isinstance(truth, Tensor):
            assert one == truth or abs(one - truth) <= TOLERANCE[torch.float64] * abs(truth)
            continue
        assert one.device.type == device
        assert (one.dtype, one.shape) == (truth.dtype, truth.shape)
        if exact or not truth.dtype.is_floating_point:
            assert torch.equal(one.cpu(), truth)
        else:
            largest = float(truth.detach().abs().max()) if truth.numel() else 0.0
            torch.testing.assert_close(
                one.detach().cpu(),
                truth.detach(),
                rtol=0,
                atol=(tolerance or TOLERANCE[truth.dtype]) * largest,
                equal_nan=True,
            )


@contextmanager
def without_float64() -> Iterator[None]:
    """Runs shadow.without_float64, and lets gatedops notice it."""
    devices._computes.cache_clear()
    try:
        with shadow.without_float64():
            yield
    finally:
        devices._computes.cache_clear()
