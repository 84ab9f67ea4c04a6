"""Checks of a given network: that its weights are numbers, and that it takes the rows of X."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gatedops.trace.checks import require_sizes
from gatedops.trace.naming import naming


def require_weights(net: nn.Module) -> None:
    """Raises ValueError if a parameter of a network has no size yet, no memory, or numbers that are not finite."""
    with naming({"model": "net"}):
        require_sizes(net)
    for name, parameter in net.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"net: {name} is on the device meta and has no numbers; load the net's weights first")
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"net: {name} has infinite values or NaN; needs finite weights: train the net again")


def require_fit(net: nn.Module, inputs: Tensor, shape: tuple[int, ...], features: int) -> None:
    """Raises ValueError if a network does not take some inputs, with what is known about the layer that fails.

    Args:
        inputs: ``(n, *shape)``.
        shape: of one input.
        features: of X.
    """
    with _running(net) as running:
        try:
            with torch.no_grad():
                net(inputs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise ValueError(
                f"net: got one that does not take inputs of shape {shape}, the rows of X with {features} "
                f"features{running.reason(net)}. Give a net for these features, or the shape that it takes as "
                f"input_shape. torch says: {lines[0]}"
            ) from None


class _Running:
    """Which modules of a network run at the moment, the innermost last, and whether one with weights has ended."""

    def __init__(self) -> None:
        self.modules: list[tuple[nn.Module, tuple[int, ...] | None]] = []
        self.has_ended = False

    def begin(self, module: nn.Module, args: tuple[object, ...]) -> None:
        shape = tuple(args[0].shape[1:]) if args and isinstance(args[0], Tensor) else None
        self.modules.append((module, shape))

    def end(self, module: nn.Module, args: tuple[object, ...], result: object) -> None:
        self.modules.pop()
        self.has_ended |= any(True for _ in module.parameters(recurse=False))

    def reason(self, net: nn.Module) -> str:
        """Returns the part of a sentence that says where a call of the network failed, or nothing if that is not one of
        its layers."""
        module, shape = self.modules[-1] if self.modules else (net, None)
        if module is net and not isinstance(net, nn.Linear):
            return ""
        if not self.has_ended:
            return f"; its first layer needs {module.in_features}" if isinstance(module, nn.Linear) else ""
        name = next(name for name, one in net.named_modules() if one is module)
        got = "" if shape is None else f", which gets shape {shape}"
        return f"; it fails inside, in its layer {name!r}, {type(module).__name__}{got}"


@contextmanager
def _running(net: nn.Module) -> Iterator[_Running]:
    """Follows the calls of a network's modules while entered."""
    running = _Running()
    hooks = []
    for module in net.modules():
        hooks += [module.register_forward_pre_hook(running.begin), module.register_forward_hook(running.end)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()
