"""Compares npk with the mean that it stands for, over networks with frozen gates and choices and random value weights.

The mean is exact, over every pattern of signs, or over random patterns and compared within its standard error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from architectures import conv, fc, max_pool, relu
from recipes import Operation, Recipe, op
from tolerances import assert_close_in_float64
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from gatedops import npk

Weights = dict[str, Tensor]

BLOCK = [conv("c1", "x", kernel=2, padding=0, out=1), relu("g1", "c1"), conv("c2", "g1", kernel=1, padding=0, out=1)]
HEAD = [op("m", "mean", "last"), fc("o", "m", 1, bias=False)]
# Each has at most 16 weights and biases.
TINY: dict[str, tuple[list[Operation], tuple[int, ...]]] = {
    "fully connected": ([fc("a", "x", 3), relu("b", "a"), fc("o", "b", 1)], (3,)),
    "flatten": (
        [conv("c1", "x", kernel=2, padding=0), relu("g1", "c1"), op("f", "flatten", "g1"), fc("o", "f", 1)],
        (1, 2, 3),
    ),
    "max-pool": (
        [conv("c1", "x", kernel=2, padding=0), relu("g1", "c1"), max_pool("last", "g1", 2, 1), *HEAD],
        (1, 4, 3),
    ),
    "a layer without a gate": (
        [conv("c1", "x", kernel=2, padding=0), relu("g1", "c1"), conv("last", "g1", kernel=1, padding=0, out=1), *HEAD],
        (1, 3, 3),
    ),
    "gate before addition": ([*BLOCK, relu("g2", "c2"), op("last", "add", "g2", "g1"), *HEAD], (1, 3, 3)),
    "gate after addition": (
        [
            conv("c0", "x", kernel=2, padding=0),
            relu("g0", "c0"),
            conv("c1", "g0", kernel=1, padding=0, bias=False),
            op("s", "add", "c1", "g0"),
            relu("last", "s"),
            *HEAD,
        ],
        (1, 3, 3),
    ),
    "pre-activation": ([*BLOCK, op("s", "add", "c2", "c1"), relu("last", "s"), *HEAD], (1, 3, 4)),
}


def frozen_outputs(net: Recipe, x: Tensor) -> Callable[[Weights], Tensor]:
    """Returns the outputs (n,) as a function of the weights, with gates and choices kept as they are."""
    masks = net.frozen(x)
    return lambda weights: functional_call(net, weights, (x, masks)).flatten()


def all_signs(net: Recipe, *, biases: bool) -> Weights:
    """Returns every pattern of +1 and -1 for the weights; without `biases` all biases are 0."""
    drawn = {name: p.numel() for name, p in net.named_parameters() if biases or "bias" not in name}
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sum(drawn.values()))), dtype=torch.float64)
    parts = dict(zip(drawn, patterns.split(list(drawn.values()), 1), strict=True))
    zeros = {name: torch.zeros(len(patterns), p.numel()) for name, p in net.named_parameters() if name not in drawn}
    shapes = {name: p.shape for name, p in net.named_parameters()}
    return {name: part.double().reshape(-1, *shapes[name]) for name, part in (parts | zeros).items()}


def kernel_of(net: Recipe, x: Tensor, **options) -> Tensor:
    gram, exponent = npk(net, x, dtype=torch.float64, return_exponent=True, **options)
    return gram * 2.0**exponent


@pytest.mark.parametrize("bias", ["ignore", "path"])
@pytest.mark.parametrize("name", TINY)
def test_the_npk_is_the_mean_product_of_outputs(name, bias):
    net = Recipe(*TINY[name])
    x = net.inputs(3)
    outputs = vmap(frozen_outputs(net, x))(all_signs(net, biases=bias == "path"))
    assert_close_in_float64(kernel_of(net, x, bias=bias), outputs.T @ outputs / len(outputs))


@pytest.mark.parametrize("bias", ["ignore", "path"])
@pytest.mark.parametrize("name", TINY)
def test_the_ntk_is_the_mean_tangent_kernel(name, bias):
    net = Recipe(*TINY[name])
    x = net.inputs(3)
    sigmas = [0.5 + index for index in range(sum("weight" in key for key, _ in net.named_parameters()))]
    weights = all_signs(net, biases=False)
    for key, sigma in zip([key for key in weights if "weight" in key], sigmas, strict=True):
        weights[key] *= sigma
    kernel = 0.0
    for key, jacobian in vmap(jacrev(frozen_outputs(net, x)))(weights).items():
        if bias == "path" or "bias" not in key:
            rows = jacobian.flatten(2)
            kernel = kernel + torch.einsum("wip,wjp->ij", rows, rows) / len(rows)
    assert_close_in_float64(kernel_of(net, x, kernel="ntk", sigma=sigmas, bias=bias), kernel)


def test_the_npk_of_a_larger_residual_network_within_the_standard_error():
    stem = [conv("c0", "x", out=4, bias=False), relu("g0", "c0"), max_pool("p", "g0", 3, 2, 1)]
    block = [conv("c1", "p", out=4, bias=False), relu("g1", "c1"), conv("c2", "g1", out=4, bias=False)]
    join = [
        op("s", "add", "c2", "p"),
        relu("g2", "s"),
        conv("c3", "g2", out=5, stride=2, bias=False),
        relu("last", "c3"),
    ]
    net = Recipe([*stem, *block, *join, op("m", "mean", "last"), fc("o", "m", 1, bias=False)], (2, 8, 8))
    x, generator = net.inputs(3), torch.Generator().manual_seed(1)
    drawn = {
        name: torch.randint(0, 2, (4000, *p.shape), generator=generator).double() * 2 - 1
        for name, p in net.named_parameters()
    }
    outputs = vmap(frozen_outputs(net, x))(drawn)
    products = outputs[:, :, None] * outputs[:, None, :]
    error = products.std(0) / len(products) ** 0.5
    z = (products.mean(0) - kernel_of(net, x)) / error
    assert z.abs().max() < 4
    assert (error.diag() < 0.1 * kernel_of(net, x).diag()).all(), "too few draws to tell"
