"""Looks for an input that a model takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gatedops.trace.checks import evaluating, require_model

# Images of up to this many pixels on a side are tried.
_LARGEST = 64


def examples_of(model: nn.Module) -> Iterator[Tensor]:
    """Yields inputs of one row that the model takes: a vector of the length that its first Linear layer needs or, if a
    Conv2d comes first, square images of up to 64 x 64 pixels, the smallest first."""
    require_model(model)
    layer = next((module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)), None)
    if layer is None:
        return
    dtype, device = layer.weight.dtype, layer.weight.device
    shapes: list[tuple[int, ...]] = [(layer.in_features,)] if isinstance(layer, nn.Linear) else []
    if isinstance(layer, nn.Conv2d):
        shapes = [(layer.in_channels, size, size) for size in range(1, _LARGEST + 1)]
    for shape in shapes:
        x = torch.zeros(1, *shape, dtype=dtype, device=device)
        if _is_taken(model, x):
            yield x


def _is_taken(model: nn.Module, x: Tensor) -> bool:
    with evaluating(model), torch.no_grad():
        try:
            model(x)
        except Exception:  # a model may raise anything if it does not take a shape
            return False
        return True


def example_of(model: nn.Module, name: str = "x", *, unique: bool = False) -> Tensor:
    """The first input of ``examples_of(model)``; ValueError, which names the argument `name`, if none exists or, with
    `unique`, if a second one exists."""
    found = examples_of(model)
    x, another = next(found, None), next(found, None) if unique else None
    if x is None:
        raise ValueError(
            f"{name}: is missing, and no vector or square image was found that the model takes; give an input"
            f" as {name}="
        )
    if another is not None:
        sizes = f"{tuple(x.shape[1:])} and {tuple(another.shape[1:])}"
        raise ValueError(
            f"{name}: is missing, and the model takes inputs of {sizes}; give {name} with the size that you mean"
        )
    return x
