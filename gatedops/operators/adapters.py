"""Makes operators of matrices and of the operators of other libraries."""

from __future__ import annotations

from collections.abc import Callable
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
# This many unit vectors are multiplied at a time.
_UNITS = 256
# A matrix is symmetric if it differs from its transpose by this many rounding errors of its largest entry.
_ROUNDINGS = 8
# An operator is symmetric if two products of random vectors with it agree to this, relative to their lengths.
_AGREED = 1e-5


def as_operator(K: Any, name: str = "K") -> KernelOperator:
    """Returns K as an operator.

    Args:
        K: one of
            a :class:`KernelOperator`, which is returned as it is;
            a tensor or numpy array ``(n, m)``, float32 or float64 and finite: it is symmetric if it is square and
            equals its transpose up to rounding;
            an operator of gatedops.gpytorch, of which the :class:`KernelOperator` that it holds is returned;
            a scipy.sparse.linalg.LinearOperator of real numbers;
            an operator of the library linear_operator (GPyTorch), or another object with ``matmul``, ``diagonal``,
            ``to_dense``, ``shape``, ``dtype`` and ``device``. Operators that are square are multiplied by two random
            vectors once, which shows whether they are symmetric. Entries that an operator does not give are computed by
            products with unit vectors.
        name: what errors call K.

    Raises:
        TypeError, ValueError: K is something else, or has infinite values or NaN.
    """
    if isinstance(K, KernelOperator):
        return K
    held = getattr(K, "kernel_operator", None)
    if isinstance(held, KernelOperator):
        return held
    if isinstance(K, (Tensor, np.ndarray)):
        return DenseOperator(as_tensor(K, name), name)
    if all(hasattr(K, attribute) for attribute in ("matmat", "rmatmat", "shape", "dtype")):
        return ProductOperator(*_of_scipy(K, name), name=name)
    if all(hasattr(K, attribute) for attribute in ("matmul", "diagonal", "to_dense", "shape", "dtype", "device")):
        return ProductOperator(*_of_linear_operator(K, name), diagonal=K.diagonal, name=name)
    raise TypeError(
        f"{name}: got {type(K).__name__}, needs an NPKOperator, a tensor, a numpy array, or an operator of scipy (such"
        " as scipy.sparse.linalg.aslinearoperator makes of a sparse matrix) or linear_operator"
    )


class DenseOperator(KernelOperator):
    """A stored matrix as an operator.

    Args:
        matrix: ``(n, m)``, float32 or float64, finite.
        name: what errors call it.
    """

    def __init__(self, matrix: Tensor, name: str = "K") -> None:
        require_dtype(matrix.dtype, name, _DTYPES)
        _require_two(matrix.shape, name)
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


class ProductOperator(KernelOperator):
    """An operator of which only products are known.

    Args:
        times: multiplies float64 vectors ``(m, c)``.
        times_transposed: multiplies float64 vectors ``(n, c)`` by the transposed operator.
        shape, dtype, device: of the operator.
        diagonal: returns the diagonal; None: it is computed by products.
        name: what errors call the operator.
    """

    def __init__(
        self,
        times: Callable[[Tensor], Tensor],
        times_transposed: Callable[[Tensor], Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        diagonal: Callable[[], Tensor] | None = None,
        name: str = "K",
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self._times_whole, self._times_transposed, self._diagonal, self._name = times, times_transposed, diagonal, name
        self.symmetric = self._agrees_with_transpose()

    def product(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            product = self._times_whole(v.detach().to(torch.float64))
        if tuple(product.shape) != (self.shape[0], v.shape[1]):
            raise ValueError(
                f"{self._name}: its product with {tuple(v.shape)} has shape {tuple(product.shape)}, needs"
                f" {(self.shape[0], v.shape[1])}"
            )
        return product.to(torch.float64)

    def diag(self) -> Tensor:
        require_symmetric(self)
        if self._diagonal is not None:
            return self._diagonal().detach().to(self.dtype)
        places = torch.arange(self.shape[0], device=self.device)
        return torch.cat([self._some_columns(some)[some].diagonal() for some in places.split(_UNITS)])

    def block(self, rows: Index, cols: Index) -> Tensor:
        index = torch.arange(self.shape[1], device=self.device)[cols]
        parts = [self._some_columns(some)[rows] for some in index.split(_UNITS)]
        return torch.cat(parts, 1)

    @property
    def T(self) -> KernelOperator:
        if self.symmetric:
            return self
        other = object.__new__(ProductOperator)
        swapped = {"_times_whole": self._times_transposed, "_times_transposed": self._times_whole}
        other.__dict__.update(self.__dict__, shape=(self.shape[1], self.shape[0]), **swapped)
        return other

    def _some_columns(self, index: Tensor) -> Tensor:
        units = torch.zeros((self.shape[1], len(index)), dtype=torch.float64, device=self.device)
        units[index, torch.arange(len(index), device=self.device)] = 1.0
        return self.product(units).to(self.dtype)

    def _agrees_with_transpose(self) -> bool:
        """Whether the operator multiplies like its transpose; ValueError if a product is infinite or NaN."""
        n, m = self.shape
        made = torch.Generator().manual_seed(0)
        u = torch.randn((m, 2), generator=made, dtype=torch.float64, device="cpu").to(self.device)
        product = self.product(u)
        if not bool(torch.isfinite(product).all()):
            raise ValueError(f"{self._name}: its product has infinite values or NaN, needs finite numbers")
        if n != m:
            return False
        crossed = u.mT @ product
        off = (crossed[0, 1] - crossed[1, 0]).abs()
        return bool(off <= _AGREED * product.norm(dim=0).max() * u.norm(dim=0).max())


# What ProductOperator takes: the products, the shape, the dtype and the device.
_Products = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], tuple[int, int], torch.dtype, torch.device]


def _of_scipy(K: Any, name: str) -> _Products:
    if np.dtype(K.dtype).kind not in "fiub":
        raise TypeError(f"{name}: got an operator of {K.dtype}, needs real numbers")
    dtype = torch.float32 if K.dtype == np.float32 else torch.float64

    def times(v: Tensor) -> Tensor:
        return torch.as_tensor(np.asarray(K.matmat(v.numpy())), device="cpu")

    def times_transposed(v: Tensor) -> Tensor:
        try:
            product = K.rmatmat(v.numpy())
        # scipy raises one or the other, without a word about it, if no function for it was given.
        except (NotImplementedError, TypeError) as error:
            raise TypeError(f"{name}: cannot multiply by its transpose: give the operator of scipy rmatvec") from error
        return torch.as_tensor(np.asarray(product), device="cpu")

    return times, times_transposed, _require_two(K.shape, name), dtype, torch.device("cpu")


def _of_linear_operator(K: Any, name: str) -> _Products:
    require_dtype(K.dtype, name, _DTYPES)
    device = torch.device(K.device)
    require_float64(device, name)

    def times(operator: Any, v: Tensor) -> Tensor:
        high = v.to(K.dtype)
        product = operator.matmul(high).to(torch.float64)
        # If the operator takes float32, two numbers together keep 48 digits of each of v.
        return product if K.dtype == v.dtype else product + operator.matmul((v - high).to(K.dtype))

    def transposed(v: Tensor) -> Tensor:
        return times(K.transpose(-1, -2), v)

    return lambda v: times(K, v), transposed, _require_two(K.shape, name), K.dtype, device


def _require_two(shape: Any, name: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"{name}: got shape {tuple(shape)}, needs a matrix (n, m)")
    return int(shape[0]), int(shape[1])


def _is_symmetric(matrix: Tensor) -> bool:
    """Whether a matrix equals its transpose, up to a few rounding errors of its largest entry."""
    n, m = matrix.shape
    if n != m:
        return False
    off = largest = 0.0
    for i in range(0, n, _ROWS):
        for j in range(0, i + 1, _ROWS):
            block = matrix[i : i + _ROWS, j : j + _ROWS]
            off = max(off, float((block - matrix[j : j + _ROWS, i : i + _ROWS].mT).abs().max()))
            largest = max(largest, float(block.abs().max()))
    return off <= _ROUNDINGS * torch.finfo(matrix.dtype).eps * largest
