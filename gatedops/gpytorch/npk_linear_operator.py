"""The neural path kernel of packed gates as an operator of the library linear_operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from linear_operator.operators import LinearOperator
from linear_operator.utils.memoize import cached
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.gpytorch.opaque_linear_operator import OpaqueLinearOperator, product_with_one
from gatedops.gpytorch.pairs import entries_of_pairs
from gatedops.layout import GateLayer
from gatedops.operators import KernelOperator, NPKOperator
from gatedops.ops.gram import npk_diag, npk_gram


class NPKLinearOperator(LinearOperator):
    """A matrix, or a batch of matrices, of :func:`gatedops.npk_gram` for GPyTorch, which multiplies and gives entries
    without being stored. :meth:`of` makes one of an :class:`gatedops.NPKOperator`.

    It is differentiable in x and y, with the gates held fixed, and in what it multiplies. Slices are operators again,
    of some of the gates; pairs of indices give entries. Products are those of an NPKOperator, with sums in float64.

    Args:
        x: ``(..., n, d)``, float32 or float64, which is the dtype of the entries; with d = 0 the kernel is Lambda.
        words: int32 ``(..., n, W)``, the words of the gates of x (`GateBits.words`).
        y, y_words: the other side, ``(..., m, d)`` and ``(..., m, W')``. None: the matrix is that of x, symmetric.
        layers: the layers of the words (`GateBits.layers`).
        y_layers: the layers of y_words; None: the same.
        scale, slope, normalize: as in npk_gram.
        cache: whether products may store the matrix, as in :class:`gatedops.NPKOperator`.

    Raises:
        TypeError, ValueError: on the first use, as npk_gram.
    """

    def __init__(
        self,
        x: Tensor,
        words: Tensor,
        y: Tensor | None = None,
        y_words: Tensor | None = None,
        *,
        layers: tuple[GateLayer, ...],
        y_layers: tuple[GateLayer, ...] | None = None,
        scale: str | Sequence[float] = "width",
        slope: float | Sequence[float] = 0.0,
        normalize: bool = False,
        cache: str | int = "none",
    ) -> None:
        sides = (x, words) if y is None or y_words is None else (x, words, y, y_words)
        super().__init__(
            *sides, layers=layers, y_layers=y_layers, scale=scale, slope=slope, normalize=normalize, cache=cache
        )
        self._layers = (layers, layers if y_layers is None else y_layers)
        # Operators for the products, by whether x needs a gradient: then x is used as it is.
        self._made: dict[bool, list[NPKOperator]] = {}

    @staticmethod
    def of(operator: KernelOperator) -> LinearOperator:
        """Returns an operator of this package as one of linear_operator: an NPKOperator as an NPKLinearOperator, which
        is differentiable in its inputs; any other as an :class:`OpaqueLinearOperator`, which is not.

        Raises:
            TypeError: it is not a KernelOperator.
        """
        if not isinstance(operator, NPKOperator):
            return OpaqueLinearOperator(operator)
        given = operator.arguments()
        bits, y_bits, dtype = given.pop("bits"), given.pop("y_bits"), given.pop("dtype")
        x, y = given.pop("x"), given.pop("y")
        left = (_inputs(x, bits, dtype), bits.words)
        right = () if y_bits is None else (_inputs(y, y_bits, dtype), y_bits.words)
        y_layers = None if y_bits is None else y_bits.layers
        made = NPKLinearOperator(*left, *right, layers=bits.layers, y_layers=y_layers, **given)
        made._made[made.requires_grad] = [operator]
        return made

    @property
    def kernel_operator(self) -> NPKOperator:
        """The same matrix as an operator of this package, for its solvers. ValueError if this is a batch."""
        if self.batch_shape:
            raise ValueError(f"K: is a batch of matrices {tuple(self.shape)}, needs one matrix: select it, K[0]")
        return self._operators()[0]

    def to(self, *args: Any, **kwargs: Any) -> NPKLinearOperator:
        """Returns the operator on another device, or with inputs and entries of another dtype."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return self._with(lambda side: side.to(device=device, dtype=dtype if side.is_floating_point() else None))

    def _with(self, change: Callable[[Tensor], Tensor]) -> NPKLinearOperator:
        """Returns the operator with a change of the inputs and words of both sides."""
        return NPKLinearOperator(*(change(side) for side in self._args), **self._kwargs)

    def _size(self) -> torch.Size:
        words = self._args[1::2]
        return torch.Size((*words[0].shape[:-1], words[-1].shape[-2]))

    def _transpose_nonbatch(self) -> NPKLinearOperator:
        if len(self._args) == 2:
            return self
        turned = {"layers": self._layers[1], "y_layers": self._layers[0]}
        return NPKLinearOperator(*self._args[2:], *self._args[:2], **self._kwargs | turned)

    def _getitem(self, row_index: Any, col_index: Any, *batch_indices: Any) -> NPKLinearOperator:
        sides = [(self._args[:2], row_index), (self._args[-2:], col_index)]
        if len(self._args) == 2 and isinstance(row_index, slice) and row_index == col_index:
            sides = sides[:1]
        selected = [side[(*batch_indices, index, slice(None))] for pair, index in sides for side in pair]
        return NPKLinearOperator(*selected, **self._kwargs)

    def _get_indices(self, row_index: Tensor, col_index: Tensor, *batch_indices: Tensor) -> Tensor:
        rows, cols, *batch = torch.broadcast_tensors(row_index, col_index, *batch_indices)
        rows, cols, shape = rows.reshape(-1), cols.reshape(-1), rows.shape
        numbers = torch.zeros_like(rows)
        for index, size in zip(batch, self.batch_shape, strict=True):
            numbers = numbers * size + index.reshape(-1)
        found = torch.zeros(len(rows), dtype=self.dtype, device=self.device)
        matrices = self._matrices()
        for number in numbers.unique().tolist():
            at = (numbers == number).nonzero().flatten()
            entries = entries_of_pairs(matrices[number].block, rows[at], cols[at])
            found = found.index_put((at,), entries)
        return self._recorded(found.reshape(shape))

    def _diagonal(self) -> Tensor:
        parts = [matrix.diagonal() for matrix in self._matrices()]
        return self._recorded(_stacked(parts, (*self.batch_shape, self.shape[-1]), self._args[0]))

    @cached
    def to_dense(self) -> Tensor:
        parts = [matrix.block() for matrix in self._matrices()]
        return self._recorded(_stacked(parts, self.shape, self._args[0]))

    def _matmul(self, rhs: Tensor) -> Tensor:
        operators = self._operators()
        if not self.batch_shape:
            return self._recorded(product_with_one(operators[0], rhs))
        columns = rhs.unsqueeze(-1) if rhs.dim() == 1 else rhs
        batch = torch.broadcast_shapes(self.batch_shape, columns.shape[:-2])
        numbers = torch.arange(len(operators)).reshape(self.batch_shape).expand(batch).flatten().tolist()
        columns = columns.expand(*batch, *columns.shape[-2:]).reshape(-1, *columns.shape[-2:])
        products = [operators[number] @ one for number, one in zip(numbers, columns, strict=True)]
        product = _stacked(products, (*batch, self.shape[-2], columns.shape[-1]), rhs)
        return self._recorded(product.squeeze(-1) if rhs.dim() == 1 else product)

    def _recorded(self, result: Tensor) -> Tensor:
        """Returns a result that has a gradient if x needs one. Lambda does not depend on x, so autograd would not find
        it; its gradient is zero."""
        if self._args[0].shape[-1] or not self.requires_grad:
            return result
        return result + sum(x.sum() for x in self._args[::2])

    def _operators(self) -> list[NPKOperator]:
        """The matrices of the batch as operators of this package, in order."""
        if self.requires_grad not in self._made:
            cache = self._kwargs["cache"]
            self._made[self.requires_grad] = [matrix.operator(cache) for matrix in self._matrices()]
        return self._made[self.requires_grad]

    def _matrices(self) -> list[_Matrix]:
        """The matrices of the batch, in order."""
        sides = [side.reshape(self.batch_shape.numel(), *side.shape[-2:]).unbind() for side in self._args]
        options = {name: self._kwargs[name] for name in ("scale", "slope", "normalize")}
        return [_Matrix(one, self._layers, options) for one in zip(*sides, strict=True)]


class _Matrix:
    """One matrix of the batch.

    Args:
        sides: x and words, or x, words, y and y_words.
        layers: of the rows and of the columns.
        options: of npk_gram.
    """

    def __init__(
        self, sides: tuple[Tensor, ...], layers: tuple[tuple[GateLayer, ...], ...], options: dict[str, Any]
    ) -> None:
        found = zip(sides[::2], sides[1::2], layers, strict=False)
        self._sides = [(x if x.shape[1] else None, GateBits(words, own)) for x, words, own in found]
        self._options, self._dtype = options, sides[0].dtype

    def operator(self, cache: str | int) -> NPKOperator:
        """Returns it as an operator of this package."""
        (x, bits), *other = self._sides
        y, y_bits = other[0] if other else (None, None)
        return NPKOperator(bits, x, y_bits, y, dtype=self._dtype, cache=cache, **self._options)

    def block(self, rows: Tensor | None = None, cols: Tensor | None = None) -> Tensor:
        """Returns the entries of some rows and columns, or of all, differentiable in x and y."""
        sides = list(self._sides)
        if rows is not None and cols is not None:
            sides = [_at(sides[0], rows), _at(sides[-1], cols)]
        (x, bits), *other = sides
        y, y_bits = other[0] if other else (None, None)
        return npk_gram(x, bits, y, y_bits, dtype=self._dtype, **self._options)

    def diagonal(self) -> Tensor:
        """Returns the diagonal, differentiable in x and y."""
        if len(self._sides) > 1 or self._options["normalize"]:
            places = torch.arange(self._sides[0][1].n, device=self._sides[0][1].device)
            return entries_of_pairs(self.block, places, places)
        (x, bits), options = self._sides[0], {name: self._options[name] for name in ("scale", "slope")}
        return npk_diag(x, bits, dtype=self._dtype, **options)


def _at(side: tuple[Tensor | None, GateBits], index: Tensor) -> tuple[Tensor | None, GateBits]:
    x, bits = side
    return None if x is None else x[index], bits[index]


def _inputs(x: Tensor | None, bits: GateBits, dtype: torch.dtype) -> Tensor:
    return torch.empty((bits.n, 0), dtype=dtype, device=bits.device) if x is None else x.to(dtype)


def _stacked(parts: list[Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """Returns tensors as one of a shape, also if the batch is empty."""
    return torch.stack(parts).reshape(shape) if parts else like.new_empty(shape)
