"""Compares npk, npf and npv with a listing of every path, which shares no code with them (helpers/conv_paths.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import NETWORKS, network
from conv_paths import Units, features, second_moment
from drawn_networks import networks
from hypothesis import given
from hypothesis import strategies as st
from recipes import LAYERS, Recipe, listed
from strategies import examples, seeds
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor

from gatedops import npf, npk, npv

BIASES = ["ignore", "path"]


pytestmark = pytest.mark.usefixtures("exported_once")


def gram_of(net: Recipe, x: Tensor, y: Tensor | None = None, **options) -> Tensor:
    gram, exponent = npk(net, x, y, dtype=torch.float64, return_exponent=True, **options)
    return gram * 2.0**exponent


def biases_of(net: Recipe) -> list[str]:
    """Returns the values that the argument `bias` can have."""
    return BIASES if net.has_paths_of_constants else ["ignore"]


def expected_gram(net: Recipe, outputs: Units, bias: str, sigmas: list[float], kernel: str = "npk") -> Tensor:
    """Returns the kernel of the first output from the listed paths."""
    layers = [result for result, kind, _, _ in net.operations if kind in LAYERS]
    variances = {layer: sigma**2 for layer, sigma in zip(layers, sigmas, strict=True)}
    bundles, phi = features(outputs[0, 0, 0], biases=bias == "path")
    weights = [second_moment(bundle, variances, tangent=kernel == "ntk") for bundle in bundles]
    return torch.from_numpy((phi * weights) @ phi.T)


def assert_right(ours: Tensor, expected: Tensor, name: str) -> None:
    """Checks that a kernel of whole numbers is exact if it has few fractional bits, and else that it is close. That of
    a fully connected network is only close, because npk_gram divides by widths."""
    if (expected * 2.0**20).frac().any() or name.startswith("fully connected"):
        assert_close_in_float64(ours, expected)
    else:
        assert_same_bits(ours, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_grams_of_the_listed_features(name):
    net = network(name)
    x = net.inputs(5).mul(2).round()
    _, outputs = listed(net, x)
    layers = sum(kind in LAYERS for _, kind, _, _ in net.operations)
    sigmas = [0.5, 2.0, 1.0] * layers
    for bias in biases_of(net):
        expected = expected_gram(net, outputs, bias, [1.0] * layers)
        gram = gram_of(net, x, bias=bias)
        assert_right(gram, expected, name)
        assert_same_bits(gram, gram.T.contiguous())
        assert_right(gram_of(net, x[:3], x[3:], bias=bias, batch_size=2), expected[:3, 3:], name)
        options = {"bias": bias, "kernel": "ntk"}
        gram = gram_of(net, x, sigma=sigmas[:layers], **options)
        assert_right(gram, expected_gram(net, outputs, sigmas=sigmas[:layers], **options), name)


@examples(20)
@given(networks(), st.sampled_from(BIASES), st.sampled_from(["npk", "ntk"]), seeds)
def test_the_kernel_of_any_architecture(network, bias, kernel, seed):
    net = Recipe(*network, seed=seed)
    bias = bias if net.has_paths_of_constants else "ignore"
    x = net.inputs(3, seed)
    _, outputs = listed(net, x)
    layers = sum(kind in LAYERS for _, kind, _, _ in net.operations)
    expected = expected_gram(net, outputs, bias, [1.0] * layers, kernel)
    assert_close_in_float64(gram_of(net, x, bias=bias, kernel=kernel), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_npf_and_npv_list_the_paths(name):
    net = network(name)
    x = net.inputs(3)
    listing, outputs = listed(net, x)
    for bias in biases_of(net):
        bundles, phi = features(outputs[0, 0, 0], biases=bias == "path")
        ours, values = npf(net, x, bias=bias), npv(net, x, bias=bias)
        assert values.shape == (ours.shape[1], outputs.shape[0])
        expected = np.column_stack([phi.T, [listing.value(bundle) for bundle in bundles]])
        assert_same_rows(np.column_stack([ours.T, values[:, 0]]), expected)
        assert_close_in_float64(gram_of(net, x, bias=bias), ours @ ours.T)
    if net.has_paths_of_constants:
        with torch.no_grad():
            assert_close_in_float64(npf(net, x) @ npv(net, x), net(x).flatten(1))


def assert_same_rows(ours: np.ndarray, expected: np.ndarray) -> None:
    """Checks that both have the same paths (features and then the value) in any order. Paths that are never active do
    not count."""
    sides = [side[(side[:, :-1] != 0).any(1)] for side in (ours, expected)]
    # The path value tells paths with equal features apart; we compare fewer digits than rounding changes.
    ordered = [side[np.lexsort(np.round(side, 9).T)] for side in sides]
    assert_close_in_float64(*(torch.from_numpy(side) for side in ordered))


def test_npv_finds_an_input_that_the_model_takes():
    for name in ("fully connected", "flatten", "mean", "residual, behind a max-pool"):
        network, shape = NETWORKS[name]
        net = Recipe(network, (shape[0], 3, 3) if len(shape) == 3 else shape)
        assert_same_bits(npv(net), npv(net, net.inputs(1)))
