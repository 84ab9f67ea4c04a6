"""Turns the nodes of an exported graph into steps."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from gatedops.trace.graph import Places, arguments, op_of, sources_of
from gatedops.trace.moves import Moves
from gatedops.trace.names import Numbering
from gatedops.trace.operations import (
    ASSERTION,
    BATCH_NORM,
    FRESH,
    GATED_LINEAR,
    IDENTITIES,
    REARRANGEMENTS,
    REARRANGEMENTS_OF_FLOATS,
    RESHAPES,
)
from gatedops.trace.provenance import Made, Source, Sources, deciding, made_by
from gatedops.trace.redraw import Draw, Redraw
from gatedops.trace.remedies import mixes_signals, reason_of
from gatedops.trace.step import Flatten, Gate, Input, MaxPool, Rearrange, Squash, Step

# Errors name this remedy if a network has an operation that no rule covers.
GATES_ALONE = "npk_gram(x.flatten(1), record_gates(model, x)) gives the kernel of its gates alone, Sigma * Lambda"

aten = torch.ops.aten

Sides = tuple[int, int, int, int]
# Holds the arguments of a call by their names.
Arguments = dict[str, Any]
# Adds the step of a call: converter(builder, node, arguments).
Converter = Callable[["StepBuilder", Node, Arguments], None]
_MOVES = RESHAPES | REARRANGEMENTS | REARRANGEMENTS_OF_FLOATS


class StepBuilder:
    """Turns a program without operations in place into steps.

    Args:
        program: exported from a model called with one tensor of `rows` rows. Its first output is the one that the steps
            compute.
        places: names the calls of the program.
        converters: the function that adds the step of each operation.
        otherwise: what errors say about an operation that is not a step.
    """

    def __init__(
        self,
        program: ExportedProgram,
        places: Places,
        rows: int,
        converters: Mapping[Any, Converter],
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
        # Maps a node to an earlier node that it equals.
        self._same: dict[Node, Node] = {}
        # Maps a padded node to its source, the sides and the mode.
        self._padded: dict[Node, tuple[Node, Sides, str]] = {}
        # Holds the nodes that only move the numbers of others. They become steps when another step reads them.
        self._moves = Moves(rows, self._constants)
        # Maps a comparison with 0 to the node compared, and to whether the comparison is on where that is positive.
        self._masks: dict[Node, tuple[Node, bool]] = {}
        # Maps the index of each Squash to its node.
        self._squashes: dict[int, Node] = {}

    def steps(self) -> list[Step]:
        specs = {spec.arg.name: spec for spec in self._program.graph_signature.input_specs}
        result = self._output()
        needed = sources_of(result)
        self._require_no_attention(needed)
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, specs[node.name])
            elif node.op != "output":
                # Nodes that the output does not depend on count in the numbering of names, as in record_gates. They may
                # have operations that are no steps.
                with nullcontext() if node in needed else suppress(ValueError):
                    self._take(node)
        if self.is_constant(result):
            self._refuse_outputs()
        last = self.index(result, result)
        named = tuple(step.name for step in self._steps if isinstance(step, Gate | MaxPool))
        first = self._steps[0]
        assert isinstance(first, Input)
        self._steps[0] = replace(first, activations=named)
        return _reached(self._steps, last)

    def add(self, node: Node, kind: type[Step], *inputs: Any, **fields: Any) -> None:
        """Appends the step that gives `node`; :meth:`insert` describes the arguments."""
        index = self._index[node] = self.insert(node, kind, *inputs, shape=self.shape(node), **fields)
        if kind is Squash:
            self._squashes[index] = node

    def insert(
        self, node: Node, kind: type[Step], *inputs: Any, shape: tuple[int, ...], op: str | None = None, **fields: Any
    ) -> int:
        """Appends a step on the way to `node`, and returns its index.

        Args:
            inputs: the nodes, or the indices of the steps, whose outputs it takes.
            shape: the shape of its output for one input.
            op: the operation in its name; None: that of `node`.
        """
        unique = self._unique(node, kind, op)
        indices = tuple(source if isinstance(source, int) else self.index(source, node) for source in inputs)
        for index in indices:
            self._require_no_squash(index)
        return self._append(kind(unique, indices, shape, **fields))

    def alias(self, node: Node, source: Node) -> None:
        """Notes that `node` equals its source."""
        self._same[node] = self.resolved(source)

    def resolved(self, node: Any) -> Any:
        """The first node that equals this one; anything else stays as it is."""
        return self._same.get(node, node) if isinstance(node, Node) else node

    def pad(self, node: Node, source: Node, sides: Sides, mode: str) -> None:
        """Notes that `node` is its source with padding, which a convolution behind it can take over."""
        self._padded[node] = (source, sides, mode)
        self.move(node)

    def padding_of(self, source: Node) -> tuple[Node, Sides, str] | None:
        """If the source is padding that a convolution can take over: the node that it pads, the sides (left, right,
        top, bottom) and the mode."""
        return self._padded.get(self.resolved(source))

    def move(self, node: Node) -> None:
        """Notes that `node` has the numbers of its first argument in another shape or order."""
        source: Any = node.args[0]
        for other in node.all_input_nodes:
            if other is not source and not self.is_constant(other):
                self.refuse(node, "a choice of numbers by indices that depend on the input; choose by constant indices")
            if other is not source and self._constants[other].is_meta:
                self.refuse(node, "given indices without values, on the device meta; move the model to another device")
        if self.is_constant(source):
            self.refuse(node)
        self._moves.add(node, self.resolved(source))

    def compare(self, node: Node, q: Node, positive: bool) -> None:
        """Notes that `node` is on exactly where q is positive, or exactly where it is not. Zeros may be on either
        side."""
        self._masks[node] = (self.resolved(q), positive)

    def mask_of(self, node: Any) -> tuple[Node, bool] | None:
        """If a node is a comparison with 0: the node compared, and whether the mask is on where that is positive."""
        return self._masks.get(self.resolved(node))

    def index(self, source: Any, node: Node) -> int:
        """The index of the step whose output an argument of `node` is."""
        source = self.resolved(source)
        if source not in self._index and source in self._moves:
            self._index[source] = self._rearranged(source)
        if source not in self._index:
            self.refuse(source if source in self._masks else node)
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
        """Whether an argument is a number or a tensor that no input changes."""
        return not isinstance(value, Node) or value in self._constants

    def is_zero(self, value: Any) -> bool:
        """Whether an argument is 0, or a tensor that is 0 throughout and that no input changes."""
        if isinstance(value, Node) and value.target in (aten.zeros_like.default, aten.new_zeros.default):
            return True
        found = self._constants.get(value) if isinstance(value, Node) else value
        return bool((found == 0).all()) if isinstance(found, Tensor) and not found.is_meta else found == 0

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape of one input's part of a node's output."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        if not shape or shape[0] != self._rows:
            self.refuse(node, "moving the inputs off the first axis; keep them along the first axis of every tensor")
        return tuple(shape[1:])

    def refuse(self, node: Node, why: str = "") -> NoReturn:
        why = why or reason_of(node, self.is_constant, self._otherwise)
        raise ValueError(f"model: {self._places.where(node)} is {why}")

    def _require_no_attention(self, needed: set[Node]) -> None:
        """Refuses products of two signals first: attention moves its inputs before it multiplies them, and an error
        about that would lead nowhere."""
        inputs = {s.arg.name for s in self._program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT}
        signals = set[Node]()
        for node in self._program.graph.nodes:
            depends = any(source in signals for source in node.all_input_nodes) and node.target not in FRESH
            if depends or (node.op == "placeholder" and node.name in inputs):
                signals.add(node)
            if depends and node in needed and mixes_signals(node, signals):
                self.refuse(node)

    def _unique(self, node: Node, kind: type[Step], op: str | None = None) -> str:
        name = self._places.name(node, op or op_of(node))
        return self._numbering.setdefault(kind, Numbering()).unique(name)

    def _append(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1

    def _require_no_squash(self, index: int) -> None:
        """Refuses a step that reads a Squash, also by way of a rearrangement of its output."""
        while isinstance(self._steps[index], Rearrange | Flatten):
            index = self._steps[index].inputs[0]
        if index in self._squashes:
            node = self._squashes[index]
            self.refuse(node, f"in the middle of the network, and only one at the end is a step; {self._otherwise}")

    def _rearranged(self, node: Node) -> int:
        """The index of the step that gives a node of moved numbers: that of the original if all numbers are in its
        order and shape again, else that of a new Flatten or Rearrange."""
        origin, numbers = self._moves.positions(node)
        index, source = self.index(origin, origin), self._moves.source_of_one_input(origin, numbers)
        if source is None:
            self.refuse(
                node,
                "a change of shape or order that moves numbers between the rows of a batch; keep the inputs as the"
                " first axis, as x.flatten(1) and x.transpose(1, 2) do",
            )
        before, after = self.shape(origin), tuple(source.shape)
        in_order = torch.equal(source.flatten(), torch.arange(_count(before), device="cpu"))
        if in_order and after == before:
            return index
        if in_order and after == (_count(before),):
            return self._append(Flatten(self._unique(node, Flatten), (index,), after))
        return self._append(Rearrange(self._unique(node, Rearrange), (index,), after, source.contiguous()))

    def _placeholder(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self._index[node] = self._append(Input("input", (), self.shape(node)))
            return
        held = self._program.state_dict if spec.target in self._program.state_dict else self._program.constants
        value = self._constants[node] = self._leaves[node] = held[spec.target]
        is_parameter = spec.kind == InputKind.PARAMETER or isinstance(value, nn.Parameter)
        self._made[node] = [(value, (Source(value, is_parameter),))] if isinstance(value, Tensor) else []

    def _output(self) -> Node:
        """The node of the first tensor that the program returns."""
        names = self._program.graph_signature.user_outputs
        last = next(iter(reversed(self._program.graph.nodes)))
        found = [source for source in last.all_input_nodes if names and source.name == names[0]]
        return found[0] if found else self._refuse_outputs()

    def _refuse_outputs(self) -> NoReturn:
        names = list(self._program.graph_signature.user_outputs)
        raise ValueError(
            f"model: returns {names}, needs to return one tensor that depends on its input; wrap it in a module that"
            " returns only that tensor"
        )

    def _take(self, node: Node) -> None:
        if all(source in self._constants for source in node.all_input_nodes):
            self._evaluate(node)
        else:
            self._call(node)

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
        if target in self._converters:
            self._converters[target](self, node, arguments(node))
        elif target in _MOVES or (target is operator.getitem and source in self._moves):
            self.move(node)
        elif target in IDENTITIES:
            self.alias(node, source)
        elif _is_first_of_several(node):
            self._index[node] = self.index(source, node)
        elif target in FRESH:
            self._make(node, source)
        elif target is not ASSERTION:
            self.refuse(node)


def _is_first_of_several(node: Node) -> bool:
    """Whether a node is the main result of an operation with several results."""
    if node.target is not operator.getitem:
        return False
    source: Any
    source, index = node.args
    return source.target in (BATCH_NORM, GATED_LINEAR) and bool(index == 0)


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _reached(steps: list[Step], last: int) -> list[Step]:
    """The input and the steps that the last one depends on, with their indices among these."""
    wanted, waiting = {0}, [last]
    while waiting:
        index = waiting.pop()
        if index not in wanted:
            wanted.add(index)
            waiting += steps[index].inputs
    kept = sorted(wanted)
    places = {index: place for place, index in enumerate(kept)}
    return [replace(steps[index], inputs=tuple(places[each] for each in steps[index].inputs)) for index in kept]
