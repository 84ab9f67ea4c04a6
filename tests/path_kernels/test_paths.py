"""npf and npv list the paths of modern networks: their products are the outputs and the kernel."""

from __future__ import annotations

import pytest
import torch
from modern_nets import NETWORKS, Calls, inputs_of, modern
from tolerances import assert_close_in_float64, assert_same_bits
from torch import nn

from gatedops import npf, npk, npv


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_kernel_are_those_of_the_paths(name, exported_once):
    net, x = modern(name), inputs_of(name, 4)
    features = npf(net, x)
    with torch.no_grad():
        assert_close_in_float64(features @ npv(net, x), net(x).flatten(1))
    for bias, phi in (("path", features), ("ignore", npf(net, x, bias="ignore"))):
        gram, exponent = npk(net, x, bias=bias, dtype=torch.float64, return_exponent=True)
        assert_close_in_float64(gram * 2.0**exponent, phi @ phi.T)
