"""Compares npk on small versions of well known networks with the mean over random weights of 1 and -1, while gates and
the choices of max-pools stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from collection import COLLECTION
from recipes import Operation, Recipe
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from gatedops import npk
from gatedops.path_kernels import problem

# The mean of this many draws may be off by this many standard errors.
DRAWS, ERRORS = 2000, 5.0

Change = Callable[[Operation], Operation]


def option(kind: str, **options: object) -> Change:
    """Returns a function that changes options of all operations of a kind."""

    def change(operation: Operation) -> Operation:
        result, own, sources, given = operation
        return (result, own, sources, given | options) if own == kind else operation

    return change


def in_another_order(operation: Operation) -> Operation:
    result, kind, read, options = operation
    return (result, kind, read[::-1], options) if kind == "cat" else operation


def cropped_at_the_start(operation: Operation) -> Operation:
    result, kind, read, options = operation
    if kind == "crop" and options["sides"][3]:
        options = {"sides": (0, 0, options["sides"][3], 0)}
    return result, kind, read, options


def ungated(operation: Operation) -> Operation:
    """Lets the first layer of two blocks read what its gate reads."""
    result, kind, read, options = operation
    return result, kind, {"ahc": ("s",), "bhc": ("a",)}.get(result, read), options


# Gives for each network a mistake that a rule for it could make.
MISTAKES: dict[str, Change] = {
    "GoogLeNet": in_another_order,
    "DenseNet": in_another_order,
    "ResNeXt": option("conv", groups=1),
    "MobileNetV2": option("conv", groups=1),
    "ShuffleNetV2": option("shuffle", groups=1),
    "PreActResNet": ungated,
    "DCGAN": option("leaky", slope=1.0),
    "TCN": cropped_at_the_start,
}
# These take less than two seconds.
QUICK = ("ResNeXt", "TCN")


def drawn(net: Recipe, draws: int) -> dict[str, Tensor]:
    """Returns random weights of 1 and -1."""
    made = torch.Generator().manual_seed(1)
    weights = {name: weight for name, weight in net.weights().items() if "bias" not in name}
    return {
        name: torch.randint(0, 2, (draws, *weight.shape), generator=made).double() * 2 - 1
        for name, weight in weights.items()
    }


def frozen_outputs(net: Recipe, masks: list[Tensor], x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Returns the outputs (n,) as a function of the weights, with these gates and choices and without biases."""
    zeros = {name: torch.zeros_like(weight) for name, weight in net.weights().items() if "bias" in name}
    return lambda weights: functional_call(net, weights | zeros, (x, masks)).flatten()


def errors_off(samples: Tensor, kernel: Tensor) -> float:
    """Returns by how many standard errors the mean of samples (draws, n, n) differs from a kernel."""
    error = samples.std(0) / len(samples) ** 0.5
    return float(((samples.mean(0) - kernel) / error).abs().max())


def kernel_of(net: Recipe, x: Tensor, **options: object) -> Tensor:
    gram, exponent = npk(net, x, dtype=torch.float64, return_exponent=True, **options)
    return gram * 2.0**exponent


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in COLLECTION]
)
def test_the_npk_is_the_mean_product_of_outputs(name, monkeypatch):
    operations, shape = COLLECTION[name]
    net = Recipe(operations, shape)
    x = net.inputs(3)
    outputs = vmap(frozen_outputs(net, net.frozen(x), x), chunk_size=500)(drawn(net, DRAWS))
    samples = outputs[:, :, None] * outputs[:, None, :]
    kernel = kernel_of(net, x)
    assert errors_off(samples, kernel) < ERRORS
    assert (samples.std(0).diag() / DRAWS**0.5 < 0.15 * kernel.diag()).all(), "too few draws to tell"

    record = problem.recorded_gates
    monkeypatch.setattr(problem, "recorded_gates", lambda model, *rest: record(net, *rest))
    mistaken = Recipe([MISTAKES[name](operation) for operation in operations], shape)
    assert errors_off(samples, kernel_of(mistaken, x)) > 2 * ERRORS, "a mistake that is not found"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleNetV2", "DenseNet"])
def test_the_ntk_is_the_mean_tangent_kernel(name):
    net = Recipe(*COLLECTION[name])
    x = net.inputs(3)
    jacobians = vmap(jacrev(frozen_outputs(net, net.frozen(x), x)), chunk_size=100)(drawn(net, DRAWS // 2))
    samples = sum(torch.einsum("wip,wjp->wij", j.flatten(2), j.flatten(2)) for j in jacobians.values())
    assert errors_off(samples, kernel_of(net, x, kernel="ntk")) < ERRORS
