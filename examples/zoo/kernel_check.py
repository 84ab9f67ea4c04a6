"""Compares the diagonal of a neural path kernel with a mean over random weights, which is computed in another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import gatedops

DRAWS = 150


def over_random_weights(model: nn.Module, x: Tensor, diagonal: Tensor) -> tuple[float, float]:
    """Returns the mean of f(s)^2 / diagonal[s] over draws of weights that are 1 or -1, and its standard error.

    f is a gated twin: the network with frozen gates and frozen choices of max-pools, without biases and batch norms.
    The mean is 1 if the diagonal is that of H (docs/math.md, section 2). The model's parametrizations are removed,
    because a copy shares them.
    """
    remove_parametrizations(model)
    twin = gatedops.gated_twin(model, model, batch_norm="off")
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(DRAWS, dtype=torch.float64)
    with torch.no_grad():
        for draw in range(DRAWS):
            for parameter in twin.value.parameters():
                signs = torch.randint(2, parameter.shape, generator=generator) * 2.0 - 1
                # Biases are 0.
                parameter.copy_(signs if parameter.dim() > 1 else torch.zeros_like(parameter))
            draws[draw] = (twin(x).double().flatten(1).square().mean(1) / diagonal).mean()
    return draws.mean().item(), (draws.std() / DRAWS**0.5).item()


def remove_parametrizations(model: nn.Module) -> None:
    """Replaces the weights of weight norm and spectral norm by parameters with the same values."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
