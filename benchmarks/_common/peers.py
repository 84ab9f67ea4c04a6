"""What people use today for the same Gram: plain torch, a matrix product per layer. Checks against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gatedops import GateBits, reference

CHECKED_ROWS, CHECKED_COLUMNS = 64, 256


class MatmulPerLayer:
    """Lambda (or Sigma * Lambda) of gates stored as numbers: a torch matmul per layer, multiplied in place.

    masks  bool (n, w_l) per layer; converted here, outside the timing
    scale  multiplier per layer, free inside the matmul (alpha)
    dtype  float32 and float64 give exact counts; bfloat16 is faster on some CPUs and rounds every count above
           256; float16 rounds every count above 2048
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


def input_matmul(x: Tensor) -> Callable[[], Tensor]:
    """Returns Sigma alone, x @ x.T into a buffer that every call uses again. Any Gram with inputs has to pay for it."""
    return partial(torch.mm, x, x.T, out=torch.empty(len(x), len(x), dtype=x.dtype, device=x.device))


def require_right(gram: Callable[[], Tensor], bits: GateBits, x: Tensor | None = None) -> None:
    """Raises RuntimeError unless some rows and columns of a Gram are the reference's: in every bit for Lambda alone and
    for bytes x, to the accuracy of a float32 sum of x.shape[1] products of equal sign for floats."""
    exact = x is None or not x.is_floating_point()
    found, expected = _sample(gram(), bits, x if exact or x is None else x.double())
    if exact and not found.equal(expected):
        raise RuntimeError("the Gram is wrong: it differs from the reference")
    if not bool(((found - expected).abs() <= 1e-5 * expected.abs()).all()):
        raise RuntimeError("the Gram is wrong: it is not as accurate as float32")


def require_right_product(product: Callable[[Tensor], Tensor], bits: GateBits, v: Tensor) -> None:
    """Raises RuntimeError unless Lambda times v, (n, c), of which only some rows are left, is the reference's on a
    sample of rows."""
    rows, columns = _sampled(bits.n)
    few = torch.zeros_like(v)
    few[columns.to(v.device)] = v[columns.to(v.device)]
    found = product(few)[rows.to(v.device)].cpu().double()
    left, right = (bits[at.to(bits.device)].to("cpu") for at in (rows, columns))
    gram, factor = reference.npk_gram(None, left, None, right, dtype=torch.float64), few.cpu()[columns].double()
    if not bool(((found - gram @ factor).abs() <= 1e-5 * (gram @ factor.abs())).all()):
        raise RuntimeError("the product is wrong: it differs from the reference")


def _sampled(n: int) -> tuple[Tensor, Tensor]:
    """Rows and columns, each once, the first and the last among them."""
    rows = torch.linspace(0, n - 1, min(n, CHECKED_ROWS)).long()
    return rows, torch.linspace(n - 1, 0, min(n, CHECKED_COLUMNS)).long().unique()


def _sample(gram: Tensor, bits: GateBits, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """Some rows and columns of a Gram, and the reference's, on the CPU; in float64 if x is."""
    rows, columns = _sampled(bits.n)
    sides = [
        (None if x is None else x[at.to(x.device)].cpu(), bits[at.to(bits.device)].to("cpu")) for at in (rows, columns)
    ]
    dtype = torch.float64 if x is not None and x.dtype == torch.float64 else torch.float32
    expected = reference.npk_gram(*sides[0], *sides[1], dtype=dtype)
    return gram[rows.to(gram.device)][:, columns.to(gram.device)].cpu(), expected
