"""PathSGD: gradient descent that does not depend on how the weights of a network are scaled (docs/math.md, section
13)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gatedops.optim.path_scales import PathScales
from gatedops.path_kernels.npk_args import as_floats, inputs_of
from gatedops.scalars import real_number, whole_number
from gatedops.trace.bare import bare
from gatedops.trace.checks import devices_of, require_device, require_model
from gatedops.trace.example import example_of


class PathSGD(Optimizer):
    """Gradient descent on path norms, Path-SGD (Neyshabur, Salakhutdinov & Srebro 2015, arXiv 1506.02617).

    Each weight's step is divided by its path scale: the sum, over all paths through the weight, of the product of the
    squares of the other weights on the path. This is steepest descent with respect to the path norm with p = 2
    (:func:`gatedops.path_norm`). If the weights into a unit are multiplied by a positive number and those out of it are
    divided by it, the network computes the same function; PathSGD then takes steps to the same functions, and
    torch.optim.SGD does not.

    The path scales of all weights come from one forward and one backward pass of one input: a network of the squared
    weights without gates, on an input of ones. A weight that a convolution uses at several pixels has one scale, the
    sum over its uses. Biases and constants that are parameters start paths, and have scales, and so have parameters
    that a signal is multiplied by. Other parameters, such as the slopes of PReLU, take the steps of SGD. There is no
    weight decay, because its steps depend on how the weights are scaled.

    Args:
        model: has only operations that :func:`gatedops.path_norm` covers, no batch norms, and no weights that are tied
            or computed from parameters (those of a transposed convolution are). It may be in training mode. Steps are
            read from it now, so operations that it gets later are not followed.
        lr: the learning rate.
        x: an input ``(n, ...)`` of the model, of which only the shape is used: path scales depend on the size of
            images. None: the shape is looked for, and the model must take only one.
        every: compute the path scales at every `every`-th step.
        eps: a path scale that is smaller counts as eps. Scaling the weights then changes no step as long as all path
            scales are larger.
        momentum, dampening, nesterov, maximize: as in torch.optim.SGD, for gradients that are divided by path scales.
        params: parameters of the model, or dicts that define groups of them, as torch's optimizers take them; None: all
            parameters.

    Raises:
        TypeError, ValueError: an argument has another form; the model has a step, batch norm or weight for which there
            are no path scales. The error names it.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        x: Tensor | np.ndarray | None = None,
        *,
        every: int = 1,
        eps: float = 1e-12,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        params: Iterable[Any] | None = None,
    ) -> None:
        require_model(model)
        numbers = {"lr": lr, "eps": eps, "momentum": momentum, "dampening": dampening}
        defaults: dict[str, Any] = {name: _number(value, name) for name, value in numbers.items()}
        count = whole_number(every)
        if count is None or count < 1:
            raise ValueError(f"every: got {every!r}, needs a whole number of steps, at least 1")
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError("nesterov: needs a momentum greater than 0 and dampening=0")
        super().__init__(
            model.parameters() if params is None else params, defaults | {"nesterov": nesterov, "maximize": maximize}
        )
        self._require_known_groups(model)
        self._every, self._steps = count, 0
        self._scales = PathScales(model, _input_of(model, x))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; returns the result of `closure`, which computes the loss and its gradients anew.

        Raises:
            ValueError: the squared path norm of the model overflows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._steps % self._every == 0:
            self._store_scales()
        self._steps += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of torch's optimizers, with the path scales, and the number of steps taken as "steps"."""
        return super().state_dict() | {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state of another PathSGD of the same model; ValueError if it is that of another optimizer."""
        if "steps" not in state_dict:
            raise ValueError("state_dict: has no 'steps', so it is not that of a PathSGD; use its own optimizer")
        super().load_state_dict(state_dict)
        self._steps = state_dict["steps"]

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "PathSGD belongs to its model and cannot be copied or pickled; make one for the copied model and give it"
            " optimizer.state_dict() by load_state_dict"
        )

    def _require_known_groups(self, model: nn.Module) -> None:
        """Raises ValueError if a group has an option that PathSGD does not know, or a parameter of another model."""
        own = {id(parameter) for parameter in model.parameters()}
        for place, group in enumerate(self.param_groups):
            unknown = set(group) - {"params", "param_names"} - set(self.defaults)
            if unknown:
                raise ValueError(
                    f"params: group {place} has {sorted(unknown)}, and PathSGD knows only {sorted(self.defaults)};"
                    " leave it out"
                )
            if any(id(parameter) not in own for parameter in group["params"]):
                raise ValueError(f"params: group {place} has a parameter that the model does not; give only its own")

    def _store_scales(self) -> None:
        scales = self._scales.of_each()
        for parameter in (each for group in self.param_groups for each in group["params"]):
            if parameter in scales:
                # The range of a half is too small for a scale.
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                self.state[parameter]["scale"] = scales[parameter].to(dtype)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """Takes the step of one parameter."""
        state = self.state[parameter]
        gradient = -gradient if group["maximize"] else gradient
        if "scale" in state:
            gradient = gradient / state["scale"].clamp_min(group["eps"])
        if group["momentum"] != 0:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = gradient.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
            mean = state["momentum_buffer"]
            gradient = gradient.add(mean, alpha=group["momentum"]) if group["nesterov"] else mean
        parameter.add_(gradient, alpha=-group["lr"])


def _number(value: Any, name: str) -> float:
    """An argument as a float; ValueError unless it is finite and at least 0."""
    number = real_number(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"{name}: got {value!r}, needs a finite number, at least 0")
    return number


def _input_of(model: nn.Module, x: Any) -> Tensor:
    if x is None:
        with bare(model) as inner:
            x = example_of(inner, unique=True)
    x = as_floats(inputs_of(x, otherwise="flatten them")[0], model)
    require_device(devices_of(model), x, "x")
    return x
