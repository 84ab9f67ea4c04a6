"""unfuse gives torch's own layers again, with the same outputs and the same checkpoints."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from nets import INPUTS, made, mlp, vgg
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import Gate, GatedConv2d, GatedLinear, fuse_relu, unfuse


def classes(net: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in net.named_modules()]


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert_same_bits(ours[key], value)


@pytest.mark.parametrize("name", INPUTS)
def test_unfuse_undoes_fuse_relu(name):
    net, x = made(name, 4)
    fused = fuse_relu(net, x)
    before = classes(fused)
    plain = unfuse(fused)
    assert classes(fused) == before
    assert classes(plain) == classes(net)
    assert repr(plain) == repr(net)  # in-place ReLUs work in place again
    assert_same_state(plain, net)
    assert not hasattr(plain, "fuse_report")
    assert [list(vars(m)) for m in plain.modules()] == [list(vars(m)) for m in net.modules()]
    with torch.no_grad():
        assert_same_bits(plain(x), net(x))
    plain(x).square().sum().backward()
    net(x).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), net.parameters(), strict=True):
        assert_same_bits(ours.grad, theirs.grad)
    assert fuse_relu(plain, x).fuse_report == fused.fuse_report


def test_in_place_keeps_the_parameters_and_modes():
    net = vgg()
    net[1][1].eval()
    parameters, modes = list(net.parameters()), [m.training for m in net.modules()]
    fused = fuse_relu(net, inplace=True)
    assert unfuse(fused, inplace=True) is net
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert [m.training for m in net.modules()] == modes
    assert type(net[1][1]) is nn.Linear
    assert type(net[1][2]) is nn.ReLU


def test_copies_and_pickles_of_fused_nets_know_the_places_of_their_relus():
    net, x = mlp(), torch.randn(3, 6)
    fused = fuse_relu(net)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        plain = unfuse(other, inplace=True)
        assert classes(plain) == classes(net)
        assert_same_bits(plain(x), net(x))


def test_shared_relus_come_back_shared():
    act = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Flatten(), nn.Identity())
    plain = unfuse(fuse_relu(net))
    assert classes(plain) == classes(net)
    assert plain[1] is plain[3]
    assert type(plain[5]) is nn.Identity


class ByHand(nn.Module):
    """Has gated layers that were written by hand, one of them used twice, and a Gate that records."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.gate = GatedConv2d(2, 3, 3), GatedLinear(12, 12), Gate(record=True)
        self.body = nn.Sequential(self.fc, GatedLinear(12, 5, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x).flatten(1)
        return self.gate(self.body(self.fc(z)) - 1)


def test_gated_layers_made_by_hand_get_a_relu_of_their_own():
    torch.manual_seed(0)
    net, x = ByHand().eval(), torch.randn(3, 2, 4, 4)
    plain = unfuse(net)
    with torch.no_grad():
        assert_same_bits(plain(x), net(x))
    assert_same_state(plain, net)
    assert isinstance(plain.conv, nn.Conv2d)
    assert not isinstance(plain.conv, GatedConv2d)
    assert plain.fc is plain.body[0]
    assert type(plain.gate) is nn.ReLU
    relus = [name for name, module in plain.named_modules() if type(module) is nn.ReLU]
    assert relus == ["conv.relu", "fc.relu", "gate", "body.1.relu"]
    seen: list[str] = []
    for name in relus:
        plain.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    plain(x)
    assert seen == ["conv.relu", "fc.relu", "fc.relu", "body.1.relu", "gate"]
    assert not any(module.training for module in plain.modules())
    pickle.loads(pickle.dumps(copy.deepcopy(unfuse(net))))


def test_a_layer_taken_out_of_a_fused_net_keeps_its_relu():
    net, x = mlp(), torch.randn(3, 6)
    layer = unfuse(nn.Sequential(fuse_relu(net)[0]))
    assert_same_bits(layer(x), net[1](net[0](x)))


def test_models_that_are_themselves_gated():
    x = torch.randn(3, 4)
    for layer in (GatedLinear(4, 4), Gate()):
        plain = unfuse(layer)
        assert not isinstance(plain, GatedLinear | Gate)
        assert_same_bits(plain(x), layer(x))
        with pytest.raises(ValueError, match=r"inplace: the model is itself a Gate.*use inplace=False"):
            unfuse(layer, inplace=True)


def test_a_net_without_gated_layers_stays():
    net, _ = made("resnet", 2)
    assert classes(unfuse(net)) == classes(net)
    assert unfuse(net, inplace=True) is net


def test_what_cannot_be_torchs_is_named():
    net = nn.Sequential(nn.Linear(4, 4), Gate())
    net[1].given = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"model: 1 is a Gate with given gates.*set given=None first"):
        unfuse(net, inplace=True)
    net = nn.Sequential(GatedLinear(4, 4))
    net[0].forward = lambda x: x
    with pytest.raises(ValueError, match=r"model: the forward of 0 \(GatedLinear\) is patched"):
        unfuse(net)
    with pytest.raises(TypeError, match=r"model: got builtin_function_or_method, needs a torch\.nn\.Module"):
        unfuse(torch.relu)


def test_a_relu_hook_sees_what_it_saw_before_fusing():
    """Hooks nn.ReLU as tools such as guided backpropagation do."""

    def guided(net: nn.Module, x: Tensor) -> Tensor:
        hooks = [
            module.register_full_backward_hook(lambda _, given, out: (given[0].clamp(min=0),))
            for module in net.modules()
            if isinstance(module, nn.ReLU)
        ]
        inputs = x.clone().requires_grad_()
        net(inputs)[:, 0].sum().backward()
        for hook in hooks:
            hook.remove()
        return inputs.grad

    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    fused = fuse_relu(net)
    assert not torch.equal(guided(fused, x), guided(net, x))
    assert_same_bits(guided(unfuse(fused), x), guided(net, x))
