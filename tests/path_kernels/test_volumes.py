"""npk of 3-d convolutions: the mean of f(s) f(s') over all weights of +1 and -1, which is exact, and the listing of
paths."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close_in_float64
from torch import Tensor, nn

from gatedops import npf, npk, npv, path_norm, trace

FLOAT64 = torch.float64


def volumes(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)


class Small(nn.Module):
    """Ten weights in three layers, so that all signs of its weights can be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 1, (2, 2, 1), padding=(1, 0, 1), stride=(1, 2, 1), bias=False)
        self.second = nn.Conv3d(1, 2, (1, 1, 2), dilation=(1, 1, 2), bias=False)
        self.head = nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor, gates: list[Tensor] | None = None) -> Tensor:
        first = self.first(x)
        first = first.relu() if gates is None else first * gates[0]
        second = self.second(first)
        second = second.relu() if gates is None else second * gates[1]
        return self.head(second.mean((2, 3, 4)))

    def gates(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first > 0, self.second(first.relu()) > 0]


def test_the_kernel_is_the_mean_over_all_signs():
    torch.manual_seed(1)
    net, x = Small().double().eval(), volumes(4, 1, 2, 4, 3)
    with torch.no_grad():
        gram, exponent = npk(net, x, dtype=FLOAT64, return_exponent=True)
        gates, weights = net.gates(x), list(net.parameters())
        total = torch.zeros(4, 4, dtype=FLOAT64)
        signs = list(itertools.product((-1.0, 1.0), repeat=sum(weight.numel() for weight in weights)))
        for drawn in signs:
            numbers = iter(drawn)
            for weight in weights:
                weight.copy_(torch.tensor([next(numbers) for _ in range(weight.numel())]).view_as(weight))
            f = net(x, gates)
            total += f @ f.T
    assert_close_in_float64(gram * 2.0**exponent, total / len(signs))


NETWORKS = {
    "strides": nn.Sequential(
        nn.Conv3d(2, 3, 2, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, (1, 2, 2), stride=(2, 1, 2))
    ),
    "groups": nn.Sequential(nn.Conv3d(2, 2, (2, 1, 3), padding="same", groups=2), nn.LeakyReLU(0.25)),
    "pixels": nn.Sequential(nn.Conv3d(2, 2, 1), nn.ReLU(), nn.Conv3d(2, 2, (1, 2, 1))),
    "averages": nn.Sequential(nn.Conv3d(2, 2, 1), nn.ReLU(), nn.AvgPool3d((1, 2, 2)), nn.Conv3d(2, 2, 1)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_listed_paths_give_the_output_and_the_kernel(name):
    torch.manual_seed(0)
    body, x = NETWORKS[name], volumes(3, 2, 2, 3, 3)
    inner = nn.Sequential(body, nn.ReLU()).double().eval()
    width = inner(x)[0].numel()
    net = nn.Sequential(inner, nn.Flatten(), nn.Linear(width, 1)).double().eval()
    gram, exponent = npk(net, x, dtype=FLOAT64, return_exponent=True)
    phi = npf(net, x, bias="ignore")
    assert_close_in_float64(gram * 2.0**exponent, phi @ phi.T)
    with torch.no_grad():
        assert_close_in_float64(npf(net, x) @ npv(net, x), net(x))
    assert abs(path_norm(net, 1, x) - _norm(net, x)) < 1e-9 * _norm(net, x)


def _norm(net: nn.Module, x: Tensor) -> float:
    """The path norm for p = 1: the network of absolute weights without gates, on ones."""
    z = torch.ones_like(x[:1])
    with torch.no_grad():
        for step in trace.steps(net, x)[1:]:
            match step:
                case trace.Conv3d():
                    bias = None if step.bias is None else step.bias.abs()
                    z = F.conv3d(
                        F.pad(z, step.padding), step.weight.abs(), bias, step.stride, 0, step.dilation, step.groups
                    )
                case trace.Linear():
                    z = F.linear(z, step.weight.abs(), step.bias.abs())
                case trace.BatchNorm():
                    # path_norm takes this norm as a part of the layer before it.
                    return _norm(_folded(net), x)
                case trace.Resample():
                    z = (step.rows @ z.flatten(2, 3) @ step.columns.T).view(1, *step.shape)
                case trace.Flatten():
                    z = z.flatten(1)
    return float(z.sum())


def _folded(net: nn.Module) -> nn.Module:
    (convolution, norm, *rest), relu = net[0][0], net[0][1]
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
    return nn.Sequential(nn.Sequential(nn.Sequential(folded, *rest), relu), net[1], net[2])


def test_steps_of_volumes_compute_the_network():
    net = nn.Sequential(nn.Conv3d(2, 3, 2, padding="same"), nn.ReLU(), nn.AdaptiveAvgPool3d((1, 2, 1)))
    x = volumes(2, 2, 2, 4, 3)
    convolution, gate, average = trace.steps(net.double().eval(), x)[1:]
    z = F.conv3d(F.pad(x, convolution.padding), convolution.weight, convolution.bias).relu()
    assert isinstance(gate, trace.Gate)
    z = (average.rows @ z.flatten(2, 3) @ average.columns.T).view(2, *average.shape)
    with torch.no_grad():
        assert_close_in_float64(z, net(x))
