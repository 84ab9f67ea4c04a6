"""Any kernel operator of this package as one of the library linear_operator, without gradients in its inputs."""

from __future__ import annotations

from typing import Any

import torch
from linear_operator.operators import DenseLinearOperator, LinearOperator
from linear_operator.utils.memoize import cached
from torch import Tensor

from gatedops.gpytorch.pairs import entries_of_pairs
from gatedops.operators import KernelOperator


class OpaqueLinearOperator(LinearOperator):
    """A kernel of a network that is not fully connected, of soft gates, or of a matrix, for GPyTorch.

    It is differentiable in what it multiplies and in what multiplies it (an outputscale), and not in the inputs of the
    kernel. It is one matrix. Parts of it, and batches of it, such as ``unsqueeze`` and ``expand`` make, are stored.

    Args:
        operator: a :class:`gatedops.operators.KernelOperator`.
    """

    def __init__(self, operator: KernelOperator) -> None:
        if not isinstance(operator, KernelOperator):
            raise TypeError(f"operator: got {type(operator).__name__}, needs a KernelOperator, such as NPKOperator.of")
        super().__init__(operator=operator)
        self.kernel_operator = operator

    @property
    def dtype(self) -> torch.dtype:
        return self.kernel_operator.dtype

    @property
    def device(self) -> torch.device:
        return self.kernel_operator.device

    def to(self, *args: Any, **kwargs: Any) -> OpaqueLinearOperator:
        """Returns the operator in another dtype. ValueError if another device is asked for."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device != self.device:
            raise ValueError(f"device: got {device}, needs {self.device}: make the operator of inputs on {device}")
        return self if dtype is None else self.type(dtype)

    def type(self, dtype: torch.dtype) -> OpaqueLinearOperator:
        """Returns the operator in another dtype, as :meth:`gatedops.operators.KernelOperator.with_dtype`."""
        return self if dtype == self.dtype else OpaqueLinearOperator(self.kernel_operator.with_dtype(dtype))

    def _size(self) -> torch.Size:
        return torch.Size(self.kernel_operator.shape)

    def _transpose_nonbatch(self) -> OpaqueLinearOperator:
        return OpaqueLinearOperator(self.kernel_operator.T)

    def _matmul(self, rhs: Tensor) -> Tensor:
        return product_with_one(self.kernel_operator, rhs)

    def _diagonal(self) -> Tensor:
        if self.kernel_operator.symmetric:
            return self.kernel_operator.diag()
        places = torch.arange(self.shape[0], device=self.device)
        return self._get_indices(places, places)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> LinearOperator:
        if all(isinstance(index, slice) and index == slice(None) for index in (row_index, col_index)):
            return self
        return DenseLinearOperator(self.kernel_operator[row_index, col_index])

    def _get_indices(self, row_index: Tensor, col_index: Tensor, *batch_indices: Tensor) -> Tensor:
        rows, cols = torch.broadcast_tensors(row_index, col_index)
        found = entries_of_pairs(self.kernel_operator.block, rows.reshape(-1), cols.reshape(-1))
        return found.reshape(rows.shape)

    @cached
    def to_dense(self) -> Tensor:
        return self.kernel_operator.to_dense()

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        return DenseLinearOperator(self.to_dense().unsqueeze(dim))


def product_with_one(operator: KernelOperator, rhs: Tensor) -> Tensor:
    """Returns an operator ``(n, m)`` times ``(m,)``, or times batches ``(..., m, c)``, all columns at once."""
    columns = rhs.unsqueeze(1) if rhs.dim() == 1 else rhs.movedim(-2, 0)
    product = torch.as_tensor(operator @ columns.flatten(1)).reshape(operator.shape[0], *columns.shape[1:])
    return product.squeeze(1) if rhs.dim() == 1 else product.movedim(0, -2)
