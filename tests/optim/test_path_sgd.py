"""PathSGD: its path scales, its invariance to rescaling, and what torch expects of an optimizer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from modern_nets import Calls, inputs_of, modern
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gatedops.optim import PathSGD

torch.manual_seed(0)
MLP = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(0.2), nn.Linear(6, 3)).double()
RESIDUAL = Calls(
    lambda net, x: net.out(F.max_pool2d((h := net.a(x).relu()) + net.c(net.b(h).relu()), 2).flatten(1)),
    a=nn.Conv2d(1, 4, 3, padding=1),
    b=nn.Conv2d(4, 6, 3, padding=1),
    c=nn.Conv2d(6, 4, 1),
    out=nn.Linear(16, 3),
).double()
GROUPS = nn.Sequential(
    *[nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 6, 2, groups=6)],
    *[nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)],
).double()
# Gives each network, the shape of its inputs, and the layers before and behind units that can be rescaled.
NETS = {
    "fully connected": (MLP, (5,), [("0", "2"), ("2", "4")]),
    "residual, max-pool": (RESIDUAL, (1, 4, 4), [("b", "c")]),
    "groups": (GROUPS, (2, 4, 4), [("0", "2"), ("2", "4"), ("4", "7")]),
}


@torch.no_grad()
def rescaled(net: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    """Multiplies the weights into the units of a layer by numbers, and divides those out of them."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(0)
    for before, behind in pairs:
        layer, reader = net.get_submodule(before), net.get_submodule(behind)
        factors = 10 ** (4 * torch.rand(len(layer.weight), generator=generator, dtype=torch.float64) - 2)
        layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias.mul_(factors)
        # Row o of a layer in groups reads the units of the group of o.
        groups, read = getattr(reader, "groups", 1), reader.weight.shape[1]
        of_row = factors.repeat_interleave(read * groups // len(factors)).view(groups, 1, read)
        of_row = of_row.expand(-1, len(reader.weight) // groups, -1).flatten(0, 1)
        reader.weight.div_(of_row.view(len(reader.weight), read, *[1] * (reader.weight.dim() - 2)))
    return net


def batch_for(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (12,), generator=generator)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], steps: int = 20) -> Tensor:
    """Trains a network, and returns its outputs."""
    x, labels = batch_for(shape)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net(x).detach()


@pytest.mark.parametrize("name", NETS)
def test_rescaled_networks_stay_the_same_function(name):
    net, shape, pairs = NETS[name]
    options = {"momentum": 0.5, "nesterov": True, "every": 3} if name == "fully connected" else {}
    x = batch_for(shape)[0]
    nets = copy.deepcopy(net), rescaled(net, pairs)
    assert_close_in_float64(nets[1](x).detach(), nets[0](x).detach())
    ours = [train(each, PathSGD(each, 0.02, x, **options), shape) for each in nets]
    assert (ours[0] - net(x)).abs().max() > 0.1, "the network did not learn"
    assert (ours[1] - ours[0]).abs().max() < 1e-11 * ours[0].abs().max()
    plain = copy.deepcopy(net), rescaled(net, pairs)
    theirs = [train(each, torch.optim.SGD(each.parameters(), 1e-4), shape) for each in plain]
    assert (theirs[1] - theirs[0]).abs().max() > 1e-3 * theirs[0].abs().max()


def scales_of(net: nn.Module, x: Tensor | None = None, **options) -> dict[str, Tensor]:
    """The path scales by the names of the parameters."""
    optimizer = PathSGD(net, 0.1, x, **options)
    optimizer.step()
    return {name: optimizer.state[p]["scale"] for name, p in net.named_parameters() if "scale" in optimizer.state[p]}


def expected_scales(net: nn.Module, ones: Tensor) -> dict[str, Tensor]:
    """The derivatives of a network of squares. Its ReLUs change nothing, as all signals are positive."""
    squares = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in squares.parameters():
            parameter.square_()
    squares(ones).sum().backward()
    return {name: parameter.grad for name, parameter in squares.named_parameters()}


def assert_same_scales(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(ours) == list(expected)
    for name, scale in ours.items():
        assert_close_in_float64(scale, expected[name])


@pytest.mark.parametrize("name", ["parts side by side", "channels shuffled and split", "signals"])
def test_path_scales_are_the_derivatives_of_the_network_of_squares(name):
    net, x = modern(name), inputs_of(name, 1)
    assert_same_scales(scales_of(net, x), expected_scales(net, torch.ones_like(x)))


def test_path_scales_of_a_small_network_by_hand():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    a, b, c, _ = (p.detach() for p in net.parameters())
    into = (a**2).sum(1) + b**2
    out = (c**2).sum(0)
    expected = {"0.weight": out[:, None].expand(3, 2), "0.bias": out, "2.weight": into.expand(2, 3)}
    assert_same_scales(scales_of(net), expected | {"2.bias": torch.ones(2, dtype=torch.float64)})


def test_averages_max_pools_constants_and_factors_have_scales():
    net = Calls(
        lambda net, x: (F.avg_pool2d(F.max_pool2d(x * net.factor + net.shift, 2), (1, 2)) + net.alone[0]).flatten(1),
        factor=nn.Parameter(torch.randn(2, 1, 1).double()),
        shift=nn.Parameter(torch.randn(4).double()),
        alone=nn.Parameter(torch.randn(2, 1).double()),
    )
    scales = scales_of(net, torch.zeros(1, 2, 2, 4).double())
    # Every one of the 8 pixels of each channel reaches one output through an average of two.
    assert scales["factor"].flatten().tolist() == [8 / 4] * 2
    assert scales["shift"].tolist() == [2 * 2 / 4] * 4
    assert scales["alone"].flatten().tolist() == [2.0, 0.0]


def test_weights_that_are_views_of_parameters():
    layer = nn.Linear(4, 3, bias=False).double()
    turned = Calls(lambda net, x: F.linear(x, net.w.t()), w=nn.Parameter(layer.weight.detach().t().contiguous()))
    x = torch.randn(2, 4).double()
    for net in (layer, turned):
        net = nn.Sequential(nn.Linear(4, 4, bias=False).double(), net)
        assert_same_scales(scales_of(net, x), expected_scales(net, torch.ones(1, 4).double()))


def test_one_layer_takes_the_steps_of_torch():
    shape, net = (5,), nn.Linear(5, 3).double()
    # All path scales are 1, because each path has one weight.
    for options in ({"maximize": True}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}):
        ours, theirs = copy.deepcopy(net), copy.deepcopy(net)
        assert_same_bits(
            train(ours, PathSGD(ours, 0.1, eps=2.0, **options), shape),
            train(theirs, torch.optim.SGD(theirs.parameters(), 0.05, **options), shape),
        )


def test_parameters_that_are_no_factors_of_paths_take_plain_steps():
    net = nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3)).double()
    net[2].bias.requires_grad_(False)
    before = copy.deepcopy(net)
    optimizer = PathSGD(net, 0.1)
    train(net, optimizer, (5,), 1)
    assert_same_bits(net[1].weight.detach(), (before[1].weight - 0.1 * net[1].weight.grad).detach())
    assert_same_bits(net[2].bias, before[2].bias)
    assert "scale" not in optimizer.state[net[1].weight]


def test_schedules_and_groups():
    net = copy.deepcopy(MLP)
    groups = [{"params": net[0].parameters(), "lr": 0.5}, {"params": net[4].parameters()}]
    optimizer = PathSGD(net, 0.1, params=groups)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    kept = [copy.deepcopy(net[2].weight), copy.deepcopy(net[0].weight)]
    train(net, optimizer, (5,), 1)
    moved = kept[1] - net[0].weight
    assert_close_in_float64(moved.detach(), 0.5 * net[0].weight.grad / optimizer.state[net[0].weight]["scale"])
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.01])
    assert_same_bits(net[2].weight.detach(), kept[0].detach())


def test_training_goes_on_from_a_state():
    nets = [copy.deepcopy(MLP) for _ in range(2)]
    whole, first = (PathSGD(net, 0.02, momentum=0.5, every=4) for net in nets)
    expected = train(nets[0], whole, (5,), 7)
    train(nets[1], first, (5,), 2)
    other = PathSGD(nets[1], 1.0, every=4)
    other.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert_same_bits(train(nets[1], other, (5,), 5), expected)
    with pytest.raises(ValueError, match="state_dict: has no 'steps', so it is not that of a PathSGD"):
        other.load_state_dict(torch.optim.SGD(nets[1].parameters()).state_dict())
    with pytest.raises(TypeError, match="PathSGD belongs to its model and cannot be copied or pickled"):
        copy.deepcopy(other)


def test_a_model_in_training_mode_and_a_closure():
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    optimizer, (x, labels) = PathSGD(net, 0.1), batch_for((5,))
    assert net[2].training

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        return loss

    before = net[0].weight.detach().clone()
    assert optimizer.step(closure) > 0
    assert not torch.equal(net[0].weight, before)


def test_a_scale_of_zero_is_no_step():
    net = copy.deepcopy(MLP)
    nn.init.zeros_(net[4].weight)
    before = net[0].weight.detach().clone()
    train(net, PathSGD(net, 0.02), (5,), 1)
    assert_same_bits(net[0].weight.detach(), before)
    assert net[4].weight.any()


TIED = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
TIED[2].weight = TIED[0].weight
REFUSED = {
    "0 is a batch norm": nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    "weight of 0.linear is computed from parameters": nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2))),
    "2 uses a weight or bias of 0": TIED,
    "sigmoid .*; train the model by torch.optim.SGD": nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 2)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_models_without_path_scales(message):
    with pytest.raises(ValueError, match=f"model: .*{message}"):
        PathSGD(REFUSED[message], 0.1, torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, "lr: got -1, needs a finite number, at least 0"),
        ({"lr": "big"}, "lr: got 'big', needs a finite number"),
        ({"eps": float("nan")}, "eps: got nan, needs a finite number"),
        ({"every": 0}, "every: got 0, needs a whole number of steps, at least 1"),
        ({"nesterov": True}, "nesterov: needs a momentum greater than 0 and dampening=0"),
        ({"x": torch.zeros(1, 4)}, "x: "),
        ({"params": []}, "optimizer got an empty parameter list"),
    ],
)
def test_other_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PathSGD(nn.Linear(5, 2), **({"lr": 0.1} | options))


def test_errors():
    with pytest.raises(TypeError, match=r"model: got generator, needs a torch\.nn\.Module"):
        PathSGD(MLP.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"x: is missing, and the model takes inputs of \(1, 3, 3\) and"):
        PathSGD(nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), 0.1)
    huge = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    optimizer = PathSGD(huge, 0.1)
    nn.init.constant_(huge[0].weight, 1e200)
    with pytest.raises(ValueError, match="model: its squared path norm is inf, so its weights have no path scales"):
        optimizer.step()


def test_options_and_parameters_that_are_not_its_own():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"params: group 0 has \['weight_decay'\], and PathSGD knows only"):
        PathSGD(net, 0.1, params=[{"params": net.parameters(), "weight_decay": 0.1}])
    with pytest.raises(ValueError, match="params: group 0 has a parameter that the model does not; give only its own"):
        PathSGD(net, 0.1, params=[nn.Parameter(torch.ones(1))])
