"""Makes operators of matrices and of the operators of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.operators.base import KernelOperator, require_symmetric
from gatedops.operators.sums import add_product, widened
from gatedops.operators.tiles import Index
from gatedops.ops.checks import require_dtype, require_float64

_DTYPES = (torch.float32, torch.float64)
# This many rows of a matrix are read at a time.
_ROWS = 2048


def as_operator(K: Any, name: str = "K") -> KernelOperator:
    """Returns K as an operator.

    Args:
        K: a KernelOperator, which is returned as it is; or a tensor or numpy array ``(n, m)`` of float32 or float64. A
            square matrix that equals its transpose up to rounding is symmetric.
        name: what errors call K.

    Raises:
        TypeError, ValueError: K is something else, or has infinite values or NaN.
    """
    if isinstance(K, KernelOperator):
        return K
    if isinstance(K, (Tensor, np.ndarray)):
        return DenseOperator(as_tensor(K, name), name)
    raise TypeError(f"{name}: got {type(K).__name__}, needs an NPKOperator, a tensor or a numpy array")


class DenseOperator(KernelOperator):
    """A stored matrix as an operator.

    Args:
        matrix: ``(n, m)``, float32 or float64, finite.
        name: what errors call it.
    """

    def __init__(self, matrix: Tensor, name: str = "K") -> None:
        require_dtype(matrix.dtype, name, _DTYPES)
        if matrix.dim() != 2:
            raise ValueError(f"{name}: got shape {tuple(matrix.shape)}, needs a matrix (n, m)")
        require_float64(matrix.device, name)
        matrix = matrix.detach()
        if not all(bool(torch.isfinite(matrix[i : i + _ROWS]).all()) for i in range(0, len(matrix), _ROWS)):
            raise ValueError(f"{name}: has infinite values or NaN, needs finite numbers")
        self.shape, self.dtype, self.device = (matrix.shape[0], matrix.shape[1]), matrix.dtype, matrix.device
        self.symmetric = _is_symmetric(matrix)
        self._matrix = matrix

    def product(self, v: Tensor) -> Tensor:
        values = widened(v)
        sums = values.new_zeros((self.shape[0], values.shape[1]))
        add_product(self._matrix, (values, sums))
        return sums[:, : v.shape[1]]

    def diag(self) -> Tensor:
        require_symmetric(self)
        return self._matrix.diagonal().clone()

    def block(self, rows: Index, cols: Index) -> Tensor:
        return self._matrix[rows][:, cols].clone()

    @property
    def T(self) -> KernelOperator:
        if self.symmetric:
            return self
        other = object.__new__(DenseOperator)
        other.__dict__.update(self.__dict__, shape=(self.shape[1], self.shape[0]), _matrix=self._matrix.mT)
        return other


def _is_symmetric(matrix: Tensor) -> bool:
    """Whether a matrix equals its transpose, up to a rounding error of its largest entry."""
    n, m = matrix.shape
    if n != m:
        return False
    off = largest = 0.0
    for i in range(0, n, _ROWS):
        for j in range(0, i + 1, _ROWS):
            block = matrix[i : i + _ROWS, j : j + _ROWS]
            off = max(off, float((block - matrix[j : j + _ROWS, i : i + _ROWS].mT).abs().max()))
            largest = max(largest, float(block.abs().max()))
    return off <= 8 * torch.finfo(matrix.dtype).eps * largest
