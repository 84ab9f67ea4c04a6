"""Turns the nodes of an exported graph into steps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from gatedops.trace.graph import Places, arguments, op_of
from gatedops.trace.names import Numbering
from gatedops.trace.operations import (
    ASSERTION,
    BATCH_NORM,
    FRESH,
    GATED_LINEAR,
    IDENTITIES,
    REARRANGEMENTS,
    RESHAPES,
)
from gatedops.trace.provenance import Made, Source, Sources, deciding, made_by
from gatedops.trace.redraw import Draw, Redraw
from gatedops.trace.remedies import remedy_of
from gatedops.trace.step import Flatten, Input, Step

# Errors name this remedy if a network has an operation that no rule covers.
GATES_ALONE = "npk_gram(x.flatten(1), record_gates(model, x)) gives the kernel of its gates alone, Sigma * Lambda"
UNDERSTOOD = (
    "linear, conv2d, relu, max_pool2d, avg_pool2d, adaptive_avg_pool2d, batch_norm and dropout in evaluation mode,"
    " padding before a convolution, flatten, mean, add"
)

aten = torch.ops.aten

Sides = tuple[int, int, int, int]


class StepBuilder:
    """Turns a program without operations in place into steps.

    Args:
        program: exported from a model called with one tensor of `rows` rows.
        places: names the calls of the program.
        converters: for each operation the function that adds its step: ``converter(builder, node, arguments)``.
        otherwise: what errors say about an operation that is not a step.
    """

    def __init__(
        self,
        program: ExportedProgram,
        places: Places,
        rows: int,
        converters: Mapping[Any, Callable[[StepBuilder, Node, dict[str, Any]], None]],
        otherwise: str = GATES_ALONE,
    ) -> None:
        self._program = program
        self._places = places
        self._rows = rows
        self._converters = converters
        self._otherwise = otherwise
        self._steps: list[Step] = []
        self._numbering: dict[type[Step], Numbering] = {}
        # Maps each node that no input changes to its value.
        self._constants: dict[Node, Any] = {}
        # Maps each of these nodes to what its tensors were computed from.
        self._made: dict[Node, Made] = {}
        # Maps those of these nodes that are not computed from others to their values.
        self._leaves: dict[Node, Any] = {}
        # Maps a node to the index of the step whose output it is.
        self._index: dict[Node, int] = {}
        # Maps a padded node to its source, the sides and the mode.
        self._padded: dict[Node, tuple[Node, Sides, str]] = {}
        # Maps a node that rearranges a step's output to the node of that output, and to a tensor that gives, for each
        # number of the rearranged node, the position of the same number in that output.
        self._rearranged: dict[Node, tuple[Node, Tensor]] = {}

    def steps(self) -> list[Step]:
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
            elif node.op == "output":
                self._require_one_output(node)
            elif all(source in self._constants for source in node.all_input_nodes):
                self._evaluate(node)
            else:
                self._call(node)
        return self._steps

    def add(self, node: Node, kind: type[Step], *inputs: Any, **fields: Any) -> None:
        """Appends the step that gives `node`."""
        name = self._places.name(node, op_of(node))
        unique = self._numbering.setdefault(kind, Numbering()).unique(name)
        indices = tuple(self.index(source, node) for source in inputs)
        self._steps.append(kind(unique, indices, self.shape(node), **fields))
        self._index[node] = len(self._steps) - 1

    def alias(self, node: Node, source: Any) -> None:
        """Notes that `node` equals its source."""
        if source in self._padded:
            self._padded[node] = self._padded[source]
        else:
            self._index[node] = self.index(source, node)

    def pad(self, node: Node, source: Node, sides: Sides, mode: str) -> None:
        """Notes that `node` is its source with padding; the convolution behind it takes the padding over."""
        self._padded[node] = (source, sides, mode)

    def padding_of(self, source: Node) -> tuple[Node, Sides, str] | None:
        """If the source is padding: the node that it pads, the sides (left, right, top, bottom) and the mode."""
        return self._padded.get(source)

    def rearrange(self, node: Node, source: Node) -> None:
        """Notes that `node` has the numbers of its source in another shape or order. If they are in the original order
        again, the node is the original itself or flattens it."""
        origin, numbers = self._rearranged.get(source, (source, None))
        before = self.shape(origin)
        if numbers is None:
            numbers = torch.arange(self._rows * math.prod(before), device="cpu").view(self._rows, *before)
        moved = _moved(node, numbers)
        after, in_order = tuple(moved.shape), bool((moved.flatten().diff() == 1).all())
        if in_order and after == (self._rows, *before):
            self.alias(node, origin)
        elif in_order and after == (self._rows, math.prod(before)):
            self.add(node, Flatten, origin)
        else:
            self._rearranged[node] = (origin, moved)

    def index(self, source: Any, node: Node) -> int:
        """The index of the step whose output an argument of `node` is."""
        if source in self._padded:
            self.refuse(source, "padding that no convolution takes over; let a Conv2d layer follow right behind it")
        if source in self._rearranged:
            origin, numbers = self._rearranged[source]
            if numbers.numel() != self._rows * math.prod(self.shape(origin)):
                self.refuse(source, f"a part of its input; {self._otherwise}")
            self.refuse(
                source,
                "a change of shape or order; the only one understood is flattening all axes of an input: use"
                " x.flatten(1)",
            )
        if source not in self._index:
            self.refuse(node)
        return self._index[source]

    def constant(self, value: Node, node: Node) -> Tensor:
        """A weight of `node`, which must not depend on the input."""
        if value not in self._constants:
            self.refuse(
                node,
                f"given a weight, a bias or statistics that depend on the input, or are a number; {self._otherwise}",
            )
        return self._constants[value]

    def made_of(self, value: Any, node: Node) -> Sources:
        """The sources that a weight of `node` was computed from."""
        if value is None:
            return ()
        constant = self.constant(value, node)
        return next(deciding(sources) for tensor, sources in self._made[value] if tensor is constant)

    def drawn(self, value: Any, node: Node) -> Draw | None:
        """Computes a weight of `node` from random parameters; None if it is a parameter or a part of one, or if no
        parameter went into it."""
        sources = self.made_of(value, node)
        if not any(source.is_parameter for source in sources):
            return None
        if len(sources) == 1 and sources[0].tensor is self._constants[value] and sources[0].shows_each_once:
            return None
        held = (leaf for leaf in self._leaves if any(source.is_parameter for _, s in self._made[leaf] for source in s))
        return Redraw(self._leaves, frozenset(held)).of(value)

    def optional(self, value: Node | None, node: Node) -> Tensor | None:
        """A weight of `node` that may be None."""
        return None if value is None else self.constant(value, node)

    def is_constant(self, value: Any) -> bool:
        return not isinstance(value, Node) or value in self._constants

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape of one input's part of a node's output."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        if not shape or shape[0] != self._rows:
            self.refuse(node, "moving the inputs off the first axis; keep them along the first axis of every tensor")
        return tuple(shape[1:])

    def refuse(self, node: Node, why: str = "") -> NoReturn:
        remedy = remedy_of(node, self._is_zero, self._otherwise)
        why = why or f"none of the steps understood: {UNDERSTOOD}; {remedy}"
        raise ValueError(f"model: {self._places.where(node)} is {why}")

    def _is_zero(self, value: Any) -> bool:
        if isinstance(value, Node) and value.target in (aten.zeros_like.default, aten.new_zeros.default):
            return True
        found = self._constants.get(value) if isinstance(value, Node) else value
        return bool((found == 0).all()) if isinstance(found, Tensor) and not found.is_meta else found == 0

    def _placeholder(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self._steps.append(Input("input", (), self.shape(node)))
            self._index[node] = 0
            return
        held = self._program.state_dict if spec.target in self._program.state_dict else self._program.constants
        value = self._constants[node] = self._leaves[node] = held[spec.target]
        is_parameter = spec.kind == InputKind.PARAMETER or isinstance(value, nn.Parameter)
        self._made[node] = [(value, (Source(value, is_parameter),))] if isinstance(value, Tensor) else []

    def _require_one_output(self, node: Node) -> None:
        names = self._program.graph_signature.user_outputs
        results = [source for source in node.all_input_nodes if source.name in names]
        if len(names) != 1 or len(results) != 1 or self.is_constant(results[0]):
            raise ValueError(
                f"model: returns {list(names)}, needs to return one tensor that depends on its input; wrap it in a"
                " module that returns only that tensor"
            )
        self.index(results[0], results[0])

    def _evaluate(self, node: Node) -> None:
        """Computes the value of a node that no input changes."""
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            self.refuse(
                node,
                "random; draw the numbers once, in __init__, or call model.eval() first",
            )
        with torch.no_grad():
            args, kwargs = map_arg((node.args, node.kwargs), self._constants.__getitem__)
            value = self._constants[node] = target(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        sources = () if target in FRESH else node.all_input_nodes
        self._made[node] = made_by(results, [pair for source in sources for pair in self._made[source]])

    def _make(self, node: Node, source: Node) -> None:
        """Makes the constant of a node that takes shape, dtype and device from its source, but no numbers."""
        target: Any = node.target
        like = source.meta["val"]
        with torch.no_grad():
            args, kwargs = map_arg((node.args[1:], node.kwargs), self._constants.__getitem__)
            empty = torch.empty(like.shape, dtype=like.dtype, device=like.device)
            value = self._constants[node] = self._leaves[node] = target(empty, *args, **kwargs)
        self._made[node] = made_by([value], [])

    def _call(self, node: Node) -> None:
        target: Any = node.target
        source: Any = node.args[0] if node.args else None
        if target in RESHAPES or target in REARRANGEMENTS or (target in IDENTITIES and source in self._rearranged):
            self.rearrange(node, source)
        elif target in IDENTITIES or _is_first_of_several(node):
            self.alias(node, source)
        elif target in FRESH:
            self._make(node, source)
        elif target is ASSERTION:
            pass
        elif target in self._converters:
            self._converters[target](self, node, arguments(node))
        else:
            self.refuse(node)


def _moved(node: Node, numbers: Tensor) -> Tensor:
    """The result of a rearrangement with `numbers` as its first argument."""
    target: Any = node.target
    # The program may view a tensor in another memory format, whose strides `numbers` does not have.
    if target in RESHAPES:
        return numbers.reshape(node.meta["val"].shape)
    moved: Tensor = target(numbers, *node.args[1:], **node.kwargs)
    return moved


def _is_first_of_several(node: Node) -> bool:
    """Whether a node is the main result of an operation with several results."""
    if node.target is not operator.getitem:
        return False
    source: Any
    source, index = node.args
    return source.target in (BATCH_NORM, GATED_LINEAR) and bool(index == 0)
