"""What people use today for the same Gram: plain torch, one matrix product per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class MatmulPerLayer:
    """Lambda (or Sigma * Lambda) of gates stored as numbers: a torch matmul per layer, multiplied in place.

    masks  bool (n, w_l) per layer; converted here, outside the timing
    scale  multiplier per layer, free inside the matmul (alpha)
    dtype  float32 and float64 give exact counts; bfloat16 is faster on some CPUs and rounds every count above
           256
    x      inputs (n, d), or None for Lambda alone

    Calling it returns the (n, n) result, in one of two buffers that every call uses again.
    """

    def __init__(self, masks: Sequence[Tensor], scale: Sequence[float], dtype: torch.dtype, x: Tensor | None = None):
        self.gates = [mask.to(dtype) for mask in masks]
        self.scale = list(scale)
        self.x = None if x is None else x.to(dtype)
        n = len(self.gates[0])
        self.product, self.count = (torch.empty(n, n, dtype=dtype, device=masks[0].device) for _ in range(2))

    def __call__(self) -> Tensor:
        first = 0
        if self.x is not None:
            torch.mm(self.x, self.x.T, out=self.product)
        else:
            self._scaled_counts(0, self.product)
            first = 1
        for layer in range(first, len(self.gates)):
            self.product.mul_(self._scaled_counts(layer, self.count))
        return self.product

    def _scaled_counts(self, layer: int, out: Tensor) -> Tensor:
        gates = self.gates[layer]
        return torch.addmm(out, gates, gates.T, beta=0, alpha=self.scale[layer], out=out)


class InputMatmul:
    """Sigma alone: x @ x.T into a buffer that every call uses again. What any Gram with inputs has to pay."""

    def __init__(self, x: Tensor):
        self.x = x
        self.sigma = torch.empty(len(x), len(x), dtype=x.dtype, device=x.device)

    def __call__(self) -> Tensor:
        return torch.mm(self.x, self.x.T, out=self.sigma)


def exact_rows(masks: Sequence[Tensor], scale: Sequence[float], x: Tensor | None, rows: Tensor) -> Tensor:
    """Float64 (len(rows), n): the given rows of the Gram, from exact counts, independent of every
    contestant.
    """
    result = None if x is None else x[rows].double() @ x.double().T
    for mask, factor in zip(masks, scale, strict=True):
        counts = (mask[rows].double() @ mask.double().T) * factor
        result = counts if result is None else result * counts
    assert result is not None
    return result


def largest_relative_error(found: Tensor, exact: Tensor) -> float:
    """max |found - exact| / |exact| over the entries that are not 0; infinite if an exact 0 is missed."""
    wrong = (found.double() - exact).abs()
    if bool((wrong[exact == 0] > 0).any()):
        return float("inf")
    return float((wrong / exact.abs()).nan_to_num(0.0).max())
