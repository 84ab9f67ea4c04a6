"""Follows the operations that only move numbers: reshapes, permutations, slices, padding, nearest upsampling."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from gatedops.trace.operations import REARRANGEMENTS_OF_FLOATS, RESHAPES

# Positions are moved in two halves of this many bits, because float32 holds whole numbers below 2**24 only.
_LOW_BITS = 20


class Moves:
    """Knows the nodes that only move the numbers of another node, and runs several of them in a row as one.

    Args:
        rows: the number of rows of the program's input.
        constants: gives the value of each node that no input changes, such as indices.
    """

    def __init__(self, rows: int, constants: Mapping[Node, Any]) -> None:
        self._rows = rows
        self._constants = constants
        # Maps each node to the node whose numbers it moves.
        self._sources: dict[Node, Node] = {}
        # Keeps what `positions` found for nodes that several others move.
        self._found: dict[Node, tuple[Node, Any]] = {}

    def __contains__(self, node: Any) -> bool:
        return node in self._sources

    def add(self, node: Node, source: Node) -> None:
        """Notes that `node` has only numbers of its source, and zeros."""
        self._sources[node] = source

    def positions(self, node: Node) -> tuple[Node, Tensor]:
        """The node that the numbers of a moved node come from, and int64 of the moved node's shape, rows included: each
        number's position among the numbers of all rows of that origin, counted from 1, or 0 for a zero."""
        chain = []
        while node in self._sources and node not in self._found:
            chain.append(node)
            node = self._sources[node]
        origin, numbers = self._found.get(node, (node, None))
        if numbers is None:
            shape = origin.meta["val"].shape
            numbers = torch.arange(1, math.prod(shape) + 1, device="cpu").view(shape)
        for moved in reversed(chain):
            numbers = self._moved(moved, numbers)
            if len(moved.users) > 1:
                self._found[moved] = (origin, numbers)
        return origin, numbers

    def source_of_one_input(self, origin: Node, numbers: Tensor) -> Tensor | None:
        """The positions for a single input, counted from 0, with -1 for a zero; None if numbers of one row come from
        another row, or if the rows are not the first axis."""
        if numbers.dim() == 0 or numbers.shape[0] != self._rows:
            return None
        entries = math.prod(origin.meta["val"].shape[1:])
        first = numbers[0]
        if first.numel() and int(first.max()) > entries:
            return None
        for row in range(1, self._rows):
            if not torch.equal(numbers[row], torch.where(first > 0, first + row * entries, 0)):
                return None
        return first - 1

    def _moved(self, node: Node, numbers: Any) -> Any:
        """The result of one node for these numbers."""
        target: Any = node.target
        # The program may view a tensor in another memory format, whose strides `numbers` does not have.
        if target in RESHAPES:
            return numbers.reshape(node.meta["val"].shape)
        if target is operator.getitem:
            return numbers[node.args[1]]
        args, kwargs = map_arg((node.args[1:], dict(node.kwargs)), lambda each: self._constants[each].cpu())
        if target not in REARRANGEMENTS_OF_FLOATS:
            return target(numbers, *args, **kwargs)
        # Which pixel is nearest may depend on how the dtype rounds.
        dtype = torch.float64 if node.meta["val"].dtype == torch.float64 else torch.float32
        high, low = numbers >> _LOW_BITS, numbers & ((1 << _LOW_BITS) - 1)
        high, low = (target(part.to(dtype), *args, **kwargs).long() for part in (high, low))
        return (high << _LOW_BITS) + low
