"""What the zoo knows of a network: how to make it, an example of its inputs, and how to call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

N = 8  # Every example has this many inputs.


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Args:
        name: its name in the table and for ``--only``.
        style: the library or the paper whose way of writing networks it follows.
        make: makes the module.
        example: makes N inputs: a tensor, a tuple of the arguments of ``forward``, or a dict of its keywords.
        options: by the name of a step, the keywords that the library gets besides the network and the example.
    """

    name: str
    style: str
    make: Callable[[], nn.Module]
    example: Callable[[], Any]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def ready(self) -> tuple[nn.Module, Any]:
        """Returns the module in evaluation mode and its example; every call returns the same values.

        The parameters are as in a trained net, so that nothing is equal by chance: no bias is 0, no scale of a norm is
        1, and one training forward gives batch norms statistics other than their initial 0 and 1.
        """
        torch.manual_seed(0)
        model, example = self.make(), self.example()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() < 2:
                    parameter += 0.1 * torch.randn_like(parameter)
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.momentum = 1.0
            model.train()
            call(model, example)
        return model.eval(), example


def call(model: nn.Module, batch: Any) -> Any:
    """Returns the model's output for a batch of any of the three forms. `record_gates` takes this as its ``call``."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


PIECEWISE = {"record": {"activations": "piecewise"}}


def images(size: int = 16, channels: int = 3) -> Callable[[], Tensor]:
    """Returns a function that makes N images."""
    return lambda: torch.randn(N, channels, size, size)
