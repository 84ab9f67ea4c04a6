"""npk, npf and npv are right for networks as people write them: every layer that kernels cover, in every form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import made
from strategies import generator
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor, nn

from gatedops import GatedLinear, fuse_relu, npf, npk, npv


class Forward(nn.Module):
    """A function as a network, with layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.other, self.fc = nn.Conv2d(2, 3, 2), nn.Conv2d(3, 3, 1), nn.Linear(3, 2)
        self.register_buffer("shift", torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def head(*layers: nn.Module, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def conv(*args, **options) -> nn.Conv2d:
    return nn.Conv2d(2, 3, *args, **options)


IMAGES = {
    "same padding of an even kernel": head(conv((2, 4), padding="same"), nn.ReLU()),
    "strides and dilations of two kinds": head(conv((2, 3), (2, 1), (1, 2), (1, 2)), nn.ReLU(inplace=True)),
    "circular with a stride": head(conv(3, 2, (1, 2), padding_mode="circular"), nn.ReLU()),
    "padding as a layer": head(nn.ZeroPad2d((1, 0, 2, 1)), conv(3), nn.ReLU()),
    "max-pool, windows that end outside": head(conv(2), nn.ReLU(), nn.MaxPool2d((2, 3), (2, 3), ceil_mode=True)),
    "max-pool, dilated": head(conv(2), nn.ReLU(), nn.MaxPool2d(2, 1, dilation=(2, 1)), nn.Conv2d(3, 3, 1), nn.ReLU()),
    "average pool, windows that end outside": head(conv(2), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)),
    "average pool with a divisor": head(conv(2), nn.ReLU(), nn.AvgPool2d((1, 2), 1, divisor_override=3)),
    "average pool of three parts": nn.Sequential(
        conv((3, 1)), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten(), nn.Linear(9, 2)
    ),
    "average pool of a skip's input": Forward(
        lambda net, x: net.fc((net.other(z := F.avg_pool2d(net.conv(x), 2)) + z).relu().mean((2, 3)))
    ),
    "fused convolution": fuse_relu(head(conv(2), nn.ReLU())),
    "dropout": head(conv(2), nn.Dropout2d(), nn.ReLU(), nn.Dropout()),
    "batch norm of a layer with a bias": head(conv(2), nn.BatchNorm2d(3), nn.ReLU()),
    "batch norm without weights": head(conv(2, bias=False), nn.BatchNorm2d(3, affine=False), nn.ReLU()),
    "a kernel as large as the image": nn.Sequential(conv((5, 6)), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten()),
    "minus a constant": Forward(lambda net, x: net.fc((net.conv(x - 0.5) - net.shift).relu().mean([-1, -2]))),
    "a mean that keeps its axes": Forward(lambda net, x: net.other(net.conv(x).relu().mean((2, 3), keepdim=True))),
    "max-pool of a sum": Forward(
        lambda net, x: net.fc(F.max_pool2d(net.other(z := net.conv(x).relu()).relu() + z, 2).mean((2, 3)))
    ),
    "gates behind a max-pool": Forward(
        lambda net, x: net.fc((net.other(z := F.max_pool2d(net.conv(x), 2, 1)) + z).relu().mean((2, 3)))
    ),
    "a constant behind an addition": Forward(
        lambda net, x: net.fc((net.other(z := net.conv(x).relu()) + z + net.shift).relu().mean((2, 3)))
    ),
}
VECTORS = {
    "gated linear": nn.Sequential(GatedLinear(6, 5), GatedLinear(5, 4), nn.Linear(4, 2)),
    "batch norm of vectors": nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
    "one gate twice": nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.ReLU(), nn.Linear(4, 2)),
    "a gate on the input": nn.Sequential(nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)),
    "no hidden layer": nn.Linear(6, 3),
    "fused": fuse_relu(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))),
}


@torch.no_grad()
def ready(net: nn.Module) -> nn.Module:
    """Makes the network in evaluation mode and float64, with seeded weights and batch norms with their own
    statistics."""
    random = generator(0)
    for parameter in net.parameters():
        parameter.normal_(generator=random)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
    return net.double().eval()


@pytest.mark.parametrize("name", [*IMAGES, *VECTORS])
def test_output_and_kernel_are_those_of_the_paths(name, exported_once):
    net, shape = (IMAGES[name], (2, 5, 6)) if name in IMAGES else (VECTORS[name], (6,))
    net, x = ready(net), torch.randn(4, *shape, generator=generator(1), dtype=torch.float64)
    features = npf(net, x)
    with torch.no_grad():
        assert_close_in_float64(features @ npv(net, x), net(x).flatten(1))
    for bias, phi in (("path", features), ("ignore", npf(net, x, bias="ignore"))):
        gram, exponent = npk(net, x, bias=bias, dtype=torch.float64, return_exponent=True)
        assert_close_in_float64(gram * 2.0**exponent, phi @ phi.T)


def test_gates_do_not_depend_on_the_batch(exported_once):
    net, x = made("vgg", 7)
    assert_same_bits(npk(net, x, batch_size=2), npk(net, x))


def test_the_model_is_left_as_it_was():
    net, x = made("resnet", 2)
    net.fc.train()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    npk(net, x)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
