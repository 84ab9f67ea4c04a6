"""Computes what the Grams are made of: the counts and Lambda of a block of rows with a block of columns (docs/math.md,
sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatedops.portable.bits import popcount, spread
from gatedops.portable.checks import require, require_layers, require_one_device, require_rows, require_words
from gatedops.portable.products import has_int8, operand, product
from gatedops.portable.tiles import tiles, write
from gatedops.portable.workspace import blocks, edge_of, pieces

# This many gates of each row are unpacked at a time: 8 MiB of int8 or 32 MiB of float32.
_GATES = 4096
# A block of rows keeps up to this many bytes of unpacked gates for the next block of columns.
_KEPT = 32 << 20


@dataclass(frozen=True)
class Slopes:
    """The slope of each layer where its gates are off, its number of gates, and how many of them are on in each row of
    both sides, int32 ``(L, n)`` and ``(L, m)``. A slope may be 0."""

    slope: Sequence[float]
    widths: Sequence[int]
    on: Tensor
    y_on: Tensor

    def weighted(self, layer: int, both: Tensor, on: Tensor, dtype: torch.dtype) -> Tensor:
        """Computes ``<gamma, gamma'>`` of pairs of rows, in the order of docs/math.md, section 3.

        Args:
            both: how many gates of the layer are on in both rows, whole numbers.
            on: how many are on in the first row plus how many in the second, int32.
        """
        slope, both = self.slope[layer], both.to(torch.int32)
        differ = both.mul(-2).add_(on)
        neither = torch.add(both, differ).neg_().add_(self.widths[layer])
        rest = differ.to(dtype).mul_(slope).add_(neither.to(dtype).mul_(slope * slope))
        return rest.add_(both.to(dtype))


@dataclass(frozen=True)
class Problem:
    """The gates of both sides. If `symmetric`, both sides are the same, and each unordered pair of rows is computed
    once. `slopes` is None if every slope is 0."""

    words: Tensor
    y_words: Tensor
    first: Sequence[int]
    y_first: Sequence[int]
    count: Sequence[int]
    symmetric: bool
    slopes: Slopes | None

    @staticmethod
    def of(
        words: Tensor,
        y_words: Tensor | None,
        first: Sequence[int],
        y_first: Sequence[int],
        count: Sequence[int],
        slope: Sequence[float] = (),
        widths: Sequence[int] = (),
    ) -> Problem:
        """Checks the arguments of an op, and makes its problem."""
        require_words(words, "words")
        require_layers(first, count, words, "first")
        if y_words is not None:
            require_words(y_words, "y_words")
            require_one_device(words, y_words)
        right = words if y_words is None else y_words
        require_layers(y_first, count, right, "y_first")
        require(len(slope) in (0, len(count)), "slope: needs one number per layer")
        require(len(widths) == len(slope), "widths: goes with slope, needs one entry per layer")
        slopes = None
        if any(slope):
            on = row_counts(words, first, count).to(torch.int32)
            y_on = on if y_words is None else row_counts(right, y_first, count).to(torch.int32)
            slopes = Slopes(slope, widths, on, y_on)
        return Problem(words, right, first, y_first, count, y_words is None, slopes)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows of both sides."""
        return self.words.shape[0], self.y_words.shape[0]

    def tiles(self) -> Iterator[Tile]:
        """Yields every tile of the Gram; for a symmetric problem only those on and above the diagonal."""
        left: tuple[slice, GateRows] | None = None
        edge = edge_of(self.words.device)
        for rows, columns in tiles(self.shape, (edge, edge), self.symmetric):
            if left is None or left[0] != rows:
                left = rows, GateRows(self.words[rows], self.first, self.count, kept=True)
            right = GateRows(self.y_words[columns], self.y_first, self.count, kept=False)
            yield Tile(rows, columns, left[1], right, self.symmetric, self.slopes)


class GateRows:
    """Some rows of one side, whose gates are unpacked into numbers when products need them."""

    def __init__(self, words: Tensor, first: Sequence[int], count: Sequence[int], *, kept: bool) -> None:
        self._words, self._first = words, first
        self._int8 = has_int8(words.device)
        size = words.shape[0] * 32 * sum(count) * (1 if self._int8 else 4)
        self._kept: dict[tuple[int, int], Tensor] | None = {} if kept and size <= _KEPT else None

    @property
    def n(self) -> int:
        return self._words.shape[0]

    def operand(self, layer: int, span: slice) -> Tensor:
        """Returns the gates of these words of a layer as a factor of a product."""
        key = (layer, span.start)
        if self._kept is not None and key in self._kept:
            return self._kept[key]
        begin = self._first[layer]
        made = operand(spread(self._words[:, begin + span.start : begin + span.stop]), self._int8)
        if self._kept is not None:
            self._kept[key] = made
        return made


@dataclass(frozen=True)
class Tile:
    """A block of rows and a block of columns of a Gram."""

    rows: slice
    columns: slice
    left: GateRows
    right: GateRows
    symmetric: bool
    slopes: Slopes | None

    @property
    def diagonal(self) -> bool:
        """Whether rows and columns are the same inputs."""
        return self.symmetric and self.rows == self.columns

    @property
    def mirrored(self) -> bool:
        """Whether the tile also stands for its mirror image below the diagonal."""
        return self.symmetric and self.rows != self.columns

    def counts(self, layer: int, words: int) -> Tensor:
        """Counts the gates in common of a layer of this many words, exactly: int32 or, below 2^24, float32."""
        total: Tensor | None = None
        for span in blocks(words, _GATES // 32):
            part = product(self.left.operand(layer, span), self.right.operand(layer, span))
            part = part[: self.left.n, : self.right.n]
            if words <= _GATES // 32:
                return part
            total = part.to(torch.int32) if total is None else total.add_(part.to(torch.int32))
        assert total is not None
        return total

    def gram(self, count: Sequence[int], scale: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Computes Lambda in the order of docs/math.md, section 3, so that every kernel gives the same bits."""
        total: Tensor | None = None
        for layer, (words, factor) in enumerate(zip(count, scale, strict=True)):
            # torch rounds a number to the dtype of the tensor that it multiplies.
            scaled = self._weighted_counts(layer, words, dtype).mul_(factor)
            total = scaled if total is None else total.mul_(scaled)
        assert total is not None
        return total

    def _weighted_counts(self, layer: int, words: int, dtype: torch.dtype) -> Tensor:
        counts, slopes = self.counts(layer, words), self.slopes
        if slopes is None or slopes.slope[layer] == 0:
            return counts.to(dtype)
        on = slopes.on[layer, self.rows, None] + slopes.y_on[layer, self.columns]
        return slopes.weighted(layer, counts, on, dtype)

    def write(self, values: Tensor, out: Tensor, *, exact: bool) -> None:
        """Puts values of this tile into the matrix `out`, bitwise symmetric if the problem is symmetric. `exact` says
        that the values are made from whole numbers alone."""
        write(values, out, self.rows, self.columns, self.symmetric, exact=exact)


def row_counts(words: Tensor, first: Sequence[int], count: Sequence[int]) -> Tensor:
    """Counts the gates that are on in each layer of each row, int64 ``(L, n)``."""
    counts = words.new_empty((len(count), words.shape[0]), dtype=torch.int64)
    for layer, (begin, size) in enumerate(zip(first, count, strict=True)):
        for rows in pieces(words.shape[0], 4 * size):
            torch.sum(popcount(words[rows, begin : begin + size]), 1, out=counts[layer, rows])
    return counts


def require_scale(scale: Sequence[float], problem: Problem) -> None:
    """Raises ValueError unless there is a factor for each layer."""
    require(len(scale) == len(problem.count), "scale: needs one factor per layer")


def require_right_factor(v: Tensor, problem: Problem, name: str) -> None:
    """Raises ValueError unless v is a matrix with a row for each column of the Gram, on the device of the gates."""
    require_rows(v, problem.shape[1], name, "c")
    require_one_device(problem.words, v)
