"""From the nodes of an exported graph to steps."""

from __future__ import annotations

import operator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from gatedops.trace.converters import ASSERTION, BATCH_NORM, CONVERTERS, GATED_LINEAR, IDENTITIES
from gatedops.trace.graph import Places, arguments, op_of
from gatedops.trace.names import Numbering
from gatedops.trace.step import Input, Step

UNDERSTOOD = (
    "linear, conv2d, relu, max_pool2d, avg_pool2d, adaptive_avg_pool2d, batch_norm and dropout in evaluation mode,"
    " padding before a convolution, flatten, mean, add"
)

Sides = tuple[int, int, int, int]


class StepBuilder:
    """Turns a program in which nothing happens in place into steps.

    Args:
        program: exported from a model called with one tensor of `rows` rows.
        places: names of its calls.
    """

    def __init__(self, program: ExportedProgram, places: Places, rows: int) -> None:
        self._program = program
        self._places = places
        self._rows = rows
        self._steps: list[Step] = []
        self._numbering: dict[type[Step], Numbering] = {}
        self._constants: dict[Node, Any] = {}  # what no input changes
        self._index: dict[Node, int] = {}  # which step gives a node
        self._padded: dict[Node, tuple[Node, Sides, str]] = {}  # what is padded: its source, how far, the mode
        self._reshaped: dict[Node, Node] = {}  # what is on its way to another shape: its source

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
        """`node` is its source unchanged."""
        self._index[node] = self.index(source, node)

    def pad(self, node: Node, source: Node, sides: Sides, mode: str) -> None:
        """`node` is its source padded; the convolution behind it takes the padding over."""
        self._padded[node] = (source, sides, mode)

    def padding_of(self, source: Node) -> tuple[Node, Sides, str] | None:
        """What is padded, how far (left, right, top, bottom) and how, where the source is padding."""
        return self._padded.get(source)

    def reshape(self, node: Node, source: Node) -> None:
        """`node` is its source in another shape, which must be flat or its own again before a step uses it."""
        self._reshaped[node] = source

    def source_of(self, node: Node) -> Node:
        """What a node is that may be on its way to another shape."""
        return self._reshaped.get(node, node)

    def index(self, source: Any, node: Node) -> int:
        """The step that gives an argument of `node`."""
        if source in self._padded:
            self.refuse(source, "padding that no convolution takes over")
        if source in self._reshaped:
            self.refuse(source, "a change of shape; the only one understood is flattening all axes of an input")
        if source not in self._index:
            self.refuse(node)
        return self._index[source]

    def constant(self, value: Node, node: Node) -> Tensor:
        """A weight of `node`, which must not depend on the input."""
        if value not in self._constants:
            self.refuse(node, "given a weight or bias that depends on the input")
        return self._constants[value]

    def optional(self, value: Node | None, node: Node) -> Tensor | None:
        """A weight of `node` that may be None."""
        return None if value is None else self.constant(value, node)

    def is_constant(self, value: Any) -> bool:
        return not isinstance(value, Node) or value in self._constants

    def shape(self, node: Node) -> tuple[int, ...]:
        """Of one input's part of a node's output."""
        value = node.meta["val"]
        shape = (value[0] if isinstance(value, (tuple, list)) else value).shape
        if not shape or shape[0] != self._rows:
            self.refuse(node, "moving the inputs off the first axis")
        return tuple(shape[1:])

    def refuse(self, node: Node, why: str = "") -> NoReturn:
        raise ValueError(f"model: {self._places.where(node)} is {why or f'none of the steps understood: {UNDERSTOOD}'}")

    def _placeholder(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            self._steps.append(Input("input", (), self.shape(node)))
            self._index[node] = 0
        elif spec.target in self._program.state_dict:
            self._constants[node] = self._program.state_dict[spec.target]
        else:
            self._constants[node] = self._program.constants[spec.target]

    def _require_one_output(self, node: Node) -> None:
        names = self._program.graph_signature.user_outputs
        results = [source for source in node.all_input_nodes if source.name in names]
        if len(names) != 1 or len(results) != 1 or self.is_constant(results[0]):
            raise ValueError(f"model: returns {list(names)}, needs to return one tensor that depends on its input")
        self.index(results[0], results[0])

    def _evaluate(self, node: Node) -> None:
        """A node that no input changes: its value takes its place."""
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            self.refuse(node)
        with torch.no_grad():
            args, kwargs = map_arg((node.args, node.kwargs), self._constants.__getitem__)
            self._constants[node] = target(*args, **kwargs)

    def _call(self, node: Node) -> None:
        source: Any = node.args[0]
        if node.target in IDENTITIES or _is_first_of_several(node):
            self.alias(node, source)
        elif node.target is ASSERTION:
            pass
        elif node.target in CONVERTERS:
            CONVERTERS[node.target](self, node, arguments(node))
        else:
            self.refuse(node)


def _is_first_of_several(node: Node) -> bool:
    """Whether a node is the main result of an operation that has more."""
    if node.target is not operator.getitem:
        return False
    source: Any
    source, index = node.args
    return source.target in (BATCH_NORM, GATED_LINEAR) and bool(index == 0)
