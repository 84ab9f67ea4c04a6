"""npk refuses tied weights, which share memory or come from one parameter in any way, and takes all others."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from gatedops import npf, npk, npv, trace
from gatedops.trace.provenance import Source

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("exported_once")


class Forward(nn.Module):
    """A function as a network, with tensors to make weights of."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.w, self.v = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.long, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
        self.register_buffer("held", torch.randn(4, 4))
        self.plain = torch.randn(4, 4)
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def two(first, second, biases=lambda net: (None, None)):
    """Has two layers with a gate between them."""
    return lambda net, x: F.linear(F.linear(x, first(net), biases(net)[0]).relu(), second(net), biases(net)[1])


TIED = {
    "transpose": two(lambda net: net.w, lambda net: net.w.t()),
    "the same": two(lambda net: net.w, lambda net: net.w),
    "multiple": two(lambda net: net.w, lambda net: 2 * net.w),
    "flip": two(lambda net: net.w, lambda net: net.w.flip(0)),
    "reshape": two(lambda net: net.w, lambda net: net.w.reshape(2, 8).reshape(4, 4)),
    "reversed axes, copied": two(lambda net: net.w, lambda net: net.w.permute(1, 0).contiguous()),
    "rows that overlap": two(lambda net: net.long[:4], lambda net: net.long[2:]),
    "a sum": two(lambda net: net.w, lambda net: net.w + net.v),
    "a concatenation": two(lambda net: torch.cat([net.w, net.v], 1)[:, ::2], lambda net: net.v),
    "two sums of two": two(lambda net: net.w + net.v, lambda net: net.w - net.v),
    "a common factor": two(lambda net: net.w * net.b, lambda net: net.v * net.b),
    "a bias of another layer": two(lambda net: net.w, lambda net: net.v, lambda net: (None, net.w[0])),
    "a bias of its own layer": two(lambda net: net.w, lambda net: net.v, lambda net: (None, net.v[:, 0])),
    "two biases": two(lambda net: net.w, lambda net: net.v, lambda net: (net.b, net.b)),
    "a buffer": two(lambda net: net.held, lambda net: net.held.t()),
    "a tensor that is neither": two(lambda net: net.plain, lambda net: net.plain.t()),
    "chunks of a concatenation": two(
        lambda net: torch.cat([net.w, net.v]).chunk(2)[0], lambda net: torch.cat([net.w, net.v]).chunk(2)[1]
    ),
    "rows repeated": two(lambda net: net.b.expand(4, 4), lambda net: net.v),
    "columns repeated": two(lambda net: net.w[:, [0, 0, 1, 1]], lambda net: net.v),
    "symmetric": two(lambda net: net.w + net.w.flip(-1), lambda net: net.v),
    "a cat of parts": two(
        lambda net: torch.cat([net.w[:, :1], net.w[:, 1:2], net.w[:, :1], net.w[:, 3:]], 1), lambda net: net.v
    ),
    "gathered": two(lambda net: net.w.gather(1, torch.zeros(4, 4).long()), lambda net: net.v),
    "hashed": two(lambda net: net.w[0][(torch.arange(16) * 7 % 3).view(4, 4)], lambda net: net.v),
    "chosen": two(lambda net: torch.where(net.held > 0, net.w, net.w.flip(1)), lambda net: net.v),
    "a part beside itself": two(lambda net: net.w, lambda net: torch.cat([net.v[:, :3], -2 * net.v[:, :1]], 1)),
    "windows": two(lambda net: net.w.view(16)[:7].unfold(0, 4, 1), lambda net: net.v),
    "a low rank": two(lambda net: net.w[:, :1] @ net.v[:1], lambda net: net.long[:4]),
}
FREE = {
    "rectified": two(lambda net: net.w.relu(), lambda net: net.v),
    "signs": two(lambda net: net.w.sign(), lambda net: net.v.clamp(-0.5, 0.5)),
    "logarithms": two(lambda net: net.w.abs().log(), lambda net: net.v.abs().sqrt()),
    "permuted": two(lambda net: net.w[[2, 0, 1, 3]][:, torch.tensor([3, 1, 0, 2])], lambda net: net.v.t().contiguous()),
    "a mask that is a parameter": two(lambda net: net.w * net.frozen, lambda net: net.v),
    "rows that do not overlap": two(lambda net: net.long[:4, :4], lambda net: net.long[4:]),
    "columns that do not overlap": two(lambda net: net.w[:, ::2].t()[:, :4], lambda net: net.w[:, 1::2].t()[:, :2]),
    "parts, then changed": two(lambda net: 2 * net.long[:4], lambda net: -net.long[4:].flip(0)),
    "chunks": two(lambda net: net.w.view(2, 8).chunk(2)[0].view(2, 4), lambda net: net.w.chunk(2)[1][:, :2]),
    "a mask that both have": two(lambda net: net.w * net.held, lambda net: net.v * net.held),
    "constants": two(lambda net: torch.ones(4, 4), lambda net: torch.ones(4, 4)),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if index % 2 else ()) for index, name in enumerate(TIED)],
)
def test_tied_weights_are_refused(name):
    net = Forward(TIED[name])
    for call in (partial(npk, bias="path"), npf, npv):
        with pytest.raises(ValueError, match=r"(uses a weight or bias of linear|are tied).*: give linear|of its own"):
            call(net, X)


ZEROS = {
    "a mask": (lambda net: net.w * (net.held > 0), r"\d+ of the 16 entries of the weight of linear"),
    "a triangle": (lambda net: net.w.tril(), "6 of the 16 entries of the weight of linear"),
    "padding": (lambda net: F.pad(net.w[:, :3], (0, 1)), "4 of the 16 entries of the weight of linear"),
    "blocks": (
        lambda net: torch.block_diag(net.w[:2, :2], net.w[2:, 2:]),
        "8 of the 16 entries of the weight of linear",
    ),
    "a mask that is a parameter": (lambda net: net.w * (net.frozen * (net.held > 0)), r"\d+ of the 16 entries of the"),
}


@pytest.mark.parametrize("name", ZEROS)
def test_weights_that_are_always_0_are_refused(name):
    weight, message = ZEROS[name]
    for call in (npk, npf, npv):
        with pytest.raises(ValueError, match=message + r".*are always 0 \(pruned.*npk_gram"):
            call(Forward(two(weight, lambda net: net.v)), X)


def test_pruned_layers_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    prune.random_unstructured(net[0], "weight", 0.25)
    with pytest.raises(ValueError, match="4 of the 16 entries of the weight of 0 are always 0"):
        npk(net, X)


def test_tied_biases_that_start_no_paths():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    plain = copy.deepcopy(net)
    net[2].bias = net[0].bias
    plain[2].bias.data.copy_(net[0].bias.data)
    for kernel in ("npk", "ntk"):
        assert_same_bits(npk(net, X, kernel=kernel), npk(plain, X, kernel=kernel))
    assert_same_bits(npf(net, X, bias="ignore"), npf(plain, X, bias="ignore"))
    with pytest.raises(ValueError, match="2 uses a weight or bias of 0: its bias and the bias of 0"):
        npk(net, X, bias="path")


@pytest.mark.parametrize("name", FREE)
def test_weights_of_their_own_are_not(name):
    net = Forward(FREE[name])
    phi = npf(net, X, bias="ignore")
    gram, exponent = npk(net, X, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(gram * 2.0**exponent, phi @ phi.T)


def test_the_kernel_of_parts_of_one_parameter_is_the_mean_over_its_signs():
    net = Forward(two(lambda net: net.fused[:6].view(3, 2), lambda net: net.fused[6:].view(1, 3)))
    net.fused = nn.Parameter(torch.randn(9).double())
    x = torch.randn(4, 2, dtype=torch.float64)
    gates = (x @ net.fused.detach()[:6].view(3, 2).T > 0).double()
    total = torch.zeros(4, 4, dtype=torch.float64)
    for signs in itertools.product((-1.0, 1.0), repeat=9):
        drawn = torch.tensor(signs, dtype=torch.float64)
        outputs = ((x @ drawn[:6].view(3, 2).T) * gates) @ drawn[6:]
        total += outputs[:, None] * outputs
    gram, exponent = npk(net, x, dtype=torch.float64, return_exponent=True)
    assert_close_in_float64(gram * 2.0**exponent, total / 2**9)


def test_modules_that_share_weights():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    net = nn.Sequential(first, nn.ReLU(), second)
    with pytest.raises(ValueError, match="model: 2 uses a weight or bias of 0: its weight and the weight of 0 share"):
        npk(net, X)
    second.weight = nn.Parameter(first.weight.data.t())
    with pytest.raises(ValueError, match="model: 2 uses a weight or bias of 0"):
        npk(nn.Sequential(first, nn.ReLU(), second), X)

    class Both(nn.Module):
        def __init__(self, source: nn.Linear) -> None:
            super().__init__()
            self.sources = [source]

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.sources[0].weight

    second = nn.Linear(4, 4)
    parametrize.register_parametrization(second, "weight", Both(first))
    with pytest.raises(ValueError, match=r"model: 2\.linear uses a weight or bias of 0"):
        npk(nn.Sequential(first, nn.ReLU(), second), X)


def test_weights_normed_each_by_its_own_parameters():
    layers = [weight_norm(nn.Linear(4, 4)), spectral_norm(nn.Linear(4, 4)), orthogonal(nn.Linear(4, 4))]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU(), nn.Linear(4, 1)).eval()
    found = npk(net, X)
    plain = nn.Sequential(*(nn.Linear(4, 4) if isinstance(layer, nn.Linear) else layer for layer in net[:-1]), net[-1])
    with torch.no_grad():
        for layer, other in zip(net, plain, strict=True):
            if isinstance(layer, nn.Linear):
                other.weight.copy_(layer.weight)
                other.bias.copy_(layer.bias)
    assert_same_bits(found, npk(plain, X))


def test_a_batch_norm_of_two_layers_has_one_shift():
    norm = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 1)).eval()
    npk(net, X)
    with pytest.raises(ValueError, match="model: 1#2 uses a weight or bias of 1: its shift and the shift of 1"):
        npk(net, X, bias="path")


def test_a_constant_added_twice_is_one_path_more_in_each_place():
    net = Forward(lambda net, x: F.linear((F.linear(x, net.w) + net.b) + (F.linear(x, net.v) + net.b), net.long))
    npk(net, X)
    with pytest.raises(ValueError, match=r"add#3 uses a weight or bias of add|add#2 uses a weight or bias of add"):
        npk(net, X, bias="path")


def test_overlap_is_exact():
    fused = torch.zeros(4, 6)
    parts = [fused[:, :3], fused[:, 3:], fused[1:3, 2:4], fused[::2], fused[1::2], fused.t()[5]]
    for a, b in itertools.product(parts, repeat=2):
        fused.zero_()
        a.fill_(1)
        assert Source(a, True).overlaps(Source(b, True)) == bool(b.any())
    assert not Source(torch.zeros(3), True).overlaps(Source(torch.zeros(3), True))


def test_what_weights_are_made_of():
    net = Forward(lambda net, x: F.linear(x, net.w * net.held, net.b[:4]))
    step = trace.steps(net, X)[1]
    assert [source.tensor is net.w for source in step.weight_made_of] == [True]
    assert step.bias_made_of[0].is_parameter
