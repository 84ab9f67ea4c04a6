"""fuse_relu replaces only what a traced call proves. Outputs may be tapped, and ReLUs may be needed elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fusing import assert_same_network, kept
from nets import mlp
from tolerances import assert_same_bits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gatedops import Gate, GatedLinear, fuse_relu


class Taps(nn.Module):
    """Runs its Sequential module by module, and keeps or uses the outputs of some modules."""

    def __init__(self, tapped: tuple[int, ...], how: str, *, in_place: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(5, 5), nn.ReLU(in_place)]
        self.body, self.tapped, self.how = nn.Sequential(*layers), tapped, how

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.held, total, outputs = [], 0, []
        for index, module in enumerate(self.body):
            x = module(x)
            if index in self.tapped:
                if self.how == "returned":
                    outputs.append(x)
                elif self.how == "held":
                    self.held.append(x)
                elif self.how == "attribute":
                    self.first = {"x": x if index == 0 else self.first["x"]}
                elif self.how == "summed":
                    total = total + x.sum(1, keepdim=True)
                elif self.how == "numpy":
                    total = total + float(x.numpy().sum() if not x.requires_grad else x.detach().numpy().sum())
        return [x, *outputs] if outputs else x + total


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("how", ["returned", "held", "attribute", "summed", "numpy"])
def test_a_layer_whose_output_is_tapped_is_kept(how, in_place):
    torch.manual_seed(0)
    net, x = Taps((0, 3), how, in_place=in_place), torch.randn(4, 5)
    fused = fuse_relu(net, x)
    expected, found = net(x), fused(x)
    for a, b in zip(found, expected, strict=True):
        assert_same_bits(a, b)
    # Behind an in-place ReLU the tap sees the activation.
    behind_in_place = in_place and how not in ("summed", "numpy")
    first = GatedLinear if behind_in_place else nn.Linear
    assert [type(m) for m in fused.body][::2] == [first, GatedLinear, GatedLinear]
    if not behind_in_place:
        assert kept(fused)["body.0"].startswith("its output ")
        assert type(fused.body[1]) is (nn.ReLU if in_place else Gate)


class Handwritten(nn.Module):
    """Runs fc, act, fc, act with one ReLU for both, reads a shape in between, and ends with a ReLU as a function."""

    def __init__(self, between: str = "") -> None:
        super().__init__()
        self.first, self.second, self.third, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        q = self.first(x)
        assert q.shape[0] == x.size(0)
        if self.between == "training" and self.training:
            q = q + torch.randn_like(q)
        z = self.act(self.second(self.act(q)))
        if self.between == "lone":
            z = self.act(z - 1)
        if self.between == "hook" and q.requires_grad:
            q.register_hook(lambda grad: None)
        return F.relu(self.third(z))


def test_a_hand_written_pair_is_fused():
    fused = assert_same_network(Handwritten(), torch.randn(3, 4))
    assert fused.fuse_report.replaced == (("first", "GatedLinear"), ("second", "GatedLinear"))
    assert kept(fused) == {"": "it calls relu as a function"}
    assert type(fused.act) is nn.Identity


@pytest.mark.parametrize("between", ["training", "lone", "hook"])
def test_a_relu_that_is_needed_elsewhere_stays_for_all(between):
    net = Handwritten(between)
    fused = fuse_relu(net, torch.randn(3, 4))
    assert fused.fuse_report.replaced == (("act", "Gate"),)
    assert {"first", "second"} <= set(kept(fused))
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    assert_same_bits(fused(x), expected)


class Noise(nn.Module):
    """Hands on its input in evaluation mode; `how` decides what it does in training mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if self.training and self.how == "adds" else x


@pytest.mark.parametrize("how", ["adds", "nothing"])
def test_a_layer_behind_which_a_module_may_do_more_in_training_is_kept(how):
    net = nn.Sequential(nn.Linear(4, 4), Noise(how), nn.ReLU())
    fused = fuse_relu(net)
    assert [type(m) for m in fused] == [nn.Linear, Noise, Gate]
    assert kept(fused)["0"] == "its output passes through 1"
    x = torch.randn(3, 4)
    assert_same_bits(fused(x), net(x))
    assert type(fuse_relu(nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Identity(), nn.ReLU()))[0][0]) is GatedLinear


def test_hooks_of_the_modules_around_a_layer_keep_it():
    net, seen = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU()), []
    net[0].register_forward_hook(lambda _, args, output: seen.append(output.requires_grad))
    fused = fuse_relu(net)
    assert type(fused[0][0]) is nn.Linear
    assert kept(fused)["0.0"] == "its output is seen by the hooks of 0"


def test_what_was_not_run_is_kept():
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.act = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.ReLU()
            self.aux = nn.Sequential(nn.Linear(4, 4), self.act)
            self.unused = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(4, 4), self.act)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.main(x))

    fused = assert_same_network(Auxiliary(), torch.randn(3, 4))
    assert fused.fuse_report.replaced == (("main.0", "GatedLinear"), ("act", "Gate"))
    assert kept(fused) == {
        "unused.1": "it was not run in the traced call",
        "head.0": "its ReLU stands in places that were not run",
    }
    assert_same_bits(fused.aux(torch.eye(4)), F.relu(fused.aux[0](torch.eye(4))))


def test_a_patched_forward_is_kept():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    plain = net[0].forward
    net[0].forward = lambda x: plain(x) * 2
    x = torch.randn(3, 4)
    fused = fuse_relu(net, inplace=True)
    assert [type(m) for m in fused] == [nn.Linear, Gate, GatedLinear, nn.Identity]
    assert_same_bits(fused(x), F.relu(net[2](F.relu(plain(x) * 2))))


def test_modules_that_are_reached_in_ways_that_replacing_does_not_reach_are_taken_back():
    class Order(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), nn.ReLU()
            self.order = [self.fc]

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.order[0](x))

    for in_place in (False, True):
        net, x = Order(), torch.randn(3, 4)
        expected = net(x)
        fused = fuse_relu(net, x, in_place)
        assert_same_bits(fused(x), expected)
        assert fused.fuse_report.replaced == ()
        assert kept(fused)["fc"] == "fused, the model gives other outputs for the example"


def test_the_model_and_the_random_numbers_are_left_as_they_were():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU()
    )
    net[1].eval()
    net[1].note = 1
    net(torch.randn(2, 3, 6, 6))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes, attributes = [m.training for m in net.modules()], [list(vars(m)) for m in net.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    fuse_relu(net)
    fuse_relu(net, torch.randn(2, 3, 6, 6, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)
    fused = fuse_relu(net, inplace=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())
    assert [list(vars(m)) for m in net.modules()][2] == attributes[2]
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_net_that_keeps_what_it_computes_is_fused_after_a_training_pass():
    class Keeps(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.h = super().forward(x)
            return self.h

    net = Keeps(nn.Linear(4, 4), nn.ReLU())
    held = net(torch.randn(2, 4))
    fused = fuse_relu(net)
    assert type(fused[0]) is GatedLinear
    assert net.h is held
    assert torch.equal(fused.h, held)


def test_nets_that_differentiate_themselves_and_nets_under_checkpoints_are_traced():
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                return torch.autograd.grad(self.body(x).sum(), x)[0]

    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    x = torch.randn(3, 4)
    for net in (Energy(), Checkpointed(nn.Linear(4, 8), nn.ReLU(inplace=True))):
        fused = fuse_relu(net, x)
        assert [kind for _, kind in fused.fuse_report.replaced] == ["GatedLinear"]
        torch.testing.assert_close(fused(x), net(x))


def test_examples():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"z": self.body(x) * scale}

    x, scale = torch.randn(2, 4), torch.ones(1)
    for example in ((x, scale), [x, scale], {"x": x, "scale": scale}):
        assert type(fuse_relu(Two(), example).body[0]) is GatedLinear
    with pytest.raises(ValueError, match="example: is missing, and no vector or square image was found"):
        fuse_relu(Two())
    with pytest.raises(TypeError, match="example: got bool, needs a tensor, a tuple of inputs or a dict of keyword"):
        fuse_relu(mlp(), True)
    net = mlp()
    with pytest.raises(ValueError, match=r"example: the model does not take inputs of shape \(2, 7\)"):
        fuse_relu(net, torch.zeros(2, 7), inplace=True)
    with pytest.raises(TypeError, match=r"example: got torch.float64, the model works in torch.float32"):
        fuse_relu(net, torch.zeros(2, 6, dtype=torch.float64), inplace=True)
    assert not hasattr(net, "fuse_report")
    assert not any(m._forward_hooks or "forward" in vars(m) for m in net.modules())


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_wrapped_nets_are_fused_inside(wrap):
    net, x = wrap(mlp()), torch.randn(3, 6)
    expected = net(x)
    fused = fuse_relu(net)
    assert type(fused) is type(net)
    assert fused.fuse_report.replaced == (("0", "GatedLinear"), ("2", "GatedLinear"))
    torch.testing.assert_close(fused(x), expected)
