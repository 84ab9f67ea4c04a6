"""The kernel of hard gates as one Gram of the op, or, if many layers are normalized, as a product of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.operators.sigma import Sigma
from gatedops.operators.tiles import Index
from gatedops.ops.gram import inverse_roots
from gatedops.ops.gram_args import layout_of, with_widths
from gatedops.ops.gram_derivatives import gram_op, matvec_op
from gatedops.ops.gram_product import kernel_product
from gatedops.ops.gram_range import passes_of, sign_of, squared_norms


@dataclass(frozen=True)
class Side:
    """The inputs of the rows or of the columns, their gates, and what K is multiplied by there (float64 ``(n,)``)."""

    x: Tensor | None
    bits: GateBits
    root: Tensor | None

    def at(self, index: Index) -> Side:
        """Returns some of the inputs."""
        x, root = (None if values is None else values[index] for values in (self.x, self.root))
        return Side(x, replace(self.bits, words=self.bits.words[index]), root)


@dataclass(frozen=True)
class Part:
    """The Gram of some layers, with its rows and columns multiplied by the roots.

    Args:
        left, right: the sides; right is None if both are the same.
        factors, slopes: of the layers.
    """

    left: Side
    right: Side | None
    factors: list[float]
    slopes: list[float]

    @property
    def T(self) -> Part:
        return self if self.right is None else replace(self, left=self.right, right=self.left)

    def product(self, v: Tensor, dtype: torch.dtype, *, digits: bool) -> Tensor:
        """Returns the Gram times v in float64; not differentiable."""
        left, right = self.left, self.left if self.right is None else self.right
        scaled = v if right.root is None else (v * right.root[:, None]).to(v.dtype)
        y, y_bits = (None, None) if self.right is None else (right.x, right.bits)
        # Detached, because x may need a gradient, and the op would record it.
        x, y = (None if side is None else side.detach() for side in (left.x, y))
        sums = kernel_product(
            x, left.bits, scaled, y, y_bits, factors=self.factors, slopes=self.slopes, dtype=dtype, digits=digits
        )
        return sums if left.root is None else sums * left.root[:, None]

    def matvec(self, v: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the Gram times v, differentiable in the inputs, the roots and v."""
        left, right = self.left, self.left if self.right is None else self.right
        scaled = v if right.root is None else v * right.root[:, None]
        layout, sloped = self._layout(left, right)
        y, y_words = (None, None) if self.right is None else (right.x, right.bits.words)
        product = matvec_op(left.x, left.bits.words, y, y_words, scaled.to(dtype), *layout, *sloped)
        return product if left.root is None else product * left.root[:, None]

    def gram(self, rows: Index, cols: Index, dtype: torch.dtype) -> Tensor:
        """Returns some entries, differentiable in the inputs and the roots."""
        left, right = self.left.at(rows), (self.right or self.left).at(cols)
        layout, sloped = self._layout(left, right)
        same = self.right is None and isinstance(rows, slice) and isinstance(cols, slice) and rows == cols
        y, y_words, y_root = (None, None, None) if same else (right.x, right.bits.words, right.root)
        return gram_op(left.x, left.bits.words, y, y_words, left.root, y_root, *layout, dtype, *sloped)

    def diag(self, dtype: torch.dtype) -> Tensor:
        """Returns the diagonal of a symmetric Gram without roots."""
        layout, sloped = self._layout(self.left, self.left)
        first, _, count, factors = layout
        diag = torch.ops.gatedops.npk_diag(self.left.bits.words, first, count, factors, dtype, *sloped)
        return diag if self.left.x is None else squared_norms(self.left.x.detach()).to(dtype) * diag

    def _layout(self, left: Side, right: Side) -> tuple[tuple, tuple[list[float], list[int]]]:
        return (*layout_of(left.bits, right.bits), self.factors), with_widths(self.slopes, left.bits)


def parts_of_kernel(
    bits: GateBits,
    y_bits: GateBits | None,
    sigma: Sigma,
    factors: Sequence[float],
    slopes: Sequence[float],
    dtype: torch.dtype,
    *,
    normalize: bool,
) -> list[Part]:
    """Returns parts whose Grams multiply to the kernel, entry by entry: one, unless so many layers are normalized that
    their products leave the range of `dtype`.

    The roots are differentiable in the inputs.
    """
    if not normalize:
        # The square of the inputs' scale goes into the last layer.
        scaled = [*factors[:-1], factors[-1] * sigma.scale**2]
        right = None if y_bits is None else Side(sigma.y, y_bits, None)
        return [Part(Side(sigma.x, bits, None), right, scaled, list(slopes))]
    # The scale of the inputs cancels.
    sides = [bits] if y_bits is None else [bits, y_bits]
    inputs = [sigma.x, sigma.y][: len(sides)]
    norms = [squared_norms(x) for x in inputs if x is not None]
    passes = passes_of(sides, norms, dtype, slopes)
    sign = sign_of(factors)
    parts = []
    for each in passes:
        is_last = each is passes[-1]
        made = []
        for side, x, norm in zip_longest(sides, inputs if is_last else [], norms if is_last else []):
            chosen = each.of(side)
            root = inverse_roots(each.squares(chosen), norm)
            made.append(Side(x, chosen, 0.0 * root if sign == 0 and is_last else root))
        scale = [-each.scale[0], *each.scale[1:]] if sign < 0 and is_last else each.scale
        parts.append(Part(made[0], made[1] if len(made) > 1 else None, scale, each.slopes))
    return parts
