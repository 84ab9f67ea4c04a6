"""Compares npk, npf and npv with a listing of every path, which shares no code with them (helpers/conv_paths.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import NETWORKS, network, networks
from conv_paths import features
from hypothesis import given
from hypothesis import strategies as st
from recipes import Recipe, listed
from strategies import examples, seeds
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor

from gatedops import npf, npk, npv

BIASES = ["ignore", "path"]


pytestmark = pytest.mark.usefixtures("exported_once")


def gram_of(net: Recipe, x: Tensor, y: Tensor | None = None, **options) -> Tensor:
    gram, exponent = npk(net, x, y, dtype=torch.float64, return_exponent=True, **options)
    return gram * 2.0**exponent


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_is_the_gram_of_the_listed_features(name):
    net = network(name)
    x = net.inputs(5)
    _, outputs = listed(net, x)
    for bias in BIASES:
        phi = torch.from_numpy(features(outputs[0, 0, 0], biases=bias == "path")[1])
        gram = gram_of(net, x, bias=bias)
        assert_close_in_float64(gram, phi @ phi.T)
        assert_same_bits(gram, gram.T.contiguous())
        assert_close_in_float64(gram_of(net, x[:3], x[3:], bias=bias, batch_size=2), phi[:3] @ phi[3:].T)


@examples(20)
@given(networks(), st.sampled_from(BIASES), seeds)
def test_the_kernel_of_any_architecture(network, bias, seed):
    net = Recipe(*network, seed=seed)
    x = net.inputs(3, seed)
    _, outputs = listed(net, x)
    phi = torch.from_numpy(features(outputs[0, 0, 0], biases=bias == "path")[1])
    assert_close_in_float64(gram_of(net, x, bias=bias), phi @ phi.T)


@pytest.mark.parametrize("name", NETWORKS)
def test_npf_and_npv_list_the_paths(name):
    net = network(name)
    x = net.inputs(3)
    listing, outputs = listed(net, x)
    for bias in BIASES:
        bundles, phi = features(outputs[0, 0, 0], biases=bias == "path")
        ours, values = npf(net, x, bias=bias), npv(net, x, bias=bias)
        assert values.shape == (ours.shape[1], outputs.shape[0])
        expected = np.column_stack([phi.T, [listing.value(bundle) for bundle in bundles]])
        assert_same_rows(np.column_stack([ours.T, values[:, 0]]), expected)
        assert_close_in_float64(gram_of(net, x, bias=bias), ours @ ours.T)
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
