"""Computes Sigma of a tile, the inner products of its inputs (docs/math.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.portable.checks import require, require_rows
from gatedops.portable.gram_blocks import Problem
from gatedops.portable.products import has_int8, operand, product
from gatedops.portable.workspace import EDGE, blocks, pieces

# This many columns are multiplied at a time: 2^13 products of at most 2^14 fit int32.
_INT8_COLUMNS = 8192
# The same for float32: 2^8 products of less than 2^16 stay below 2^24, up to which float32 is exact.
_FLOAT_COLUMNS = 256


@dataclass(frozen=True)
class Sigma:
    """The rows of both sides. Floats are converted to `dtype` piece by piece; products of bytes are exact."""

    x: Tensor
    y: Tensor
    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        """Whether the products are whole numbers, rounded once."""
        return self.x.dtype == torch.uint8

    @staticmethod
    def of(x: Tensor | None, y: Tensor | None, problem: Problem, dtype: torch.dtype) -> Sigma | None:
        """Checks the arguments of an op, and makes its Sigma; None without x."""
        complete = problem.symmetric == (y is None) or x is None
        require(complete, "y: needs y_words, and y_words needs y if x is given")
        if x is None:
            return None
        right = x if y is None else y
        require_rows(x, problem.shape[0], "x")
        require_rows(right, problem.shape[1], "y")
        require(right.shape[1] == x.shape[1], "y: needs as many columns as x")
        require((x.dtype == torch.uint8) == (right.dtype == torch.uint8), "y: x and y are both uint8 or neither")
        return Sigma(x, right, dtype)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Computes ``<x_i, y_j>`` of these rows of x and of y."""
        left, right = self.x[rows], self.y[columns]
        if self.exact:
            return _bytes_product(left, right).to(self.dtype)
        sums = left.new_zeros((left.shape[0], right.shape[0]), dtype=self.dtype)
        return add_product(sums, left, right.mT)


def add_product(sums: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Computes ``sums += left right``. Factors of another dtype are converted, some columns of `left` or `right` at a
    time."""
    if left.dtype == right.dtype == sums.dtype:
        return sums.addmm_(left, right)
    if left.dtype == sums.dtype:
        for some in pieces(right.shape[1], right.shape[0] * sums.itemsize):
            sums[:, some].addmm_(left, right[:, some].to(sums.dtype))
        return sums
    for some in pieces(left.shape[1], EDGE * sums.itemsize):
        sums.addmm_(left[:, some].to(sums.dtype), right[some].to(sums.dtype))
    return sums


def _bytes_product(left: Tensor, right: Tensor) -> Tensor:
    """Computes ``<x_i, y_j>`` of bytes, int64."""
    int8 = has_int8(left.device)
    total = left.new_zeros((left.shape[0], right.shape[0]), dtype=torch.int64)
    for some in blocks(left.shape[1], _INT8_COLUMNS if int8 else _FLOAT_COLUMNS):
        a, b = left[:, some], right[:, some]
        if int8:  # x y = (x - 128) (y - 128) + 128 (x + y) - 128^2
            part = product(operand(_less_128(a), True), operand(_less_128(b), True))
            sums = (a.sum(1)[:, None] + b.sum(1)).mul_(128).sub_(128 * 128 * a.shape[1])
            total += sums.add_(part[: left.shape[0], : right.shape[0]])
        else:
            total += product(operand(a, False), operand(b, False)).to(torch.int64)
    return total


def _less_128(values: Tensor) -> Tensor:
    """Returns bytes minus 128, int8: the highest bit is flipped, and the byte read as two's complement."""
    return (values ^ 128).view(torch.int8)
