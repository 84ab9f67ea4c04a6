"""Makes the calls of fuse_relu: those that are traced, and those whose outputs are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from gatedops.trace.calling import first_line, naming_inputs
from gatedops.trace.checks import in_mode
from gatedops.trace.example import example_of
from gatedops.trace.fuse_trace import Trace, trace_of
from gatedops.trace.state import preserved

# Batch norm does not take a single row in training mode.
_ROWS = 2


class ExampleCalls:
    """Calls a model with an example: in evaluation mode, and in training mode if it takes the example there.

    Args:
        model: the model; each call leaves it as it was.
        example: an input, a tuple of inputs, or a dict of keyword inputs; None: an example is looked for.

    Raises:
        TypeError, ValueError: the example has another form, or none is found.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model = model
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        if example is None:
            self._args = (_random_example(model),)
        elif isinstance(example, Tensor):
            self._args = (example,)
        elif isinstance(example, tuple | list):
            self._args = tuple(example)
        elif isinstance(example, Mapping):
            self._kwargs = dict(example)
        else:
            given = type(example).__name__
            raise TypeError(f"example: got {given}, needs a tensor, a tuple of inputs or a dict of keyword inputs")
        # Maps the mode (True: training) to the outputs of the traced call.
        self._results: dict[bool, list[Any]] = {}

    def traced(self) -> Trace:
        """What was seen in both modes. Errors that the model raises in evaluation mode go through."""
        with naming_inputs("example", (self._args, self._kwargs), self._model):
            trace, self._results[False] = self._call(training=False)
        try:
            also, self._results[True] = self._call(training=True)
        # In training mode many models need more: labels, or more rows.
        except Exception:
            return trace
        trace.add(also)
        return trace

    def why_not_same(self) -> str:
        """How the changed model differs from the model of the traced calls; "" if it does not."""
        for training, expected in self._results.items():
            try:
                _, found = self._call(training)
            except Exception as error:
                return f"fused, the model fails on the example ({first_line(error)})"
            if len(found) != len(expected) or not all(map(_same, found, expected)):
                return "fused, the model gives other outputs for the example"
        return ""

    def _call(self, training: bool) -> tuple[Trace, list[Any]]:
        """Calls the model and traces the call, also if only outputs are needed: some of torch's layers compute in
        another way while a mode is on."""
        with preserved(self._model), in_mode(self._model, training):
            # Some models write into their inputs, so each call gets copies.
            args, kwargs = pytree.tree_map(_own, (self._args, self._kwargs))
            trace, result = trace_of(self._model, lambda: self._model(*args, **kwargs))
            return trace, pytree.tree_leaves(result)


def _random_example(model: nn.Module) -> Tensor:
    with preserved(model):
        x = example_of(model, "example")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_ROWS, *x.shape[1:], generator=generator).to(x.device, x.dtype)


def _own(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _same(found: Any, expected: Any) -> bool:
    """Whether two outputs agree. On the CPU they must agree in every bit, except for NaN and the sign of 0."""
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return type(found) is type(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype or found.is_meta:
        return found.is_meta and found.shape == expected.shape
    exact = expected.device.type == "cpu" or not expected.is_floating_point()
    largest = 0.0 if exact or not expected.numel() else float(expected.abs().nan_to_num(0.0, 0.0).max())
    rtol, atol = (0.0, 0.0) if exact else (1e-2, 1e-2 * largest)
    try:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError:
        return False
    return True
