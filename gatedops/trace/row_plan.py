"""Finds where the rows of a batch lie in the tensors inside a model, by a call with the rows in another order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rounding in a deep net changes values by at most about this share; two inputs differ by more. In a dtype with few
# digits, values may differ by this many of its steps instead.
_CLOSE = 1e-3
_STEPS = 8
# About this many values are compared; gates are all compared.
_COMPARED = 1 << 15
# Rounding may change this share of the gates.
_FLIPS = 0.02


@dataclass(frozen=True)
class Arrangement:
    """Where the n rows of a batch lie in a tensor.

    Args:
        kind: "axis": the rows are the axis `axis`. "blocks": the first axis holds n blocks of one length, one for each
            row (the tokens of an input one after another). "strips": the first axis holds blocks of length n, with one
            entry of each row (the first token of every input, then the second).
        axis: the axis of the rows, if kind is "axis".
    """

    kind: str
    axis: int = 0

    def fits(self, shape: tuple[int, ...], n: int) -> bool:
        """Whether a tensor of this shape can hold n rows in this way."""
        if self.kind == "axis":
            return len(shape) > self.axis and shape[self.axis] == n
        return len(shape) > 0 and shape[0] > n and shape[0] % n == 0

    def rows_first(self, values: Tensor, n: int) -> Tensor:
        """A view ``(n, ...)``. The axis of the positions in blocks and strips comes right behind n, or for images
        behind the channels."""
        if self.kind == "axis":
            return values.movedim(self.axis, 0)
        size = values.shape[0] // n
        split = values.unflatten(0, (n, size) if self.kind == "blocks" else (size, n))
        rows = split if self.kind == "blocks" else split.transpose(0, 1)
        # (n, T, C, H, W) is a volume of T images.
        return rows.movedim(1, 2) if rows.dim() == 5 else rows


FIRST = Arrangement("axis")


def arrangement_of(
    before: Tensor, after: Tensor, rows: tuple[int, int], pairs: Sequence[tuple[int, int]]
) -> Arrangement | None:
    """Finds how the rows of a batch lie in a tensor of a model's pass, from its values in another pass.

    Args:
        before, after: the tensor in the two passes.
        rows: the number of rows of each pass.
        pairs: for each input its place in the first pass and its place in the second.

    Returns:
        The first arrangement in which every pair has the same values; None if there is none.
    """
    if before.dim() != after.dim():
        return None
    places, others = (torch.tensor(side, device=before.device) for side in zip(*pairs, strict=True))
    for one in _arrangements(before.dim()):
        fits = one.fits(tuple(before.shape), rows[0]) and one.fits(tuple(after.shape), rows[1])
        if fits and is_close(one.rows_first(before, rows[0])[places], one.rows_first(after, rows[1])[others]):
            return one
    return None


def is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal up to rounding, and so are their gates."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    if a.numel() == 0:
        return True
    flips = int(((a > 0) != (b > 0)).sum())
    if flips > _FLIPS * a.numel():
        return False
    # An odd step does not stay on a few entries of an axis whose length is a power of two.
    step = (a.numel() // _COMPARED) | 1
    a, b = a.reshape(-1)[::step], b.reshape(-1)[::step]
    close = max(_CLOSE, _STEPS * torch.finfo(a.dtype).eps)
    typical = float(a.detach().abs().float().nan_to_num(0.0, 0.0, 0.0).median())
    return bool(torch.isclose(a, b, rtol=close, atol=close * typical, equal_nan=True).all())


def _arrangements(dimensions: int) -> Iterator[Arrangement]:
    yield FIRST
    for axis in range(1, dimensions):
        yield Arrangement("axis", axis)
    yield Arrangement("blocks")
    yield Arrangement("strips")
