"""npk, npf, npv and path_norm give the same for a plain net and for equal nets as others write them: wrapped, compiled,
in other memory formats, with calls on weights or additions of 0, on numpy arrays and on whole numbers."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gatedops import npf, npk, npv, ntk, path_norm, trace

pytestmark = pytest.mark.usefixtures("exported_once")

RANDOM = torch.Generator().manual_seed(0)
X, IMAGES = torch.randn(3, 5, generator=RANDOM), torch.randn(3, 3, 8, 8, generator=RANDOM)


def some(table: dict[str, object], *fast: str) -> list[object]:
    """Returns the names of a table, and marks all but a few as slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in table]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 2))


def cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))


@pytest.fixture
def _one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_same_kernels(net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    assert [step.name for step in trace.steps(net, x)] == [step.name for step in trace.steps(plain, x)]
    assert_same_bits(npk(net, x), npk(plain, x))
    assert_same_bits(npf(net, x), npf(plain, x))
    assert_same_bits(npv(net), npv(plain))
    assert path_norm(net, 2) == path_norm(plain, 2)
    for part, kernel in ntk(plain, x).items():
        assert_same_bits(ntk(net, x)[part], kernel)


@pytest.mark.parametrize("wrap", [torch.compile, DataParallel, DistributedDataParallel])
@pytest.mark.usefixtures("_one_process")
def test_wrapped_nets_and_parts(wrap):
    plain = mlp()
    assert_same_kernels(wrap(plain), plain, X)
    net = copy.copy(plain)
    net._modules = dict(plain._modules)
    part = net[2] = wrap(plain[2])
    assert_same_kernels(wrap(net), plain, X)
    assert net[2] is part


def test_a_forward_that_reaches_through_a_wrapper():
    class Reaches(nn.Module):
        def __init__(self, part: nn.Module, last: nn.Module) -> None:
            super().__init__()
            self.part, self.last = DataParallel(part), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.part.module(x))

    plain = nn.Sequential(mlp()[0], nn.ReLU(), nn.Linear(6, 1))
    net = Reaches(plain[:2], plain[2])
    assert_same_bits(npk(net, X), npk(plain, X))
    assert not hasattr(net.part.module, "module")


def test_parts_that_are_compiled_in_place():
    plain = mlp()
    net = copy.deepcopy(plain)
    net[2].compile()
    assert_same_bits(npk(net, X), npk(plain, X))
    assert_same_bits(ntk(net, X)["V"], ntk(plain, X)["V"])


@pytest.mark.parametrize("of_net", [True, False])
@pytest.mark.parametrize("of_input", [True, False])
def test_memory_formats(of_net, of_input):
    plain = cnn().double()
    net, images = copy.deepcopy(plain), IMAGES.double()
    if of_net:
        net = net.to(memory_format=torch.channels_last)
    x = images.to(memory_format=torch.channels_last) if of_input else images
    assert_close_in_float64(npk(net, x, dtype=torch.float64), npk(plain, images, dtype=torch.float64))


class Forward(nn.Module):
    """Has layers, and a function that says what is done between them."""

    def __init__(self, between, plain: nn.Sequential) -> None:
        super().__init__()
        self.between, self.conv, self.fc = between, plain[0], plain[3]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(F.relu(self.conv(x))))


FLATTENED = {
    "view": lambda z: z.view(z.size(0), -1),
    "ravel": lambda z: z.ravel().view(len(z), -1),
    "flattened twice": lambda z: torch.flatten(z, 2).flatten(1),
    "unflattened": lambda z: z.flatten(1).unflatten(1, (2, 36)).flatten(1),
    "permuted and back": lambda z: z.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).flatten(1),
    "transposed and back": lambda z: z.transpose(1, 2).swapaxes(2, 1).mT.mT.flatten(1),
    "moved and back": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1).reshape(len(z), -1),
    "channels last": lambda z: z.contiguous(memory_format=torch.channels_last).flatten(1),
    "every part": lambda z: z[:, :, :].unsqueeze(1).squeeze(1).reshape(len(z), 72),
}


@pytest.mark.parametrize("name", some(FLATTENED, "ravel", "permuted and back", "channels last"))
def test_ways_to_flatten(name):
    plain = cnn()
    net = Forward(FLATTENED[name], plain)
    steps = trace.steps(net, IMAGES)
    assert [type(step).__name__ for step in steps] == ["Input", "Conv2d", "Gate", "Flatten", "Linear"]
    assert_same_bits(npk(net, IMAGES), npk(plain, IMAGES))


def test_another_order_has_the_same_kernel_and_a_part_that_of_the_part():
    plain, x = cnn().double(), IMAGES.double()
    net = Forward(lambda z: z.permute(0, 2, 3, 1).flatten(1), plain)
    assert_close_in_float64(npk(net, x, dtype=torch.float64), npk(plain, x, dtype=torch.float64))
    half = nn.Sequential(*cnn()[:3], nn.Linear(36, 2)).double()
    part = nn.Sequential(nn.Conv2d(3, 1, 3), *half[1:]).double()
    part[0].load_state_dict({name: value[:1] for name, value in half[0].state_dict().items()})
    first = Forward(lambda z: z[:, :1].flatten(1), half)
    kernels = [npk(each, x, dtype=torch.float64, return_exponent=True) for each in (first, part)]
    assert_close_in_float64(*(gram * 2.0**exponent for gram, exponent in kernels))


class Sum(nn.Module):
    """Has two layers without biases and adds their outputs in some way."""

    def __init__(self, add) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = (nn.Linear(*sizes, bias=False) for sizes in ((5, 4), (5, 4), (4, 1)))
        self.add, self.zero = add, nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.add(self, self.a(x), self.b(x)).relu())


def in_place(net: Sum, a: Tensor, b: Tensor) -> Tensor:
    z = torch.zeros_like(a)
    z += a
    z += b
    return z


NOTHING = {
    "sum of a list": lambda net, a, b: sum([a, b]),
    "0.0": lambda net, a, b: 0.0 + a + b,
    "minus 0": lambda net, a, b: a + b - 0,
    "zeros": lambda net, a, b: a + torch.zeros(4) + b,
    "zeros like another": lambda net, a, b: torch.zeros_like(a) + a + b,
    "zeros of all rows": lambda net, a, b: a.new_zeros(a.shape) + a + torch.zeros(len(b), 4) + b,
    "in place": in_place,
    "times 1": lambda net, a, b: 1 * a + b * torch.ones(4),
    "divided by 1": lambda net, a, b: a / 1 + b**1,
}


@pytest.mark.parametrize("name", some(NOTHING, "sum of a list", "zeros", "times 1"))
def test_adding_nothing_starts_no_paths(name):
    plain = Sum(lambda net, a, b: a + b)
    net = Sum(NOTHING[name])
    assert npf(net, X).shape == npf(plain, X).shape == (3, 2 * 5 * 4)
    assert_same_bits(npk(net, X, bias="path"), npk(plain, X, bias="path"))
    with torch.no_grad():
        assert_close_in_float64(npf(net.double(), X.double()) @ npv(net, X.double()), net(X.double()))


def test_zeros_of_parameters_start_paths():
    net = Sum(lambda net, a, b: a + b + net.zero)
    assert npf(net, X).shape == (3, 2 * 5 * 4 + 4)
    layer = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1, bias=False))
    nn.init.zeros_(layer[0].bias)
    assert npf(layer, X).shape == (3, 5 * 4 + 4)


class StandardConv(nn.Conv2d):
    """A convolution that standardizes its weights, as timm's do."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def test_calls_on_weights_are_no_calls_on_inputs():
    layers = cnn()
    plain = nn.Sequential(StandardConv(3, 2, 3), *layers[1:]).eval()
    with torch.no_grad():
        rows = plain[0].weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        layers[0].weight.copy_(rows.view_as(plain[0].weight))
        layers[0].bias.copy_(plain[0].bias)
    plain, layers, x = plain.double(), layers.double(), IMAGES.double()
    found = trace.steps(plain, x)
    assert [type(step).__name__ for step in found] == ["Input", "Conv2d", "Gate", "Flatten", "Linear"]
    assert_close_in_float64(npk(plain, x, dtype=torch.float64), npk(layers, x, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        lambda w, training: F.dropout(w, training=training),
        lambda w, training: F.relu(w),
        lambda w, training: F.max_pool2d(w[None], 1)[0],
        lambda w, training: F.layer_norm(w, w.shape),
        lambda w, training: F.instance_norm(w.unsqueeze(0)).squeeze(0),
    ],
)
def test_other_calls_on_weights(change):
    class Changed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, change(self.weight, self.training), self.bias)

    net = nn.Sequential(Changed(5, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    plain = nn.Sequential(nn.Linear(5, 4), *net[1:])
    with torch.no_grad():
        plain[0].weight.copy_(change(net[0].weight, False))
        plain[0].bias.copy_(net[0].bias)
    assert_same_bits(npk(net, X), npk(plain, X))


class Keeps(nn.Module):
    """A net that keeps what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 1)
        self.all, self.by_name = [], {}

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = F.relu(self.a(x))
        self.all.append(self.hidden)
        self.by_name["hidden"] = self.hidden
        return self.b(self.hidden)


def test_nets_that_keep_tensors():
    net = Keeps()
    plain = nn.Sequential(net.a, nn.ReLU(), net.b)
    net(X)
    kept = net.hidden
    assert_same_bits(npk(net, X), npk(plain, X))
    assert_same_bits(npf(net, X), npf(plain, X))
    assert_same_bits(ntk(net, X)["V"], ntk(plain, X)["V"])
    assert net.hidden is kept
    assert net.by_name["hidden"] is kept
    assert len(net.all) == 1
    assert net.all[0] is kept


@pytest.mark.parametrize("net", [mlp(), nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1))])
def test_whole_numbers_and_arrays(net):
    x = (X.abs() * 90).byte()
    floats = npk(net, x.float())
    for other in (x, x.numpy(), x.int(), x.numpy().astype(np.int64), x.float().numpy()):
        assert_same_bits(npk(net, other), floats)
        assert_same_bits(npf(net, other), npf(net, x.float()))
        assert_same_bits(ntk(net, other)["V"], ntk(net, x.float())["V"])
    assert_same_bits(npk(net, x[:2], x[2:].clone()), floats[:2, 2:].contiguous())
    assert_same_bits(npk(net, x > 20), npk(net, (x > 20).float()))
    assert path_norm(net, 2, x.numpy()) == path_norm(net, 2, x.float())


def test_sigma_of_bytes_is_exact():
    net = nn.Sequential(nn.Linear(5, 1), nn.ReLU(), nn.Linear(1, 1))
    nn.init.constant_(net[0].bias, 1e6)
    x = torch.tensor([[255, 255, 255, 254, 1], [3, 5, 7, 255, 254]], dtype=torch.uint8)
    assert torch.equal(npk(net, x, dtype=torch.float64), (x.long() @ x.long().T).double())


def test_whole_numbers_that_a_model_takes_stay_whole_in_ntk():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 1))
    x = torch.tensor([[1, 2], [3, 4], [1, 4]])
    expected = net[0](x).flatten(1) @ net[0](x).flatten(1).T + 1
    weight = net[2].weight.view(2, 4)
    shared = (x[:, None, :, None] == x[None, :, None, :]).float()
    expected = expected + torch.einsum("ijab,ac,bc->ij", shared, weight, weight)
    assert torch.allclose(ntk(net, x)["V"], expected, rtol=1e-4, atol=1e-5)


REPEATS = {
    "Python's random numbers": (lambda net, x: net.a(x) + random.random(), "called again.*draw the numbers once"),
    "numpy's random numbers": (
        lambda net, x: net.a(x) * float(np.random.rand() > -1) + np.random.rand(),
        "called again",
    ),
    "a count of calls": (lambda net, x: net.a(x) + net.count(), "called again"),
    "few rows": (
        lambda net, x: net.a(x) + (len(x) > 2),
        "in a call with 2 rows than in one with 3, .* each row on its",
    ),
    "a number for each two rows": (
        lambda net, x: net.a(x) + (torch.arange(len(x)) // 2)[:, None],
        "in a call with 2 rows than in one with 3",
    ),
}


class Repeats(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Linear(5, 4), nn.Linear(4, 1)
        self.calls = 0

    def count(self) -> int:
        self.calls += 1
        return self.calls

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, x).relu())


@pytest.mark.parametrize("name", REPEATS)
def test_what_changes_from_call_to_call_or_with_the_rows_is_refused(name):
    function, message = REPEATS[name]
    net = Repeats(function)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for call in (npk, npf):
        with pytest.raises(ValueError, match=f"model: gives other outputs .*{message}"):
            call(net, X)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert net.calls == 0


@pytest.mark.parametrize("dropout", [F.dropout, torch.feature_dropout, F.alpha_dropout, F.feature_alpha_dropout])
def test_dropout_of_nothing_is_the_identity(dropout):
    net = Repeats(lambda net, x: dropout(net.a(x), 0.0, True))
    plain = Repeats(lambda net, x: net.a(x))
    plain.load_state_dict(net.state_dict())
    assert_same_bits(npk(net, X), npk(plain, X))
