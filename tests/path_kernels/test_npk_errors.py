"""Bad arguments of npk, npf, npv and path_norm raise an error that names what is wrong, before any work."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from nets import made, mlp, vgg
from torch import Tensor, nn

import gatedops
from gatedops import npf, npk, npv

MLP = mlp().double()
X, IMAGES, TOKENS = torch.ones(3, 6), torch.ones(2, 2, 4, 4), torch.ones(2, 4, 2)


class Forward(nn.Module):
    """A function as a network, with layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.other = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.depthwise, self.norm = nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.BatchNorm2d(2)
        self.fc, self.head, self.images = nn.Linear(6, 6), nn.Linear(6, 2), nn.Linear(2, 2)
        self.tokens, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(2, 1, batch_first=True)

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
    for most in ("a", -1, float("nan"), True):
        fails(ValueError, "max_work: got", net, X, max_work=most)
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
    fails(
        ValueError,
        "x: got shape (6,), needs (n, d), (n, T, d), (n, C, T), (n, C, H, W) or (n, C, D, H, W); x[None]",
        net,
        X[0],
    )
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


GATES_ALONE = "npk_gram(x.flatten(1), record_gates(model, x)) gives the kernel of its gates alone"
OWN_WEIGHT = "path kernels need independent weights: give {} a weight of its own, such as a copy.deepcopy of the layer"
LAYER_BETWEEN = "path kernels need a Linear or Conv2d layer between the two: put one there"
ONE_SIDE = "put a layer into one of the two"


@pytest.mark.parametrize(
    ("function", "x", "message", "remedy"),
    [
        (lambda net, x: net.fc(F.gelu(x)), X, "gelu in the model (Forward)", "put nn.ReLU in its place"),
        (
            lambda net, x: net.head(net.fc(x).relu()).relu(),
            X,
            "ends with relu#2; path kernels need a Linear or Conv2d layer at the end",
            "add one, as in npk(nn.Sequential(model, nn.Linear(2, 1)), x)",
        ),
        (
            lambda net, x: net.conv(x).relu().mean((2, 3)),
            IMAGES,
            "ends with mean; path kernels need a Linear or Conv2d layer at the end",
            "add one, as in npk(nn.Sequential(model, nn.Linear(2, 1)), x)",
        ),
        (
            lambda net, x: net.conv(x),
            IMAGES,
            "ends with images at conv; path kernels need outputs without pixels",
            "add a layer, as in npk(nn.Sequential(model, nn.Flatten(), nn.Linear(32, 1)), x)",
        ),
        (lambda net, x: net.conv(x).mean(1), IMAGES, "mean is a mean over axes (0,), channels", "x.mean((2, 3))"),
        (
            lambda net, x: net.images(net.tokens(net.conv(x)).mean((2, 3))),
            IMAGES,
            "tokens is a Linear layer over axis 3 of (n, 2, 4, 4), which holds positions",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.images(net.tokens(x.transpose(1, 2)).relu().mean(2)),
            TOKENS,
            "tokens is a Linear layer over axis 2 of (n, 2, 4), which holds positions",
            GATES_ALONE,
        ),
        (lambda net, x: net.head(x * net.fc(x)), X, "is a product of two signals", GATES_ALONE),
        (
            lambda net, x: net.images((x * net.images(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))),
            IMAGES,
            "is a product of two signals",
            GATES_ALONE,
        ),
        (lambda net, x: net.images(F.glu(net.fc(x))[:, :2]), X, "glu in the model (Forward)", GATES_ALONE),
        (
            lambda net, x: net.images(net.attention(x, x, x)[0].mean(1)),
            TOKENS,
            "in attention (MultiheadAttention)",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.images(F.scaled_dot_product_attention(x, x, x).mean(1)),
            TOKENS,
            "is attention, a product of two signals",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.head(F.layer_norm(net.fc(x), (6,))),
            X,
            "is a norm by statistics of the input",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.images(F.group_norm(net.conv(x), 1).mean((2, 3))),
            IMAGES,
            "is a norm by statistics of the input itself",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.images(F.instance_norm(net.conv(x)).mean((2, 3))),
            IMAGES,
            "instance_norm in the model (Forward)",
            GATES_ALONE,
        ),
        (
            lambda net, x: F.conv2d(F.pixel_shuffle(torch.cat([net.conv(x), x], 1), 2), torch.ones(1, 1, 8, 8)).flatten(
                1
            ),
            IMAGES,
            "pixel_shuffle moves numbers between channels and pixels, as a pixel shuffle does",
            GATES_ALONE,
        ),
        (
            lambda net, x: net.head(net.fc(net.fc(x).relu())),
            X,
            "fc#2 uses a weight or bias of fc",
            OWN_WEIGHT.format("fc#2"),
        ),
        (
            lambda net, x: F.linear(net.fc(x).relu(), net.fc.weight.T),
            X,
            "linear uses a weight or bias of fc",
            OWN_WEIGHT.format("linear"),
        ),
        (lambda net, x: net.head(x + x), X, "add adds two outputs that both carry input", ONE_SIDE),
        (lambda net, x: net.head((z := net.fc(x)) + z), X, "add adds two outputs that both carry fc", ONE_SIDE),
        (lambda net, x: net.head((z := net.fc(x)) + z.relu()), X, "add adds two outputs that both carry fc", ONE_SIDE),
        (
            lambda net, x: net.images((net.conv(x) + net.norm(net.other(x).relu())).mean((2, 3))),
            IMAGES,
            "add adds two outputs, and no layer stands between it and norm, whose scale only one of the two has",
            "put a layer there, or replace it by nn.Identity()",
        ),
        (
            lambda net, x: net.images(net.depthwise(F.avg_pool2d(net.conv(x).relu(), 2)).mean((2, 3))),
            IMAGES,
            "depthwise has groups of channels, but reads sums over channels (an average behind gates",
            "path kernels need a Linear or Conv2d layer without groups between the two: put one there",
        ),
        (
            lambda net, x: net.images(F.max_pool2d(F.avg_pool2d(net.conv(x).relu(), 2), 2).mean((2, 3))),
            IMAGES,
            "max_pool2d acts on sums over channels",
            LAYER_BETWEEN,
        ),
        (
            lambda net, x: F.linear(net.conv(x).relu().flatten(1).relu(), torch.ones(1, 32)),
            IMAGES,
            "relu#2 acts on sums over channels (an average behind gates, flattened images",
            LAYER_BETWEEN,
        ),
        (
            lambda net, x: net.images(F.max_pool2d(net.depthwise(net.conv(x).relu()), 2).mean((2, 3))),
            IMAGES,
            "max_pool2d is a max-pool behind a depthwise convolution",
            "path kernels need a layer that mixes channels between the two: put one there",
        ),
    ],
)
def test_networks_that_no_rule_covers(function, x, message, remedy):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        npk(Forward(function).eval(), x)
    assert remedy in str(raised.value)


def test_networks_that_one_argument_refuses():
    net = Forward(lambda net, x: net.head(F.relu6(net.fc(x))))
    fails(ValueError, 'constant above 6, and no path carries that constant; use bias="ignore"', net, X, bias="path")
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1))
    with pytest.raises(ValueError, match=r"takes about .* of them for 0, and max_work allows 1.0e\+01; give smaller"):
        npk(net, IMAGES, max_work=10)


def test_a_relu_that_the_output_does_not_depend_on(monkeypatch):
    monkeypatch.undo()
    unused = Forward(lambda net, x: (x.relu(), net.head(net.fc(x).relu()))[1])
    message = "model: calls the activations and max-pools ['relu', 'relu#2'], but its output depends on ['relu']"
    fails(ValueError, message, unused, X)


def test_too_many_paths():
    net, x = made("resnet", 2)
    fails(ValueError, "paths to each unit of block2.conv1", net, x, call=npf)
    fails(ValueError, "can be listed, so take a smaller network or fewer inputs", net, x, call=npv)
    fails(ValueError, "x: is missing, and no vector or square image was found", nn.ReLU(), call=npv)
