"""The only table of tolerances, and the comparisons that use it.

Counts, gates, Lambda and all results from integers are compared bit for bit. A floating point result must be about as
good as torch's with the same dtype, by the rule of two baselines:

    max|ours - truth| <= 2 * max|torch - truth| + tiny

with truth computed in a wider format and tiny = TINY[dtype] * max|truth|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.selftest.compare import FLOAT64_SUMS, TINY

# A float32 kernel of some tens of layers has at most this error relative to sqrt(K_ii K_jj): each layer rounds a few
# times.
FLOAT32_KERNEL = 1e-5
# Some rotations of an image keep a kernel but change the order of its sums, and so a float32 kernel by this much.
FLOAT32_ROTATIONS = 1e-6

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(ours: Tensor, expected: Tensor) -> None:
    """Checks for the same shape, dtype and bits: -0.0 is not 0.0, and a NaN equals itself."""
    assert ours.shape == expected.shape, f"shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    assert ours.dtype == expected.dtype, f"{ours.dtype}, expected {expected.dtype}"
    if ours.dtype.is_floating_point:
        as_int = _BITS[ours.dtype.itemsize]
        ours, expected = ours.contiguous().view(as_int), expected.contiguous().view(as_int)
    wrong = ours != expected
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} differ, first at {wrong.nonzero()[0].tolist()}"


def assert_as_good_as_torch(ours: Tensor, same_dtype: Tensor, truth: Tensor) -> None:
    """Checks by the rule of two baselines. The truth is float64; for float64 results it comes from a wider format."""
    assert ours.shape == truth.shape, f"shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    assert ours.dtype == same_dtype.dtype, f"{ours.dtype}, expected {same_dtype.dtype}"
    if truth.numel() == 0:
        return
    error = (ours.double() - truth.double()).abs().max().item()
    torchs = (same_dtype.double() - truth.double()).abs().max().item()
    allowed = 2 * torchs + TINY[ours.dtype] * truth.double().abs().max().item()
    assert error <= allowed, f"error {error:.3g} against {torchs:.3g} of torch: above the allowed {allowed:.3g}"


def assert_close_in_float64(ours: Tensor, truth: Tensor) -> None:
    """Compares float64 with float64 of another order of summation, relative to the largest entry."""
    assert ours.shape == truth.shape, f"shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    assert ours.dtype == truth.dtype == torch.float64, f"{ours.dtype} and {truth.dtype}, expected float64"
    if truth.numel() == 0:
        return
    error, largest = (ours - truth).abs().max().item(), truth.abs().max().item()
    assert error <= FLOAT64_SUMS * largest, f"error {error:.3g}, largest entry {largest:.3g}"
