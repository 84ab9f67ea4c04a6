"""Operators whose entries are computed in tiles: kernels of models, and kernels of soft gates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from gatedops.operators.base import KernelOperator, require_symmetric
from gatedops.operators.tiles import Index, Tiles
from gatedops.ops.soft_gram import soft_gram
from gatedops.path_kernels.images import Pairs

_GIB = 1 << 30
# The rows and columns of a tile of a model's kernel, and of the blocks that it is computed in.
_MODEL_EDGE, _PAIRS = 256, 128
# The rows and columns of a tile of soft gates.
_SOFT_EDGE = 1024


class TiledOperator(KernelOperator):
    """A matrix in tiles, which are computed when they are needed and kept while there is room.

    Args:
        tiles: of the matrix.
        dtype, device: of the entries.
        symmetric: whether the matrix is.
    """

    def __init__(self, tiles: Tiles, dtype: torch.dtype, device: torch.device, *, symmetric: bool) -> None:
        self.shape, self.dtype, self.device, self.symmetric = tiles.shape, dtype, device, symmetric
        self._tiles, self._is_transposed = tiles, False

    def product(self, v: Tensor) -> Tensor:
        return self._tiles.product(v)

    def diag(self) -> Tensor:
        require_symmetric(self)
        return self._tiles.diag()

    def block(self, rows: Index, cols: Index) -> Tensor:
        return self._tiles.block(rows, cols)

    @property
    def T(self) -> KernelOperator:
        if self.symmetric:
            return self
        other = copy.copy(self)
        other.shape, other._tiles = (self.shape[1], self.shape[0]), self._tiles.T
        other._is_transposed = not self._is_transposed
        return other

    def _told(self) -> list[tuple[str, str]]:
        return [("tiles", f"{self._tiles.kept / _GIB:.2f} of {self._tiles.nbytes / _GIB:.2f} GiB are stored")]


class ModelOperator(TiledOperator):
    """The kernel of a network that is not fully connected, times ``2 ** -exponent``.

    Args:
        pairs: what the kernel's program reads of the inputs; makes the blocks of the kernel.
        exponent: of the kernel.
        what: names the kernel for the bar.
        limit: the most bytes that are kept.
        progress: whether to show the bar. None: on a terminal, once a pass has taken a second.
    """

    def __init__(self, pairs: Pairs, exponent: int, what: str, limit: int, progress: bool | None) -> None:
        self.exponent, self._pairs, self._what = exponent, pairs, what
        self._limit, self._progress = limit, progress
        tiles = Tiles(
            pairs.shape,
            pairs.dtype,
            pairs.device,
            symmetric=pairs.symmetric,
            compute=self._entries,
            edge=_MODEL_EDGE,
            limit=limit,
            what=what,
            progress=progress,
        )
        super().__init__(tiles, pairs.dtype, pairs.device, symmetric=pairs.symmetric)

    def with_dtype(self, dtype: torch.dtype) -> KernelOperator:
        """Returns the operator of the same kernel with entries in another dtype; what the kernel reads of the inputs
        remains as it was rounded."""
        pairs = self._pairs.to(dtype)
        other = ModelOperator(pairs, self.exponent, self._what, self._limit, self._progress)
        return other.T if self._is_transposed else other

    def _entries(self, rows: Index, cols: Index) -> Tensor:
        same = self.symmetric and isinstance(rows, slice) and isinstance(cols, slice) and rows == cols
        left, right = _pieces(rows, self._tiles.shape[0]), _pieces(cols, self._tiles.shape[1])
        blocks: dict[tuple[int, int], Tensor] = {}
        for i, j in product(range(len(left)), range(len(right))):
            blocks[i, j] = blocks[j, i].mT if same and i > j else self._pairs.block(left[i], right[j])
        return torch.cat([torch.cat([blocks[i, j] for j in range(len(right))], 1) for i in range(len(left))])

    def _told(self) -> list[tuple[str, str]]:
        return [("kernel", self._what), ("exponent", str(self.exponent)), *super()._told()]


class SoftOperator(TiledOperator):
    """The kernel of real-valued gates.

    Args:
        left, right, widths, factors: of the op, as :func:`gatedops.ops.soft_gram.sides_of` makes them.
        limit: the most bytes that are kept.
    """

    def __init__(
        self, left: Tensor, right: Tensor | None, widths: Sequence[int], factors: Sequence[float], limit: int
    ) -> None:
        self._left, self._right, self._widths, self._factors = left, right, list(widths), list(factors)
        self._limit = limit
        tiles = Tiles(
            (len(left), len(left if right is None else right)),
            left.dtype,
            left.device,
            symmetric=right is None,
            compute=self._entries,
            edge=_SOFT_EDGE,
            limit=limit,
            what="kernel of soft gates",
        )
        super().__init__(tiles, left.dtype, left.device, symmetric=right is None)

    def with_dtype(self, dtype: torch.dtype) -> KernelOperator:
        """Returns the operator of the same kernel, of the same rounded gates, with entries in another dtype."""
        right = None if self._right is None else self._right.to(dtype)
        other = SoftOperator(self._left.to(dtype), right, self._widths, self._factors, self._limit)
        return other.T if self._is_transposed else other

    def diag(self) -> Tensor:
        require_symmetric(self)
        layers = zip(self._left.split(self._widths, 1), self._factors, strict=True)
        squares = [factor * layer.square().sum(1, dtype=torch.float64) for layer, factor in layers]
        return torch.stack(squares).prod(0).to(self.dtype)

    def _entries(self, rows: Index, cols: Index) -> Tensor:
        same = self._right is None and isinstance(rows, slice) and isinstance(cols, slice) and rows == cols
        right = self._left if self._right is None else self._right
        return soft_gram(self._left[rows], None if same else right[cols], self._widths, self._factors)

    def _told(self) -> list[tuple[str, str]]:
        return [("layers and inputs", str(self._widths)), *super()._told()]


def _pieces(index: Index, size: int) -> list[Index]:
    """Cuts rows or columns into pieces of at most _PAIRS."""
    if isinstance(index, Tensor):
        return list(index.split(_PAIRS))
    span = range(size)[index]
    pieces = [span[start : start + _PAIRS] for start in range(0, len(span), _PAIRS)] or [span]
    return [slice(piece.start, piece.stop, piece.step) for piece in pieces]
