"""Small kernels for the tests of solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator


def gaussian(n: int, seed: int = 0, dtype: torch.dtype = torch.float64, dimension: int = 4) -> Tensor:
    """The Gaussian kernel of n random points, with ones on its diagonal."""
    x = torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kernel = torch.exp(-0.1 * torch.cdist(x, x).square())
    return ((kernel + kernel.T) / 2).to(dtype)


def laplacian(n: int, seed: int = 0) -> Tensor:
    """The kernel exp(-0.3 |x - y|) of n random points in 10 dimensions. Few columns leave much of it out, and the same
    everywhere, as they do of a neural path kernel."""
    x = torch.randn(n, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kernel = torch.exp(-0.3 * torch.cdist(x, x))
    return (kernel + kernel.T) / 2


def random_targets(n: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(n, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact_alpha(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Solves (K + ridge mean(diag K) I) alpha = targets - mean by LU in float64."""
    kernel = kernel.double()
    system = kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=torch.float64)
    return torch.linalg.solve(system, targets.double() - targets.double().mean(0))


class WatchedKernel(KernelOperator):
    """A stored kernel that records the shapes and dtypes of the vectors that it multiplies.

    Args:
        kernel: the entries.
        twin: whether float64 entries are to be had, which are those of a float64 `kernel` before its rounding.
        dtype: of the entries.
    """

    def __init__(self, kernel: Tensor, *, twin: bool = False, dtype: torch.dtype = torch.float64) -> None:
        self.exact, self.twin = kernel, twin
        self.entries = kernel.to(dtype)
        self.shape = (len(kernel), len(kernel))
        self.dtype, self.device, self.symmetric = dtype, kernel.device, True
        self.products: list[tuple[int, torch.dtype]] = []

    def product(self, v: Tensor) -> Tensor:
        self.products.append((v.shape[1], v.dtype))
        # A product in float64 of so few points runs on one thread for each column, in one order of sums.
        return torch.stack([(self.entries.double() * column.double()).sum(1) for column in v.T], 1)

    def diag(self) -> Tensor:
        return self.entries.diagonal()

    def block(self, rows: Tensor | slice, cols: Tensor | slice) -> Tensor:
        return self.entries[rows][:, cols]

    @property
    def T(self) -> KernelOperator:
        return self

    def with_dtype(self, dtype: torch.dtype) -> KernelOperator:
        return WatchedKernel(self.exact, dtype=dtype) if self.twin else super().with_dtype(dtype)
