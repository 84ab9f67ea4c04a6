"""npf and npv list the paths of modern networks: their products are the outputs and the kernel."""

from __future__ import annotations

import pytest
import torch
from modern_nets import NETWORKS, Calls, inputs_of, modern
from tolerances import assert_close_in_float64, assert_same_bits
from torch import nn

from gatedops import npf, npk, npv


def gram_of(net, x, **options):
    gram, exponent = npk(net, x, dtype=torch.float64, return_exponent=True, **options)
    return gram * 2.0**exponent


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_kernel_are_those_of_the_paths(name, exported_once):
    net, x = modern(name), inputs_of(name, 4)
    features = npf(net, x)
    with torch.no_grad():
        assert_close_in_float64(features @ npv(net, x), net(x).flatten(1))
    for bias, phi in (("path", features), ("ignore", npf(net, x, bias="ignore"))):
        assert_close_in_float64(gram_of(net, x, bias=bias), phi @ phi.T)


def test_paths_that_do_not_exist_are_not_listed():
    groups = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2, bias=False), nn.Flatten(), nn.Linear(6, 1, bias=False))
    assert npv(groups.double(), torch.zeros(1, 4, 1, 1).double()).shape == (6 * 2, 1)
    beside = Calls(
        lambda net, x: net.out(torch.cat([net.a(x).relu(), x], 1)), a=nn.Linear(3, 2), out=nn.Linear(5, 2)
    ).double()
    assert npv(beside, torch.zeros(1, 3).double()).shape == (2 * (3 + 1) + 3 + 1, 2)
    assert npv(beside, torch.zeros(1, 3).double(), bias="ignore").shape == (2 * 3 + 3, 2)


def test_the_number_of_paths_in_an_error_is_that_of_the_largest_group():
    net = Calls(
        lambda net, x: net.b(torch.cat([net.a(x).relu(), x], 1)).mean((2, 3)),
        a=nn.Conv2d(2, 2, 3, bias=False),
        b=nn.Conv2d(4, 4, 5, groups=2),
    )
    net.a.padding = net.b.padding = "same"
    # The two channels of the first group have 2 * 9 paths each, those of the second group one.
    with pytest.raises(ValueError, match=f"has {2 * 25 * 18 + 1} paths to each unit of 0.b: .* features for 70 inputs"):
        npf(nn.Sequential(net, nn.Linear(4, 1)), torch.zeros(70, 2, 20, 20))


def test_the_softmax_at_the_end_is_left_out_and_one_of_several_outputs_is_chosen():
    trunk, x = nn.Linear(3, 4).double(), torch.randn(4, 3).double()
    plain = nn.Sequential(trunk, nn.ReLU(), head := nn.Linear(4, 2).double())
    net = Calls(
        lambda net, x: {"a": net.a(h := net.trunk(x).relu()).softmax(1), "b": net.b(h)},
        trunk=trunk,
        a=head,
        b=nn.Linear(4, 5).double(),
    )
    assert_same_bits(npf(net, x, output="a"), npf(plain, x))
    assert_same_bits(npv(net, x, output="a"), npv(plain, x))
    with torch.no_grad():
        assert_close_in_float64(npf(net, x, output="b") @ npv(net, x, output="b"), net(x)["b"])


def test_gates_that_are_off_above_a_bound():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU6(), nn.Linear(6, 4), nn.Hardtanh(-1, 2), nn.Linear(4, 2)).double()
    x = 20 * torch.randn(5, 3).double()
    assert (net[0](x) > 6).any()
    phi = npf(net, x, bias="ignore")
    assert_close_in_float64(gram_of(net, x), phi @ phi.T)
    with pytest.raises(ValueError, match=r'1 is constant above 6, .* use bias="ignore"'):
        npf(net, x)
