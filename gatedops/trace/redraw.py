"""Computes a weight that comes from parameters again, from random ones, to find which of its entries depend on each
other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from gatedops.devices import most_precise

# Computes a weight from the random parameters of one seed.
Draw = Callable[[int], Tensor]


class Redraw:
    """Computes constants of a graph again, with random numbers instead of parameters.

    Args:
        leaves: the nodes that are not computed again, each with its value.
        parameters: the leaves that hold parameters. If some of them are trained, the others, such as masks, keep their
            values.
    """

    def __init__(self, leaves: Mapping[Node, Any], parameters: frozenset[Node]) -> None:
        self._leaves, self._parameters = leaves, parameters

    def of(self, node: Node) -> Draw:
        """The function that draws a node, from normal random numbers, in float64 if the device has it. The parameters
        of an odd seed are the negatives of those of the seed before it. They double with every eighth seed."""
        needed = self._needed(node)
        held = [leaf for leaf in needed if leaf in self._parameters]
        trained = [leaf for leaf in held if self._leaves[leaf].requires_grad]
        drawn = trained or held

        def draw(seed: int) -> Tensor:
            found = self._computed(needed, drawn, seed, positive=False)[node]
            # Logarithms of negative numbers, for example, are not finite; then we draw positive numbers.
            if not found.isfinite().all():
                found = self._computed(needed, drawn, seed, positive=True)[node]
            return torch.as_tensor(found)

        return draw

    def _needed(self, node: Node) -> list[Node]:
        """The nodes that a node is computed from, and the node itself, in order."""
        found, waiting = set[Node](), [node]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += [] if current in self._leaves else current.all_input_nodes
        return [each for each in node.graph.nodes if each in found]

    def _computed(self, nodes: list[Node], drawn: list[Node], seed: int, *, positive: bool) -> dict[Node, Any]:
        random = torch.Generator("cpu").manual_seed(seed // 2)
        factor = (-1) ** seed * 2.0 ** (seed // 8)
        values: dict[Node, Any] = {}
        with torch.no_grad():
            for node in nodes:
                if node not in self._leaves:
                    args, kwargs = map_arg((tree_map(_precise, node.args), dict(node.kwargs)), values.__getitem__)
                    values[node] = node.target(*args, **tree_map(_precise, kwargs))  # type: ignore[operator]
                    continue
                value = self._leaves[node]
                if node in drawn:
                    numbers = torch.randn(value.shape, generator=random, dtype=torch.float64, device="cpu") * factor
                    value = (numbers.abs() if positive else numbers).to(value.device, most_precise(value.device))
                elif isinstance(value, Tensor) and value.is_floating_point():
                    value = value.to(most_precise(value.device))
                values[node] = value
        return values


def _precise(argument: Any) -> Any:
    """Replaces a floating point dtype among an operation's arguments by float64."""
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


def always_zero(draw: Draw) -> int:
    """The number of entries of a weight that are 0 for any parameters."""
    zero, seed = draw(0) == 0, 1
    while seed < 32 and zero.any():
        zero &= draw(seed) == 0
        seed += 1
    return int(zero.sum())


def tied_entries(draw: Draw) -> int:
    """The number of entries of a weight that equal another of its entries up to a constant factor: over several draws
    the ratio of the two stays the same."""
    first = draw(0).flatten()
    # Holds each entry's first value other than 0.
    reference = first.clone()
    groups = torch.zeros(len(first), dtype=torch.long, device=first.device)
    for seed in range(1, 48):
        values = draw(2 * seed).flatten()
        ratios = torch.where(reference == 0, (values != 0).to(values) * torch.inf, values / reference)
        reference = torch.where(reference == 0, values, reference)
        groups = _split(groups, ratios)
        if len(groups.unique()) == len(groups):
            return 0
    return int((groups.bincount() > 1)[groups].sum())


def _split(groups: Tensor, ratios: Tensor) -> Tensor:
    """Splits each group into groups of entries with equal ratios."""
    order = ratios.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    ratio, group = ratios[order], groups[order]
    same = (ratio[1:] == ratio[:-1]) | ((ratio[1:] - ratio[:-1]).abs() <= 1e-12 * ratio[:-1].abs())
    parted = torch.cat([groups.new_zeros(1), (~same | (group[1:] != group[:-1])).long()]).cumsum(0)
    return torch.empty_like(groups).scatter_(0, order, parted)
