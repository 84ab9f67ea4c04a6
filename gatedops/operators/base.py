"""What a solver asks of a kernel matrix: products with vectors, its diagonal and some of its columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gate_args import rows_at
from gatedops.operators.memory import require_memory
from gatedops.ops.checks import require_dtype
from gatedops.ops.differentiable import is_recorded

_DTYPES = (torch.float32, torch.float64)


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

    # numpy then leaves `array @ operator` to Python, which refuses it, instead of making an array of objects.
    __array_ufunc__ = None

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Returns K v, float64 ``(n, c)``, for v ``(m, c)`` in float32 or float64, with sums in float64. float32 may be
        faster. Not differentiable. The same v gives the same bits on every call."""

    @abstractmethod
    def diag(self) -> Tensor:
        """Returns the diagonal ``(n,)`` of a symmetric operator, in `dtype`."""

    @abstractmethod
    def block(self, rows: Tensor | slice, cols: Tensor | slice) -> Tensor:
        """Returns the entries of some rows and columns, ``(rows, cols)`` in `dtype`. Tensors are int64 indices."""

    @property
    @abstractmethod
    def T(self) -> KernelOperator:
        """The transposed operator; the operator itself if it is symmetric."""

    def with_dtype(self, dtype: torch.dtype) -> KernelOperator:
        """Returns the operator of the same kernel with entries in another dtype.

        Raises:
            NotImplementedError: the entries exist in the dtype of this operator alone.
        """
        raise NotImplementedError(f"the entries of {type(self).__name__} exist in {self.dtype} alone")

    def columns(self, index: Any) -> Tensor:
        """Returns some columns, ``(n, k)``, in `dtype`, for an index as in ``op[:, index]``. An int gives one column,
        ``(n, 1)``.

        Raises:
            IndexError, TypeError, ValueError: as ``op[:, index]``.
        """
        at = self._places(index, 1, "index")
        self._require_memory(self.shape[0], _count(at, self.shape[1]), "index: the columns")
        return self.block(slice(None), at)

    def to_dense(self) -> Tensor:
        """Returns all entries, ``(n, m)`` in `dtype`. ValueError if they do not fit into memory."""
        self._require_memory(*self.shape, "to_dense: the matrix")
        return self.block(slice(None), slice(None))

    def as_scipy(self) -> Any:
        """Returns the same operator as a scipy.sparse.linalg.LinearOperator, with products in float64.
        ModuleNotFoundError if scipy is missing."""
        try:
            from scipy.sparse.linalg import LinearOperator
        except ModuleNotFoundError:
            raise ModuleNotFoundError("as_scipy: scipy is not installed: pip install scipy") from None

        def times(operator: KernelOperator, v: Any) -> np.ndarray:
            if np.iscomplexobj(v):
                raise TypeError(f"v: got {v.dtype}, needs real numbers: multiply v.real and v.imag")
            columns = torch.as_tensor(np.ascontiguousarray(v, dtype=np.float64), device=self.device)
            product = operator.product(columns if v.ndim == 2 else columns[:, None])
            return product.reshape(operator.shape[0], *v.shape[1:]).cpu().numpy()

        return LinearOperator(
            self.shape,
            matvec=lambda v: times(self, v),
            matmat=lambda v: times(self, v),
            rmatvec=lambda v: times(self.T, v),
            rmatmat=lambda v: times(self.T, v),
            dtype=np.float64,
        )

    def __matmul__(self, v: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Returns K v, with sums in float64, in the dtype of v, as a tensor or as a numpy array, whichever v is.

        Args:
            v: ``(m,)`` or ``(m, c)``, float32 or float64. The result is differentiable in v, to any order.

        Raises:
            TypeError, ValueError: v has another form; raised before any work.
        """
        values = as_tensor(v, "v")
        require_dtype(values.dtype, "v", _DTYPES)
        if values.dim() not in (1, 2) or values.shape[0] != self.shape[1]:
            raise ValueError(
                f"v: got shape {tuple(values.shape)}, needs ({self.shape[1]},) or ({self.shape[1]}, c): one row per"
                " column of the operator"
            )
        if values.device != self.device:
            raise ValueError(f"v: is on {values.device}, the operator on {self.device}; use .to({str(self.device)!r})")
        columns = values.unsqueeze(1) if values.dim() == 1 else values
        result = self._times(columns).to(values.dtype)
        result = result.squeeze(1) if values.dim() == 1 else result
        return result if isinstance(v, Tensor) else result.numpy()

    def __getitem__(self, index: Any) -> Tensor:
        """Returns entries in `dtype`: ``op[rows, cols]``, or ``op[rows]`` with all columns.

        Each index is an int (which drops the axis), a slice, or a list, an array or a tensor of ints or bools. Lists
        select rows and columns independently: two lists of lengths a and b give ``(a, b)``.

        Raises:
            IndexError: an index past the end, or a mask of another length. TypeError, ValueError: not such an index, or
            the entries do not fit into memory.
        """
        pair = index if isinstance(index, tuple) else (index, slice(None))
        if len(pair) != 2:
            raise IndexError(f"index: got {len(pair)} indices, needs one for the rows and one for the columns")
        found, dropped, sizes = [], [], []
        for axis, (one, name) in enumerate(zip(pair, ("rows", "cols"), strict=True)):
            found.append(self._places(one, axis, name))
            sizes.append(_count(found[-1], self.shape[axis]))
            dropped.append(not isinstance(one, (slice, list, range)) and np.ndim(one) == 0 and one is not Ellipsis)
        self._require_memory(sizes[0], sizes[1], "index: the entries")
        entries = self.block(found[0], found[1])
        for axis in (1, 0):
            entries = entries.squeeze(axis) if dropped[axis] else entries
        return entries

    def _places(self, index: Any, axis: int, name: str) -> Tensor | slice:
        """Returns the rows (axis 0) or columns (axis 1) that an index selects, as a slice or as int64 indices."""
        at = rows_at(index, self.shape[axis], self.device, name, holder="the operator is", hint="")
        if isinstance(at, Tensor):
            at = at.to(self.device)
            at = at.nonzero().flatten() if at.dtype == torch.bool else at
            outside = (at < -self.shape[axis]) | (at >= self.shape[axis])
            if bool(outside.any()):
                raise IndexError(f"{name}: index {int(at[outside][0])} is out of range for {self.shape[axis]} inputs")
        return at

    def __repr__(self) -> str:
        n, m = self.shape
        kind = f"{'symmetric ' if self.symmetric else ''}{str(self.dtype).removeprefix('torch.')} on {self.device}"
        told = "".join(f"; {name}: {text}" for name, text in self._told())
        return f"{type(self).__name__}({n:,} x {m:,} {kind}{told})"

    def _told(self) -> list[tuple[str, str]]:
        """Returns names and texts that the representation adds to the shape."""
        return []

    def _times(self, v: Tensor) -> Tensor:
        """Returns K v for v ``(m, c)``, differentiable in v."""
        return _Product.apply(self, v) if is_recorded(v) else self.product(v)

    def _require_memory(self, rows: int, cols: int, what: str) -> None:
        require_memory(rows * cols * self.dtype.itemsize, f"{what} ({rows:,} x {cols:,})", self.device)


def _count(index: Tensor | slice, size: int) -> int:
    """Returns how many of `size` rows or columns an index selects."""
    return len(range(*index.indices(size))) if isinstance(index, slice) else len(index)


def require_symmetric(operator: KernelOperator) -> None:
    """Raises ValueError, which names diag, unless the operator is symmetric."""
    if not operator.symmetric:
        n, m = operator.shape
        raise ValueError(f"diag: the operator {n:,} x {m:,} has other columns than rows; it needs one set of inputs")


class _Product(torch.autograd.Function):
    """K v with its derivatives in v."""

    @staticmethod
    def forward(operator: KernelOperator, v: Tensor) -> Tensor:
        return operator.product(v).to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.operator = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, _Product.apply(ctx.operator.T, grad)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor) -> Tensor:
        return _Product.apply(ctx.operator, tangent)
