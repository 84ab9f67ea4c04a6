"""Computes how much of their active sub-network inputs share, within classes and across (docs/math.md, section 12)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_float64
from gatedops.ops.gate_counts import on_per_input
from gatedops.ops.gram import inverse_roots, npk_gram, npk_matvec
from gatedops.ops.gram_range import passes_of
from gatedops.stats.checks import labels_of, require_gates
from gatedops.tables import ShownAsTable, Table, counted, decimal

# If the kernel takes several passes, this many of its rows are computed at a time.
_ROWS = 64


@dataclass(frozen=True, eq=False, repr=False)
class LayerOverlap(ShownAsTable):
    """Mean normalised overlaps of pairs of inputs, in one layer or in the whole net; each is from 0 to 1.

    Args:
        name: the name of the layer; "net" for the product over layers.
        per_class: float64 ``(C, C)``, the mean over the pairs with one input in class a and the other in b. An input is
            not paired with itself, so the diagonal has NaN for a class of one input.
        within: the mean over all pairs of one class.
        across: the mean over all pairs of two classes.
    """

    name: str
    per_class: Tensor
    within: float
    across: float

    def table(self) -> Table:
        """The numbers in a row."""
        return _table(f"LayerOverlap of {counted(len(self.per_class), 'class', 'classes')}", [self])


@dataclass(frozen=True, eq=False, repr=False)
class ClassOverlap(ShownAsTable):
    """Mean normalised overlaps between classes: in each layer, and in the whole net. classes has their labels,
    sorted."""

    classes: tuple[int, ...]
    layers: tuple[LayerOverlap, ...]
    net: LayerOverlap

    def table(self) -> Table:
        """A row of numbers for every layer and for the net."""
        title = f"ClassOverlap of {counted(len(self.classes), 'class', 'classes')}"
        return _table(title, [*self.layers, self.net])


def _table(title: str, parts: Sequence[LayerOverlap]) -> Table:
    rows = tuple((part.name, decimal(part.within), decimal(part.across)) for part in parts)
    return Table(title, ("layer", "within classes", "across"), rows)


def class_overlap(bits: GateBits, labels: Tensor | Sequence[int]) -> ClassOverlap:
    """Computes the mean normalised overlap within and across classes (docs/math.md, section 12).

    In a layer the overlap of two inputs is the cosine of their gates, ``c_l(s, s') / sqrt(c_l(s, s) c_l(s', s'))``. In
    the whole net it is the product over layers, ``npk_gram(None, bits, normalize=True)``. If all gates of a layer are
    off for an input, its overlap with every input is 0. :func:`gatedops.npk_matvec` goes over the pairs once for each
    layer and once for the net; the memory is that of ``(n, C)`` float64 numbers.

    Args:
        bits: gates of n inputs.
        labels: n integers.

    Raises:
        TypeError, ValueError: bits is not a GateBits, has no inputs, or lies on a device without float64; labels are
            not n integers, or have fewer than two classes, or no class with two inputs.
    """
    require_gates(bits)
    require_float64(bits.device, "bits")
    classes, index = torch.unique(labels_of(labels, bits.n), return_inverse=True)
    members = one_hot(index).to(bits.device, torch.float64)
    layers = (_overlap(layer.name, bits.select_layers([place]), members) for place, layer in enumerate(bits.layers))
    net = _overlap("net", bits, members)
    return ClassOverlap(tuple(classes.tolist()), tuple(layers), net)


def _overlap(name: str, bits: GateBits, members: Tensor) -> LayerOverlap:
    """The means over pairs of the normalized kernel of all layers of bits; members ``(n, C)`` are 0 or 1."""
    sums = _class_sums(bits, members)
    sums = (sums + sums.T) / 2
    with_itself = members.T @ (on_per_input(bits) > 0).all(0).double()
    sizes = members.sum(0)
    sums -= with_itself.diag()
    pairs = sizes.outer(sizes) - sizes.diag()
    own, own_pairs = sums.trace(), pairs.trace()
    across = (sums.sum() - own) / (pairs.sum() - own_pairs)
    means = torch.where(pairs > 0, sums / pairs, torch.nan)
    return LayerOverlap(name, means, float(own / own_pairs), float(across))


def _class_sums(bits: GateBits, members: Tensor) -> Tensor:
    """The sums ``(C, C)`` of the normalized kernel over all pairs of two classes."""
    *others, last = passes_of([bits], [], torch.float64)
    if not others:
        weighted = members * inverse_roots(last.squares(bits)).unsqueeze(1)
        return weighted.T @ npk_matvec(None, bits, weighted, scale=last.scale, dtype=torch.float64)
    sums = members.new_zeros(members.shape[1], members.shape[1])
    for rows in (slice(start, start + _ROWS) for start in range(0, bits.n, _ROWS)):
        block = npk_gram(None, bits[rows], None, bits, normalize=True, dtype=torch.float64)
        sums += members[rows].T @ (block @ members)
    return sums
