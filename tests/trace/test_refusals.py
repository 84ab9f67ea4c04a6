"""Every refusal of npk, npf, path_norm and ntk names the layer and says one thing that can be done."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

from gatedops import DGN, gated_twin, npf, npk, ntk, path_norm, trace

X, IMAGES = torch.randn(3, 4), torch.randn(3, 2, 4, 4)
GATES = r"npk_gram\(x.flatten\(1\), record_gates\(model, x\)\) gives the kernel of its gates alone, Sigma \* Lambda"


class Forward(nn.Module):
    """A function as a network, with layers to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.wide = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3)
        self.fc, self.other, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 1)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def pooled(function):
    """A network that takes images through the function, averages them and gives them to a layer."""
    return lambda net, x: net.head(function(net, x).mean((2, 3)))


# Each entry says what the net does and on which inputs, the layer that the error names, and what to do about it.
STEPS = {
    "not understood": (lambda net, x: net.other(net.fc(x).sigmoid()), X, "sigmoid in the model", GATES),
    "times a signal": (lambda net, x: net.other(x * net.fc(x)), X, "mul in the model", GATES),
    "softmax": (lambda net, x: net.other(net.fc(x).softmax(1)), X, "softmax in the model", GATES),
    "weights of the input": (lambda net, x: F.linear(x, net.fc(x)), torch.randn(4, 4), "linear in the model", GATES),
    "statistics of the input": (pooled(lambda net, x: F.instance_norm(x)), IMAGES, "instance_norm in", GATES),
    "random": (lambda net, x: net.fc(x + torch.rand(4)), X, "rand in the model", "draw the numbers once"),
    "dropout": (lambda net, x: net.fc(F.dropout(x)), X, "dropout in the model", "pass training=self.training"),
    "alpha dropout": (
        lambda net, x: net.fc(F.alpha_dropout(x, 0.5, True)),
        X,
        "dropout in",
        "pass training=self.training",
    ),
    "batch statistics": (
        pooled(lambda net, x: F.batch_norm(net.conv(x), None, None, training=True)),
        IMAGES,
        "batch_norm in the model",
        "give it running statistics",
    ),
    "padding": (pooled(lambda net, x: F.pad(x, (1, 1, 1, 1), value=1.0)), IMAGES, "pad in", "pad with zeros"),
    "a stack": (lambda net, x: torch.stack([net.fc(x), x], 1), X, "stack in the model", "write it as torch.cat"),
    "a constant part": (lambda net, x: torch.cat([net.fc(x), torch.ones(len(x), 1)], 1), X, "cat in", "F.pad"),
    "a matrix": (lambda net, x: net.fc.weight @ net.fc(x)[..., None], X, "matmul in", "write it as F.linear"),
    "attention": (lambda net, x: F.scaled_dot_product_attention(*[x[:, None]] * 3), X, "attention in", GATES),
    "a dtype": (lambda net, x: net.fc(x).double(), X, "to_copy in", "model.to(torch.float32)"),
    "a mean over the inputs": (lambda net, x: net.fc(x) - x.mean(0), X, "mean in", "x.mean((2, 3))"),
    "two shapes": (lambda net, x: net.fc(x)[:, None] + x[:, :1], X, "add in", "give both terms the same number"),
    "a number each": (
        lambda net, x: net.fc(x) + torch.arange(len(x)).float()[:, None],
        X,
        "add in",
        "give all inputs the same constant",
    ),
    "a shape": (lambda net, x: net.head(net.fc(x).mean(1, True) + torch.ones(2)), X, "add in", "give the constant"),
    "inputs elsewhere": (lambda net, x: net.head(x.t()), X, "linear in head", "keep them along the first axis"),
    "inputs mixed": (lambda net, x: net.fc(x.flip(0)), X, "flip in the model", "keep the inputs as the first axis"),
    "several outputs": (lambda net, x: (net.fc(x), net.other(x)), X, "returns", "choose one by output="),
    "no output": (lambda net, x: str(net.fc(x)), X, "returns str", "wrap it in a module"),
    "a branch on values": (lambda net, x: net.fc(x) if x.sum() > 0 else x, X, "torch.export does not follow it", GATES),
}
KERNELS = {
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1, groups=2), Averaged()),
        IMAGES,
        "0.3 has groups of channels, but reads sums",
        "put one there",
    ),
    "tokens": (lambda: Mixer(), IMAGES[:, 0], "0.across is a Linear layer over axis 2", "flatten its input"),
    "pixel shuffle": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1), Averaged()),
        IMAGES,
        "0.2 moves numbers between channels and pixels",
        GATES,
    ),
    "a mean": (lambda: Forward(lambda net, x: net.conv(x).mean(1)), IMAGES, "0.mean is a mean", "use x.mean((2, 3))"),
    "a norm of one branch": (
        lambda: Forward(pooled(lambda net, x: net.conv(x) + net.bn(x.relu()))),
        IMAGES,
        "0.add adds two outputs, and no layer stands between it and 0.bn",
        "put a layer there",
    ),
    "no pixels": (lambda: nn.Conv2d(2, 3, 3), IMAGES, "images at 0", "nn.Flatten(), nn.Linear(12, 1)), x)"),
    "a gate": (lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()), X, "ends with 0.1", "nn.Linear(3, 1)), x)"),
    "pools": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), *(nn.MaxPool2d(2, 1) for _ in range(3)), Averaged()),
        IMAGES,
        "0.3 is a max-pool behind a depthwise convolution or two other max-pools",
        "put one there",
    ),
    "sums": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(32, 1)),
        IMAGES,
        "0.3 acts on sums",
        "put one there",
    ),
    "one layer in two": (lambda: Forward(lambda net, x: net.fc(x) + x + x), X, "0.add#2 adds", "put a layer into one"),
    "tied": (lambda: Forward(lambda net, x: net.fc(net.fc(x).relu())), X, "0.fc#2 uses", "give 0.fc#2 a weight"),
    "unused gates": (
        lambda: Forward(lambda net, x: (x.relu(), net.other(net.fc(x).relu()))[1]),
        X,
        "calls the activations and max-pools ['0.relu', '0.relu#2']",
        "remove the others",
    ),
    "lazy": (lambda: nn.LazyLinear(3), X, "0 (LazyLinear) has no weights yet", "call model(x) once"),
    "training": (lambda: nn.Dropout().train(), X, "0 (Dropout) is in training mode", "call model.eval() first"),
}


class Mixer(nn.Module):
    """Tokens (T, d), and a Linear layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.across, self.head = nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.across(self.along(x).relu().mT).relu().flatten(1))


class Averaged(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, None])[0][:, -1])


class Cell(nn.GRUCell):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


NTK = {
    **{
        kind.__name__: (Recurrent(kind), X, f"0.rnn ({kind.__name__})", "nn.Linear")
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    },
    "a cell": (Cell(4, 3), X, "0 (Cell)", "nn.Linear"),
    "F.dropout": (Forward(STEPS["dropout"][0]), X, "0 (Forward) draws random", "call model.eval() first"),
    "F.alpha_dropout": (Forward(STEPS["alpha dropout"][0]), X, "0 (Forward) draws random", "call model.eval() first"),
    "torch.rand": (Forward(STEPS["random"][0]), X, "0 (Forward) draws random", "draw them once"),
    "rrelu": (Forward(lambda net, x: F.rrelu(net.fc(x), training=True)), X, "0 (Forward) draws", "model.eval() first"),
    "instance norm": (
        nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True).train(), nn.Flatten(), nn.Linear(32, 1)),
        IMAGES,
        "0.0 (InstanceNorm2d) is in training",
        "call model.eval() first",
    ),
    "F.batch_norm": (Forward(STEPS["batch statistics"][0]), IMAGES, "0 (Forward) uses statistics", "model.eval()"),
    "a mean over rows": (Forward(lambda net, x: net.fc(x - x.mean(0))), X, "the row beside it", "for each row"),
    "a softmax over rows": (Forward(lambda net, x: net.fc(x).softmax(0)), X, "the row beside it", "for each row"),
    "no rule": (
        Forward(lambda net, x: net.fc(x) * float(net.fc(x).sum() ** 0)),
        X,
        "through 0 (Forward)",
        "ntk(nn.Sequential(*list(model)[:k]), x)",
    ),
}


def refused(call, net: nn.Module, x: Tensor, layer: str, remedy: str) -> None:
    modes = [module.training for module in net.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    with pytest.raises((ValueError, TypeError)) as raised:
        call(net, x)
    message = str(raised.value)
    assert message.startswith("model: ")
    assert layer in message
    assert re.search(remedy, message) if remedy == GATES else remedy in message, message
    assert "\n" not in message
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()] == hooks


@pytest.mark.parametrize("name", STEPS)
def test_steps(name):
    function, x, layer, remedy = STEPS[name]
    refused(trace.steps, Forward(function).eval(), x, layer, remedy)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    make, x, layer, remedy = KERNELS[name]
    net = nn.Sequential(make())
    if name != "training":
        net.eval()
    refused(npk, net, x, layer, remedy)
    refused(npf, net, x, layer, remedy)


@pytest.mark.parametrize("name", NTK)
def test_tangent_kernels(name):
    net, x, layer, remedy = NTK[name]
    net = nn.Sequential(net)
    if name != "instance norm":
        net.eval()
    refused(ntk, net, x, layer, remedy)


def test_path_norms():
    net = Forward(lambda net, x: net.conv(x).mean(1)).eval()
    with pytest.raises(ValueError, match=r"mean is a mean over axes \(0,\), channels included; .*use x.mean"):
        path_norm(net, 2, IMAGES)


@pytest.mark.parametrize("call", [npk, npf, ntk, lambda net, x: path_norm(net, 2, x), trace.steps])
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.Linear(4, 2), X[:, :3]),
        (nn.Linear(4, 2), torch.randn(3, 2, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(), nn.Linear(4, 1)), IMAGES[:, :1]),
        (nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(), nn.Linear(4, 1)), torch.randn(3, 2, 5, 5)),
        (nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(), nn.Linear(4, 1)), X),
        (nn.Sequential(nn.Conv2d(2, 1, 3), nn.Flatten(), nn.Linear(4, 1)), IMAGES.double()),
    ],
)
def test_inputs_that_a_model_does_not_take(call, net, x):
    if call is ntk and x.dtype == torch.float64:
        ntk(net, x)  # ntk converts the inputs
        return
    name = "example" if call is trace.steps else "x"
    with pytest.raises((ValueError, TypeError)) as raised:
        call(net, x)
    message = str(raised.value)
    assert message.startswith(f"{name}: ")
    assert str(tuple(x.shape)) in message or str(x.dtype) in message
    assert "\n" not in message


OTHERS = {
    "clamp from below": lambda q: q.clamp(-1),
    "where with a slope": lambda q: torch.where(q > 0, q, 0.1 * q),
    "a mask above 1": lambda q: q * (q > 1),
    "maximum of two": lambda q: torch.maximum(q, 2 + q),
    "gelu": F.gelu,
}


@pytest.mark.parametrize("name", OTHERS)
def test_activations_that_are_no_steps(name):
    net = Forward(lambda net, x: net.other(OTHERS[name](net.fc(x)))).eval()
    refused(trace.steps, net, X, "in the model (Forward)", "put nn.ReLU in its place")


def test_path_norms_do_not_offer_gates():
    for function in (lambda net, x: net.other(net.fc(x).sigmoid()), lambda net, x: net.fc(x) if x.sum() > 0 else x):
        with pytest.raises(ValueError, match="take the norm of the part before it") as raised:
            path_norm(Forward(function), 2, X)
        assert "npk_gram" not in str(raised.value)
    with pytest.raises(ValueError, match=r"x: got shape \(3, 4, 1, 1, 1, 1\).*flatten them$"):
        path_norm(nn.Linear(4, 1), 2, X[..., None, None, None, None])


def test_inputs_of_other_kinds():
    net = nn.Linear(4, 1)
    for x, message in (
        ((X, X), "x: got tuple, needs .*; wrap the model in a module that takes one tensor"),
        ({"x": X}, "x: got dict, needs .*; wrap the model in a module that takes one tensor"),
        (X[0], r"x: got shape \(4,\), needs .*; x\[None\] makes a batch of one input$"),
        (X[:, None, None, None, None], r"x: got shape \(3, 1, 1, 1, 1, 4\), needs .*; for more axes, " + GATES),
        (X[:0], r"x: got shape \(0, 4\), which holds no numbers; give at least one row"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            npk(net, x)


def test_two_networks_in_one():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"model: is a GatedTwin, .*: npk\(model.feature, x\)"):
        npk(gated_twin(net), X)
    with pytest.raises(ValueError, match=r"model: 0 is a DGN, .*: npk\(model.0.feature, x\)"):
        npf(nn.Sequential(DGN(net)), X)


class Autocast(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def test_no_lines_of_code_that_torch_makes():
    with pytest.raises(ValueError, match="in the model") as raised:
        npk(Autocast(4, 1), X)
    assert "eval_with_key" not in str(raised.value)


class Checkpointed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_remedies_of_tangent_kernels():
    for norm in (spectral_norm, torch.nn.utils.spectral_norm):
        net = nn.Sequential(norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 1))
        with pytest.raises(ValueError, match="spectral norm in training mode, which each call updates; call"):
            ntk(net, X)
    for returned in (lambda net, x: (x, x), lambda net, x: {"y": net.fc(x)}, lambda net, x: net.fc(x).sum()):
        with pytest.raises(ValueError, match="let it return one such tensor"):
            ntk(Forward(returned).eval(), X)
    with pytest.raises(ValueError, match="switch checkpointing off"):
        ntk(Checkpointed(nn.Linear(4, 3)), X)
    with pytest.raises(ValueError, match="take the tangent kernel of a module without that part"):
        ntk(Forward(NTK["no rule"][0].function).eval(), X)
