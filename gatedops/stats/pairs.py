"""Computes what two inputs share of their active sub-networks, layer by layer (docs/math.md, section 12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gatedops.arrays import as_tensor
from gatedops.gate_args import rows_at
from gatedops.gatebits import GateBits
from gatedops.ops.gate_counts import on_in_both, on_per_input
from gatedops.ops.gram_args import factors_of, layout_of, require_inputs, slopes_of
from gatedops.scalars import whole_number
from gatedops.stats.checks import require_gates
from gatedops.tables import ShownAsTable, Table, decimal, percent, whole


@dataclass(frozen=True)
class LayerPair:
    """What two inputs share in one layer.

    Args:
        name: of the layer.
        width: how many gates it has.
        on_i, on_j, both: how many gates are on for i, for j, and for both.
        factor: what the layer multiplies into the kernel: its scale times `both`, or times
            ``both + a * differ + a^2 * off`` with a slope a.
        cosine: the factor over the root of those of i with itself and of j with itself, so that the scale cancels; 0 if
            that root is 0.
        share: the layer's part of the logarithm of the product of all cosines: how much of the difference between i and
            j is made here. The shares add up to 1. None if the product is not between 0 and 1.
    """

    name: str
    width: int
    on_i: int
    on_j: int
    both: int
    factor: float
    cosine: float
    share: float | None

    @property
    def only_i(self) -> int:
        """How many gates are on for i alone."""
        return self.on_i - self.both

    @property
    def only_j(self) -> int:
        """How many gates are on for j alone."""
        return self.on_j - self.both

    @property
    def agreement(self) -> float:
        """The share of the gates that are the same for i and j, on or off."""
        return 1 - (self.only_i + self.only_j) / self.width


@dataclass(frozen=True, eq=False, repr=False)
class PairExplanation(ShownAsTable):
    """What two inputs share: ``kernel = sigma * product of the layers' factors``.

    Args:
        i, j: the inputs.
        layers: one record per layer.
        sigma: the inner product of the inputs; None if x was not given, and the kernel then is Lambda.
        kernel: the entry of :func:`gatedops.npk_gram`, in float64.
        gates: the gates of i, and those of j.
    """

    i: int
    j: int
    layers: tuple[LayerPair, ...]
    sigma: float | None
    kernel: float
    gates: tuple[GateBits, GateBits]

    @property
    def cosine(self) -> float:
        """The product of the layers' cosines: the normalized Lambda."""
        return math.prod(layer.cosine for layer in self.layers)

    def shared(self, layer: str | int) -> Tensor:
        """Returns which gates of a layer are on for both inputs: int64 ``(both,)``, places in the layer's gates as one
        row. ``torch.unravel_index(places, shape)`` gives their coordinates.

        Args:
            layer: its name or number.

        Raises:
            IndexError, ValueError: there is no such layer, or more than one has this name.
        """
        (left,), (right,) = (side.select_layers([layer]).unpack() for side in self.gates)
        return (left & right).flatten().nonzero().flatten()

    def table(self) -> Table:
        """A row of numbers for every layer and for the net."""
        sigma = "" if self.sigma is None else f"Sigma {self.sigma:.6g}, "
        title = f"PairExplanation of inputs {self.i} and {self.j}: {sigma}kernel {self.kernel:.6g}"
        on_i, on_j = f"on for {self.i}", f"on for {self.j}"
        head = ("layer", "gates", on_i, on_j, "both", f"{self.i} only", f"{self.j} only", "agree %", "factor")
        rows = [
            (
                layer.name,
                *map(whole, (layer.width, layer.on_i, layer.on_j, layer.both, layer.only_i, layer.only_j)),
                percent(layer.agreement),
                f"{layer.factor:.4g}",
                decimal(layer.cosine),
                percent(layer.share),
            )
            for layer in self.layers
        ]
        factors = math.prod(layer.factor for layer in self.layers)
        net = ("net", *[""] * 7, f"{factors:.4g}", decimal(self.cosine), "")
        return Table(title, (*head, "cosine", "share %"), (*rows, net))


def explain_pair(
    bits: GateBits,
    i: int,
    j: int,
    y_bits: GateBits | None = None,
    *,
    x: Any = None,
    y: Any = None,
    scale: str | Sequence[float] = "width",
    slope: float | Sequence[float] = 0.0,
) -> PairExplanation:
    """Returns what two inputs share in each layer, and how that makes their entry of the kernel.

    Args:
        bits: gates of n inputs.
        i: a row of bits.
        j: a row of y_bits if they are given, or another row of bits.
        y_bits, x, y, scale, slope: as in :func:`gatedops.npk_gram`.

    Raises:
        TypeError, ValueError: as in npk_gram, or i or j is not a whole number. IndexError: there is no such row.
    """
    x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
    require_gates(bits)
    layout_of(bits, y_bits)
    slopes = slopes_of(slope, bits, torch.float64)
    factors = factors_of(scale, bits, torch.float64, slopes)
    require_inputs(x, bits, y, y_bits)
    at_i, at_j = _row(i, bits, "i"), _row(j, bits if y_bits is None else y_bits, "j")
    left, right = bits[at_i], (bits if y_bits is None else y_bits)[at_j]
    sigma = None if x is None else _inner_product(x[at_i], (x if y is None else y)[at_j])
    layers = _layers_of(left, right, factors, slopes)
    product = math.prod((layer.factor for layer in layers), start=1.0)
    kernel = product if sigma is None else sigma * product
    return PairExplanation(at_i.start, at_j.start, layers, sigma, kernel, (left, right))


def _layers_of(
    left: GateBits, right: GateBits, factors: Sequence[float], slopes: Sequence[float]
) -> tuple[LayerPair, ...]:
    """Returns what two inputs share in each layer. An empty list of slopes stands for zeros."""
    counts = [found[:, 0].tolist() for found in (on_per_input(left), on_per_input(right), on_in_both(left, right))]
    made = []
    for layer, scale, a, on_i, on_j, both in zip(
        left.layers, factors, slopes or [0.0] * len(factors), *counts, strict=True
    ):
        inner, own_i, own_j = (
            _inner(*three, layer.width, a) for three in ((on_i, on_j, both), (on_i,) * 3, (on_j,) * 3)
        )
        root = math.sqrt(own_i * own_j)
        # Rounding could make it larger than 1.
        cosine = min(inner / root, 1.0) if root else 0.0
        made.append(LayerPair(layer.name, layer.width, on_i, on_j, both, scale * inner, cosine, None))
    cosines = [layer.cosine for layer in made]
    if min(cosines) <= 0 or min(cosines) == 1:
        return tuple(made)
    logs = [math.log(cosine) for cosine in cosines]
    return tuple(replace(layer, share=log / sum(logs)) for layer, log in zip(made, logs, strict=True))


def _inner(on_i: int, on_j: int, both: int, width: int, a: float) -> float:
    """Returns the inner product of the slopes that two inputs have in a layer (docs/math.md, section 2), which is the
    number of gates that are on for both if the slope a of gates that are off is 0."""
    differ = on_i + on_j - 2 * both
    return both + (a * differ + a * a * (width - both - differ)) if a else both


def _inner_product(one: Tensor, other: Tensor) -> float:
    # On the CPU, because not every device has float64.
    return float((one.detach().cpu().double() * other.detach().cpu().double()).sum())


def _row(given: Any, bits: GateBits, name: str) -> slice:
    """Returns a row as a slice.

    Raises:
        TypeError: it is not a whole number. IndexError: there is no such row.
    """
    number = whole_number(given)
    if number is None:
        raise TypeError(f"{name}: got {given!r}, needs the number of an input")
    row = rows_at(number, bits.n, bits.device, name)
    if not isinstance(row, slice):
        raise RuntimeError("rows_at makes a slice of a number")
    return row
