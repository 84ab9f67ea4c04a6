"""Computes the path scales of a model's weights: the derivatives of its squared path norm by their squares
(docs/math.md, section 13)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gatedops import trace
from gatedops.devices import most_precise
from gatedops.path_kernels.canonical import network_of
from gatedops.path_kernels.path_norm import path_sums
from gatedops.path_kernels.ties import require_own_weights
from gatedops.trace import Step
from gatedops.trace.checks import evaluating
from gatedops.trace.provenance import Sources

_OTHERWISE = "train the model by torch.optim.SGD"


class PathScales:
    """Computes the path scales of a model's parameters. It reads the steps of the model once, in evaluation mode, and
    the parameters at each call.

    Args:
        model: takes x; :class:`gatedops.optim.PathSGD` says what it may have.
        x: an input ``(n, ...)``, of which only the shape is used.

    Raises:
        TypeError, ValueError: path norms do not cover a step; a step is a batch norm; a weight is computed from
            parameters, or two are tied. The error names it.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        with evaluating(model):
            steps = trace.steps(model, x, name="x", otherwise=_OTHERWISE)
        _require_no_norm(steps)
        require_own_weights(steps, biases=True)
        self._network = network_of(steps, otherwise=_OTHERWISE)
        # Maps the id of a tensor of a step to the parameter that it shows, and to the positions of its numbers in the
        # parameter; None stands for all positions in their order.
        self._shown: dict[int, tuple[nn.Parameter, Tensor | None]] = {}
        for step in self._network.steps:
            for what, tensor, sources in _factors(step):
                if any(source.is_parameter for source in sources):
                    self._shown[id(tensor)] = _shown_by(tensor, list(model.parameters()), f"the {what} of {step.name}")

    def of_each(self) -> dict[nn.Parameter, Tensor]:
        """The path scales of each parameter that is a factor of paths, in the shape of the parameter, and in float64 if
        the device has it.

        Raises:
            ValueError: the squared path norm overflows.
        """
        squares = {parameter: _square(parameter).requires_grad_() for parameter, _ in self._shown.values()}
        device = next(iter(squares)).device

        def power(factor: Tensor) -> Tensor:
            if id(factor) not in self._shown:
                return _square(factor.to(device))
            parameter, positions = self._shown[id(factor)]
            square = squares[parameter]
            return square.reshape(factor.shape) if positions is None else square.flatten()[positions.to(device)]

        with torch.enable_grad():
            total = path_sums(self._network, power, device).sum()
        if not bool(total.isfinite()):
            raise ValueError(
                f"model: its squared path norm is {float(total)}, so its weights have no path scales; begin with"
                " smaller weights, or use a smaller lr if they grew in training"
            )
        return dict(zip(squares, torch.autograd.grad(total, list(squares.values())), strict=True))


def _square(factor: Tensor) -> Tensor:
    return factor.detach().to(most_precise(factor.device)) ** 2


def _require_no_norm(steps: list[Step]) -> None:
    for step in steps:
        if isinstance(step, trace.BatchNorm):
            raise ValueError(
                f"model: {step.name} is a batch norm. In training its output does not depend on the scale of the"
                " weights before it, so these weights have no path scales; put nn.Identity() in its place, or"
                f" {_OTHERWISE}"
            )


def _factors(step: Step) -> Iterator[tuple[str, Tensor, Sources]]:
    """Yields the factors of paths that may be parameters, each with its name and its sources."""
    match step:
        case trace.Linear() | trace.Conv2d():
            yield "weight", step.weight, step.weight_made_of
            if step.bias is not None:
                yield "bias", step.bias, step.bias_made_of
        case trace.AddConstant(constant=constant):
            yield "constant", constant, step.made_of
        case trace.Scale(factor=factor):
            yield "factor", factor, step.made_of


def _shown_by(tensor: Tensor, parameters: list[nn.Parameter], what: str) -> tuple[nn.Parameter, Tensor | None]:
    """The parameter of which a tensor is a view, and the positions of its numbers there; None if it shows all of them
    in order.

    Raises:
        ValueError: the tensor, which `what` names, is computed from parameters.
    """
    for parameter in parameters:
        offset = tensor.storage_offset() - parameter.storage_offset()
        same = tensor.untyped_storage()._cdata == parameter.untyped_storage()._cdata
        if not same or not 0 <= offset <= offset + _reach(tensor) <= _reach(parameter):
            continue
        order = torch.arange(parameter.numel(), device="cpu")
        lying = torch.empty_strided(parameter.shape, parameter.stride(), dtype=order.dtype, device="cpu")
        lying.copy_(order.view(parameter.shape))
        positions = lying.as_strided(tensor.shape, tensor.stride(), offset)
        return parameter, None if torch.equal(positions.flatten(), order) else positions.clone()
    raise ValueError(
        f"model: {what} is computed from parameters, and PathSGD needs it to be one; remove what computes it"
        " (torch.nn.utils.parametrize.remove_parametrizations; for a transposed convolution, take nn.Upsample and"
        f" nn.Conv2d), or {_OTHERWISE}"
    )


def _reach(tensor: Tensor) -> int:
    """The distance in memory from its first number to its last."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
