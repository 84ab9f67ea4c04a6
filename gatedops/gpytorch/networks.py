"""Finds out whether a network is fully connected, and whether it takes inputs of a shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gatedops.path_kernels.dense import DenseKernel
from gatedops.path_kernels.problem import problem_of
from gatedops.trace.calling import naming_inputs
from gatedops.trace.checks import evaluating
from gatedops.trace.naming import naming


def slopes_of_dense(net: nn.Module, columns: int) -> list[float]:
    """Returns the slope where its gates are off, for each activation of a fully connected network: 0 for a ReLU.

    Args:
        net: it takes inputs ``(n, columns)``.

    Raises:
        TypeError, ValueError: it does not take such inputs, :func:`gatedops.npk` does not take it, it has no gates, or
            it is not fully connected.
    """
    try:
        with naming({"model": "net", "x": "x1"}), evaluating(net):
            problem = problem_of(net, _example(net, (columns,)), max_work=None, progress=False)
    except ValueError as error:
        if str(error).startswith("net:") and any(isinstance(module, _ConvNd) for module in net.modules()):
            raise ValueError(
                f"{error}; if net first reshapes its inputs to images, leave that out of net and give input_shape, such"
                " as (1, 8, 8)"
            ) from error
        raise
    if problem.bits is None:
        raise ValueError("net: calls no ReLU, so there are no gates: put one between its Linear layers")
    if not isinstance(problem.made, DenseKernel):
        raise ValueError(
            "net: is not a chain of Linear layers with one ReLU or LeakyReLU between every two, so its kernel is that"
            f" of gatedops.npk: give input_shape=({columns},), or the shape of its inputs to which the rows of x are to"
            " be reshaped, without sigma, normalize and scale"
        )
    return problem.made.slopes


def require_fit(net: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError if a network does not take inputs of this shape."""
    example = _example(net, input_shape)
    given = "input_shape"
    with torch.no_grad(), evaluating(net), naming({given: given}), naming_inputs(given, example, net):
        net(example)


def columns_of(net: nn.Module) -> int | None:
    """Returns how many columns the inputs of a network have, if it begins with a Linear layer; None: not known."""
    while type(net) is nn.Sequential and len(net):
        net = net[0]
    return net.in_features if type(net) is nn.Linear else None


def _example(net: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Returns one input of a network, in its dtype and on its device."""
    parameter = next((one for one in net.parameters() if one.is_floating_point()), torch.empty(0))
    return torch.ones(1, *shape, dtype=parameter.dtype, device=parameter.device)
