"""What a solver asks of a kernel matrix: products with vectors, its diagonal and some of its columns."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class KernelOperator(ABC):
    """A matrix ``(n, m)`` of a kernel whose entries are computed when they are needed.

    Attributes:
        shape: ``(n, m)``.
        dtype: float32 or float64, of the entries.
        device: of the entries and of all results.
        symmetric: whether rows and columns belong to the same inputs, so that the matrix equals its transpose.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    symmetric: bool

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Returns K v, float64 ``(n, c)``, for v ``(m, c)`` in float32 or float64, with sums in float64. float32 may be
        faster. Not differentiable. The same v gives the same bits on every call."""

    @abstractmethod
    def diag(self) -> Tensor:
        """Returns the diagonal ``(n,)`` of a symmetric operator, in `dtype`."""

    @abstractmethod
    def block(self, rows: Tensor | slice, cols: Tensor | slice) -> Tensor:
        """Returns the entries of some rows and columns, ``(rows, cols)`` in `dtype`."""

    @property
    @abstractmethod
    def T(self) -> KernelOperator:
        """The transposed operator; the operator itself if it is symmetric."""

    def columns(self, index: Tensor | slice) -> Tensor:
        """Returns some columns, ``(n, k)``, in `dtype`."""
        return self.block(slice(None), index)
