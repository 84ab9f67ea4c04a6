"""Bad arguments of npk, npf, npv and path_norm raise an error that names what is wrong, before any work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import made, mlp, vgg
from torch import Tensor, nn

import gatedops
from gatedops import npf, npk, npv

MLP = mlp().double()
X, IMAGES = torch.ones(3, 6), torch.ones(2, 2, 4, 4)


class Forward(nn.Module):
    """A function as a network, with layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.fc = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(6, 6)
        self.head, self.images = nn.Linear(6, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def fails(kind: type[Exception], message: str, *args, call=npk, **options) -> None:
    with pytest.raises(kind) as raised:
        call(*args, **options)
    assert message in str(raised.value)


@pytest.fixture
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes recording gates fail, because the work starts with it."""
    monkeypatch.setattr(gatedops.path_kernels.network, "record_gates", None)


pytestmark = pytest.mark.usefixtures("_no_work", "exported_once")


def test_options():
    net = mlp()
    fails(ValueError, "kernel: got 'nngp', needs 'npk' or 'ntk'", net, X, kernel="nngp")
    fails(ValueError, "bias: got None, needs 'ignore' or 'path'", net, X, bias=None)
    fails(ValueError, "bias: got True, needs 'ignore' or 'path'", net, X, call=npf, bias=True)
    fails(ValueError, "bias: got 'no', needs 'ignore' or 'path'", net, X, call=npv, bias="no")
    fails(TypeError, "dtype: got torch.float16, needs torch.float32 or torch.float64", net, X, dtype=torch.float16)
    fails(ValueError, "batch_size: got 0, needs a whole number of at least 1", net, X, batch_size=0)
    fails(TypeError, "model: got function, needs a torch.nn.Module", F.relu, X)
    for sigma in (0, -1.0, float("nan"), float("inf"), [1, 0, 1]):
        fails(ValueError, "sigma: got", net, X, sigma=sigma)
    fails(
        ValueError,
        "sigma: got 2 numbers, needs one, or one for each of the layers ['0', '2', '4']",
        net,
        X,
        sigma=[1, 1],
    )
    fails(TypeError, "sigma: got 'big', needs a number or a list of numbers", net, X, sigma="big")


def test_inputs():
    net = mlp()
    fails(TypeError, "x: got list, needs a tensor or a numpy array", net, [1.0])
    fails(TypeError, "y: got list, needs a tensor", net, X, [1.0])
    fails(TypeError, "x: got torch.complex64, needs real numbers", net, X + 1j)
    fails(ValueError, "x: got shape (6,), needs (n, d) or (n, C, H, W)", net, X[0])
    fails(ValueError, "x: got shape (0, 6), which holds no numbers; give at least one row", net, X[:0])
    fails(ValueError, "y: got shape (0, 6), which holds no numbers", net, X, X[:0])
    fails(ValueError, "y: has inputs (5,) of torch.float32 on cpu, x has (6,) of torch.float32", net, X, X[:, :5])
    other_size = torch.ones(2, 2, 4, 5)
    fails(ValueError, "give both the same shape, dtype and device", nn.Conv2d(2, 1, 1), IMAGES, other_size)
    fails(ValueError, "y: has inputs (6,) of torch.float64", net, X, X.double())


@pytest.mark.parametrize(
    ("factor", "dtype", "message"),
    [
        (float("inf"), torch.float32, "x: has infinite values or NaN, needs finite numbers"),
        (float("nan"), torch.float32, "x: has infinite values or NaN, needs finite numbers"),
        (1e16, torch.float32, "products of 6 of them overflow torch.float32; divide the inputs by a constant or use"),
        (1e-17, torch.float32, "whose products vanish in torch.float32; multiply the inputs by a constant or use"),
        (1e160, torch.float64, "products of 6 of them overflow torch.float64; divide the inputs by a constant"),
    ],
)
def test_values_that_overflow(factor, dtype, message):
    x = X.double()
    fails(ValueError, message, MLP, x * factor, dtype=dtype)
    fails(ValueError, message.replace("x:", "y:"), MLP, x, x * factor, dtype=dtype)
    if not x.mul(factor).isfinite().all():
        fails(ValueError, message, MLP, x * factor, call=npf)


def test_training_mode():
    fails(ValueError, "0.1 (BatchNorm2d) is in training mode; call model.eval() first", vgg(), made("vgg", 1)[1])
    dropout = nn.Sequential(nn.Linear(6, 2), nn.Dropout(), nn.ReLU(), nn.Linear(2, 1))
    fails(ValueError, "1 (Dropout) is in training mode; call model.eval() first", dropout, X)


@pytest.mark.parametrize(
    ("function", "x", "message"),
    [
        (lambda net, x: net.fc(F.gelu(x)), X, "gelu in the model (Forward)"),
        (lambda net, x: net.head(net.fc(x).relu()).relu(), X, "ends with relu#2; path kernels need a Linear"),
        (lambda net, x: net.conv(x), IMAGES, "ends with images at conv"),
        (
            lambda net, x: net.conv(x).relu().mean((2, 3)),
            IMAGES,
            "ends with mean; path kernels need a Linear",
        ),
        (lambda net, x: net.conv(x).mean(1), IMAGES, "mean is a mean over axes (0,), but path kernels need one"),
        (lambda net, x: net.images(net.conv(x).mean(3).mean(2)), IMAGES, "mean is a mean over axes (2,)"),
        (
            lambda net, x: F.linear(x, torch.ones(3, 4)),
            IMAGES,
            "linear is a Linear layer on (2, 4, 4)",
        ),
        (lambda net, x: net.head(net.fc(net.fc(x).relu())), X, "fc#2 uses a weight or bias of fc"),
        (lambda net, x: net.images(net.conv(x).relu().mean((2, 3)).relu()), IMAGES, "relu#2 acts on sums over pixels"),
        (lambda net, x: net.head(x + x), X, "add adds two outputs that both carry input"),
        (lambda net, x: net.head((z := net.fc(x)) + z.relu()), X, "add adds two outputs that both carry fc"),
    ],
)
def test_networks_that_no_rule_covers(function, x, message):
    fails(ValueError, message, Forward(function), x)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(2, 2, 1, groups=2), nn.ReLU()], "model: 0 has 2 groups; path kernels cover only groups=1"),
        (
            [nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)],
            "model: 2 is a batch norm behind 1",
        ),
        ([nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)], "model: 0 is a batch norm behind input; path kernels cover it"),
        (
            [nn.Conv2d(2, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2)],
            "model: 3 pools the output of another",
        ),
        ([nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)], "model: 3 acts on sums over pixels"),
        ([nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.ReLU()], "model: 3 acts on sums over pixels"),
        ([nn.Conv2d(2, 2, 1, padding=1, padding_mode="reflect")], "reflect padding"),
    ],
)
def test_layers_that_no_rule_covers(layers, message):
    flat = any(isinstance(layer, nn.Flatten) for layer in layers)
    head = [nn.Linear(32, 1)] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)]
    fails(ValueError, message, nn.Sequential(*layers, *head).eval(), IMAGES)


def test_a_relu_that_the_output_does_not_depend_on(monkeypatch):
    monkeypatch.undo()
    unused = Forward(lambda net, x: (x.relu(), net.head(net.fc(x).relu()))[1])
    message = "model: calls the ReLUs and max-pools ['relu', 'relu#2'], but its output depends on ['relu']"
    fails(ValueError, message, unused, X)


def test_too_many_paths():
    net, x = made("resnet", 2)
    fails(ValueError, "paths to each unit of block2.conv1", net, x, call=npf)
    fails(ValueError, "can be listed, so take a smaller network or fewer inputs", net, x, call=npv)
    fails(ValueError, "x: is missing, and no vector or square image was found", nn.ReLU(), call=npv)
