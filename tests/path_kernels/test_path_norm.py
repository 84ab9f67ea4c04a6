"""Compares path_norm with a listing of every path, and tests its invariance to rescaling."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import modern_nets
import numpy as np
import pytest
import torch
from architectures import NETWORKS, network
from conv_paths import Array, Listing, Units, Weight
from modern_nets import Calls, modern
from nets import made, vgg
from recipes import follow, weights_of
from tolerances import FLOAT64_SUMS, assert_close_in_float64
from torch import nn

from gatedops import npv, path_norm

CLOSE = {"rel": FLOAT64_SUMS}
VECTORS = modern("vectors side by side")
ONE_PIXEL = nn.Sequential(
    *[nn.Conv2d(4, 6, 1, groups=2), nn.PReLU(6), nn.MaxPool2d(1), nn.ChannelShuffle(2)],
    *[nn.Conv2d(6, 6, 1, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)],
).double()


class Values(Listing):
    """Lists the value of every single path of each pixel; a unit is the array of the values of its paths."""

    def start(self, x: Array) -> Array:
        return np.ones(1)

    def constant_unit(self, weight: Weight) -> Array:
        return np.array([self.value((weight,))])

    def total(self, units: Iterable[Array]) -> Array:
        return np.concatenate([np.zeros(0), *units])

    def times(self, unit: Array, factor: float) -> Array:
        return unit * factor

    def through(self, unit: Array, weight: Weight) -> Array:
        return unit * self.value((weight,))

    def gated(self, unit: Array, slope: float, limit: Weight | None) -> Array:
        return unit

    def largest(self, units: Sequence[Array]) -> Array:
        return self.total(units)

    def standardize(self, units: Units, name: str) -> Units:
        return self.gain(units, name)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_norm_of_the_listed_values(name, exported_once):
    net = network(name)
    x = net.inputs(1)
    values = np.concatenate(list(follow(net, Values(weights_of(net), 1), x).ravel()))
    for p in (1, 2, 0.5):
        assert path_norm(net, p, x) == pytest.approx((np.abs(values) ** p).sum() ** (1 / p), **CLOSE)


# An average divides paths by its number of pixels also if p is not 1, and a max-pool adds up paths.
AVERAGES = ["depthwise", "slopes", "pixels moved and mixed", "tokens"]
MAX_POOLS = ["max-pools behind a slope"]


@torch.no_grad()
def powers_of(net: nn.Module, p: float) -> nn.Module:
    """The network in which every factor w is |w| ** p; its outputs for ones are sums over its paths."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            module.bias.sub_(module.running_mean * scale)
            module.weight.copy_(scale)
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    for parameter in net.parameters():
        parameter.copy_(parameter.abs() ** p)
    if isinstance(net, Calls):
        for name, buffer in net.named_buffers(recurse=False):
            buffer.copy_(buffer.abs() ** p * (-1 if name == "mean" else 1))
    return net


@pytest.mark.parametrize("name", sorted(set(modern_nets.NETWORKS) - set(MAX_POOLS)))
def test_it_is_the_output_of_the_network_of_powers(name, exported_once):
    net, x = modern(name), modern_nets.inputs_of(name, 1)
    for p in [1] if name in AVERAGES else [1, 2]:
        with torch.no_grad():
            total = powers_of(net, p)(torch.ones_like(x)).sum().item()
        assert path_norm(net, p, x) == pytest.approx(total ** (1 / p), **CLOSE)


@pytest.mark.parametrize("p", [1, 2, 0.5])
def test_it_is_the_norm_of_npv_if_no_weight_is_shared(p, exported_once):
    for net, shape in ((VECTORS, (3,)), (ONE_PIXEL, (4, 1, 1))):
        x = torch.zeros(1, *shape).double()
        assert path_norm(net, p, x) ** p == pytest.approx((npv(net, x).abs() ** p).sum().item(), **CLOSE)


@torch.no_grad()
def rescaled(net: nn.Sequential, layer: int, after: int) -> nn.Sequential:
    """Multiplies the weights into the units of a layer by numbers and divides those out of them, which keeps the
    function."""
    net = copy.deepcopy(net)
    factors = torch.rand(net[layer].weight.shape[0], dtype=torch.float64) * 3 + 0.1
    net[layer].weight.mul_(factors.view(-1, *[1] * (net[layer].weight.dim() - 1)))
    net[layer].bias.mul_(factors)
    out = net[after].weight
    repeated = factors.repeat_interleave(out.shape[1] // len(factors))
    out.div_(repeated.view(1, -1, *[1] * (out.dim() - 2)))
    return net


@pytest.mark.parametrize("p", [1, 2])
def test_it_does_not_change_where_units_are_rescaled(p):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(*net, nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    expected = path_norm(net, p, x)
    for pair in ((0, 3), (3, 6), (6, 8)):
        other = rescaled(net, *pair)
        assert_close_in_float64(other(x).detach(), net(x).detach())
        assert path_norm(other, p, x) == pytest.approx(expected, **CLOSE)


def test_batch_norms_are_folded():
    net, x = made("vgg", 1)
    net = net.double()
    x = x.double()
    plain = copy.deepcopy(net)
    for index in (0, 4):
        conv, norm = plain[0][index], plain[0][index + 1]
        plain[0][index] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
        plain[0][index + 1] = nn.Identity()
    assert path_norm(plain, 2, x) == pytest.approx(path_norm(net, 2, x), **CLOSE)


def test_groups_tokens_and_inputs_that_are_looked_for():
    net = nn.Conv2d(4, 6, 1, groups=2, bias=False).double()
    x = torch.zeros(1, 4, 1, 1).double()
    assert path_norm(net, 1, x) == pytest.approx(net.weight.abs().sum().item(), **CLOSE)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    assert path_norm(mlp, 2) == path_norm(mlp, 2, torch.zeros(1, 2, 3, 1))
    image = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    assert path_norm(image, 2) == path_norm(image, 2, torch.zeros(1, 1, 5, 5))


def test_the_softmax_is_left_out_and_one_of_several_outputs_is_chosen():
    head = nn.Linear(4, 2)
    net = Calls(lambda net, x: (net.other(x), net.head(x).log_softmax(1)), head=head, other=nn.Linear(4, 3))
    x = torch.zeros(1, 4)
    assert path_norm(net, 2, x, output=1) == path_norm(head, 2, x)
    assert path_norm(net, 2, x, output=0) == path_norm(net.other, 2, x)


@pytest.mark.parametrize("p", [0, -1, math.inf, math.nan, "2"])
def test_other_exponents(p):
    with pytest.raises(ValueError, match=r"p: got .*, needs a (finite )?number greater than 0"):
        path_norm(nn.Linear(2, 2), p)


def test_arguments_in_another_order_are_told():
    with pytest.raises(ValueError, match=r"^p: got Linear, needs a number greater than 0; .*\(model, p\)$"):
        path_norm(2, nn.Linear(2, 2))


def test_errors():
    with pytest.raises(ValueError, match=r"x: is missing, and the model takes inputs of \(1, 3, 3\) and \(1, 4, 4\)"):
        path_norm(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), 2)
    with pytest.raises(ValueError, match="x: is missing, and no vector or square image was found"):
        path_norm(nn.ReLU(), 2)
    with pytest.raises(ValueError, match=r"1 moves numbers between channels and pixels, .*; take the norm of the part"):
        path_norm(nn.Sequential(nn.Conv2d(1, 4, 3), nn.PixelShuffle(2)), 2, torch.zeros(1, 1, 3, 3))
    with pytest.raises(ValueError, match="is in training mode"):
        path_norm(vgg(), 2, torch.zeros(1, 3, 8, 8))
    huge = nn.Linear(2, 2)
    nn.init.constant_(huge.weight, 1e30)
    with pytest.raises(ValueError, match="overflows float64; take a smaller p"):
        path_norm(huge, 20)
