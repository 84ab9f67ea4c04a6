"""Reads nodes of an exported graph: their arguments, and the place in the model that they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from gatedops.trace.names import activation_op, call_name

_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\n\s*(?P<code>[^\n]*)')


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by the names in its schema, defaults included."""
    found = {}
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        given = node.args[index] if index < len(node.args) else argument.default_value
        found[argument.name] = node.kwargs.get(argument.name, given)
    return found


def op_of(node: Node) -> str:
    """The function's name: "relu" for aten.relu_.default."""
    op = getattr(node.target, "__name__", str(node.target)).split(".")[0].strip("_")
    return "batch_norm" if "batch_norm" in op else op


def path_of(node: Node) -> str:
    """The path of the innermost module that makes the call; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def sources_of(node: Node) -> set[Node]:
    """The node and all nodes that it is computed from."""
    found, waiting = set[Node](), [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += current.all_input_nodes
    return found


def dependents(program: ExportedProgram) -> list[Node]:
    """The calls whose results depend on the program's input, in order; the others work on weights and constants."""
    specs = program.graph_signature.input_specs
    inputs = {spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT}
    found: dict[Node, None] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            found[node] = None
        elif node.op == "call_function" and any(source in found for source in node.all_input_nodes):
            found[node] = None
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable and isinstance(node.args[0], Node):
                # A tensor that an input is written into depends on the input.
                found[node.args[0]] = None
    return [node for node in found if node.op == "call_function"]


class Places:
    """Names the calls of a model's graph as record_gates does, by the first path of each module."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first_paths = {module: path for path, module in model.named_modules()}

    def name(self, node: Node, op: str) -> str:
        """The name of the call; not unique."""
        module = self._model.get_submodule(path_of(node))
        return call_name(self._first_paths[module], module, activation_op(op))

    def where(self, node: Node) -> str:
        """Names the call and its place: "gelu in layer1.0 (Block), net.py:34: x = F.gelu(x)"."""
        path = path_of(node)
        kind = type(self._model.get_submodule(path)).__name__
        frames = [
            m for m in _FRAME.finditer(node.meta.get("stack_trace") or "") if not m["file"].startswith((_TORCH, "<"))
        ]
        line = f", {Path(frames[-1]['file']).name}:{frames[-1]['line']}: {frames[-1]['code'].strip()}" if frames else ""
        return f"{op_of(node)} in {path or 'the model'} ({kind}){line}"
