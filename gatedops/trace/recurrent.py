"""Finds the gates inside torch's recurrent layers with ReLUs, where one call runs all steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gatedops.trace.mode import Call, name_of


def activations_of(call: Call, result: object) -> Iterator[Tensor]:
    """Yields the activations of each layer of a call of kind RNN_RELU. They are greater than 0 where the
    pre-activations are. Their shape is (n, w) for a cell, else that of the layer's outputs.

    Raises:
        ValueError: the call runs on packed sequences, whose inputs have no rows of their own.
    """
    if name_of(call.func) == "rnn_relu_cell":
        assert isinstance(result, Tensor)
        yield result
        return
    inputs, state, parameters, *rest = call.args
    if not isinstance(parameters, (list, tuple)):
        raise ValueError("model: an RNN runs on packed sequences, in which inputs have no rows; pad them instead")
    has_biases, layers, _, training, bidirectional, batch_first = rest
    directions = 2 if bidirectional else 1
    size = len(parameters) // layers
    for layer in range(layers):
        weights = parameters[layer * size : (layer + 1) * size]
        start = state[layer * directions : (layer + 1) * directions].contiguous()
        arguments = (weights, has_biases, 1, 0.0, training, bidirectional, batch_first)
        inputs = torch.rnn_relu(inputs, start, *arguments)[0]
        yield inputs
