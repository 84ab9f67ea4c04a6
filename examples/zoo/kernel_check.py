"""Compares the diagonal of a neural path kernel with a mean over random weights, which is computed in another way."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from network import call
from rectifiers import gates_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = 150


class Frozen(TorchDispatchMode):
    """Runs a network again and again with the gates and the choices of max-pools of its first run.

    From the second run on, each activation multiplies by its slopes of the first run, and each max-pool takes the
    entries that it took then. What npk counts as a part of weights (batch norms), or leaves out at the end of a network
    (sigmoid, softmax), returns its input.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: list[Tensor] | None = None
        self._left: list[Tensor] = []

    def run(self, model: nn.Module, example: Any) -> list[Tensor]:
        """Returns the tensors of the output."""
        self._left = list(self._first or ())
        with torch.no_grad(), self:
            output = call(model, example)
        if self._first is None:
            self._first = self._left
        elif self._left:
            raise RuntimeError(f"{len(self._left)} activations and max-pools of the first run are not called again")
        return pytree.tree_leaves(output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        found = gates_of(name.rstrip("_"), args, kwargs, piecewise=True)
        if self._first is None:
            output = func(*args, **kwargs)
            if found is not None:
                gates, slope = found
                self._left.append(torch.where(gates, 1.0, slope))
            elif name == "max_pool2d_with_indices":
                self._left.append(output[1])
            return output
        if found is not None:
            product = args[0] * self._left.pop(0)
            return args[0].copy_(product) if name.endswith("_") else product
        if name == "max_pool2d_with_indices":
            chosen = self._left.pop(0)
            return args[0].flatten(-2).gather(-1, chosen.flatten(-2)).view_as(chosen), chosen
        if name in ("sigmoid", "_softmax", "_log_softmax"):
            return args[0].clone()
        if name == "native_batch_norm":
            return args[0].clone(), args[0].new_empty(0), args[0].new_empty(0)
        return func(*args, **kwargs)


def over_random_weights(model: nn.Module, x: Tensor, diagonal: Tensor, output: int = 0) -> tuple[float, float]:
    """Returns the mean of f(s)^2 / diagonal[s] over draws of weights that are 1 or -1, and its standard error.

    f is the network with frozen gates and frozen choices of max-pools, without biases and batch norms. The mean is 1 if
    the diagonal is that of H (docs/math.md, section 2). The model's weights are overwritten, and its parametrizations
    are removed, because they would compute weights from the random ones.

    Args:
        output: the index of the tensor among those that the model returns.
    """
    remove_parametrizations(model)
    frozen = Frozen()
    frozen.run(model, x)
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(DRAWS, dtype=torch.float64)
    with torch.no_grad():
        for draw in range(DRAWS):
            for parameter in model.parameters():
                signs = torch.randint(2, parameter.shape, generator=generator) * 2.0 - 1
                # Biases are 0.
                parameter.copy_(signs if parameter.dim() > 1 else torch.zeros_like(parameter))
            outputs = frozen.run(model, x)[output]
            draws[draw] = (outputs.double().flatten(1).square().mean(1) / diagonal).mean()
    return draws.mean().item(), (draws.std() / DRAWS**0.5).item()


def remove_parametrizations(model: nn.Module) -> None:
    """Replaces the weights of weight norm and spectral norm by parameters with the same values."""
    for module in list(model.modules()):
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
