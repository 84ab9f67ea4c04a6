"""Bad arguments of deep gated networks raise a ValueError or TypeError that names the argument, before any work."""

from __future__ import annotations

import copy

import pytest
import torch
from dgns import seeded
from strategies import dense, random_bits
from tolerances import assert_same_bits
from torch import nn

from gatedops import DGN, DLGN, Gate, GateBits, GatedLinear
from gatedops.nn import conv_spec, fc_spec

SPEC = fc_spec(6, [8, 8, 9], 3)
CONV = conv_spec((2, 5, 4), [4, 4], [8, 4], 3)
NET = SPEC.relu_net(0)
STATE = NET.state_dict()
X, IMAGES = torch.randn(5, 6), torch.randn(5, 2, 5, 4)
MODEL, SOFT, IMAGE_MODEL = DGN(SPEC, "FR-II"), DGN(SPEC), DGN(CONV, "FR-II")
BITS, IMAGE_BITS = MODEL.gates(X), IMAGE_MODEL.gates(IMAGES)


class Functional(nn.Module):
    def forward(self, x):
        return x.relu()


class Sub(nn.Sequential):
    pass


def chain(*modules):
    return nn.Sequential(nn.Linear(6, 8), *modules, nn.Linear(8, 3))


# Maps what is wrong to (what the message says, the call).
MAKING = {
    "an unknown mode": ("mode: got 'FRNPF', needs one of", lambda: DGN(SPEC, "FRNPF")),
    "a mode of another type": ("mode: got None", lambda: DGN(SPEC, None)),
    "an unknown gate": ("gate: got 'firm', needs one of", lambda: DGN(SPEC, gate="firm")),
    "hard gates that learn": ("gate: mode 'DL' trains", lambda: DGN(SPEC, "DL", gate="hard")),
    "beta is 0": ("beta: got 0", lambda: DGN(SPEC, beta=0)),
    "beta is NaN": ("beta: got nan", lambda: DGN(SPEC, beta=float("nan"))),
    "gain is infinite": ("gain: got inf", lambda: DGN(SPEC, gain=float("inf"))),
    "an unknown value input": ("value_input: got 'zeros'", lambda: DGN(SPEC, value_input="zeros")),
    "no spec": ("spec_or_net: got list", lambda: DGN([784, 128, 10])),
    "FL without features": ("feature: mode 'FL' needs a trained network", lambda: DGN(SPEC, "FL")),
    "features for another mode": ("feature: mode 'FR-II' has", lambda: DGN(SPEC, "FR-II", feature=NET)),
    "features of another type": ("feature: got str", lambda: DGN(SPEC, "FL", feature="net.pt")),
    "features of another width": (
        r"feature: .*other shapes \['4.bias: \(8,\) for \(9,\)', '4.weight: \(8, 8\) for \(9, 8\)'\]",
        lambda: DGN(SPEC, "FL", feature=fc_spec(6, [8, 8, 8], 3).relu_net()),
    ),
    "features with fewer layers": (
        r"feature: .*missing keys \['4.bias', '4.weight'\], unknown keys \[\]",
        lambda: DGN(SPEC, "FL", feature={key: STATE[key] for key in STATE if key[0] in "02"}),
    ),
    "features with more layers": (
        r"feature: .*unknown keys \['8.bias', '8.weight'\]",
        lambda: DGN(SPEC, "FL", feature=fc_spec(6, [8, 8, 9, 3], 3).relu_net()),
    ),
    "a checkpoint with more than weights": (
        r"feature: .*missing keys \['0.bias', .*unknown keys \['epoch', 'model'\]",
        lambda: DGN(SPEC, "FL", feature={"model": STATE, "epoch": 3}),
    ),
    "weights that are not tensors": (
        r"feature: .*'0.bias: None for \(8,\)'",
        lambda: DGN(SPEC, "FL", feature=STATE | {"0.bias": [0.0]}),
    ),
    "deep features for a shallow network": (
        "feature: is of another architecture",
        lambda: DLGN(SPEC, "FL", feature=NET, shallow=True),
    ),
    "a shallow copy": ("mode: 'FR-DI' copies", lambda: DLGN(SPEC, "FR-DI", shallow=True)),
    "a repeated layer": (r"order: got \(0, 1, 1\), needs a permutation of 0 .. 2", lambda: DGN(SPEC, order=[0, 1, 1])),
    "too few layers": (r"order: got \(1, 0\)", lambda: DGN(SPEC, order=[1, 0])),
    "an order from 1": (r"order: got \(1, 2, 3\)", lambda: DGN(SPEC, order=[1, 2, 3])),
    "an order of fractions": (r"order: got \[0.0, 1.0, 2.0\]", lambda: DGN(SPEC, order=[0.0, 1.0, 2.0])),
    "an order that is a number": ("order: got 2", lambda: DGN(SPEC, order=2)),
    "gates of another width": (
        r"order: layer 1 has gates \(8,\), layer 2 has \(9,\)",
        lambda: DGN(SPEC, order=[0, 2, 1]),
    ),
    "gates of images and vectors": ("order: layer 0 has gates", lambda: DGN(CONV, order=[3, 1, 2, 0])),
    "a seed for a generator": ("generator: got int", lambda: DGN(SPEC, generator=3)),
    "no ReLU": ("spec_or_net: has no ReLU", lambda: DGN(chain())),
    "an empty network": ("spec_or_net: has no ReLU", lambda: DGN(nn.Sequential())),
    "a functional network": ("spec_or_net: is a Functional, .*gatedops.gated_twin", lambda: DGN(Functional())),
    "a network of its own class": ("spec_or_net: is a Sub, .*gated_twin", lambda: DGN(Sub(*chain(nn.ReLU())))),
    "batch norm": ("spec_or_net: '1' is BatchNorm1d, .*gated_twin", lambda: DGN(chain(nn.BatchNorm1d(8), nn.ReLU()))),
    "a max-pool": ("'2' is MaxPool2d", lambda: DGN(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.MaxPool2d(2)))),
    "another activation": ("spec_or_net: '1' is Tanh", lambda: DGN(chain(nn.Tanh()))),
    "a layer with a ReLU of its own": ("'1.0' is GatedLinear", lambda: DGN(chain(nn.Sequential(GatedLinear(8, 8))))),
    "a ReLU of the input": ("the ReLU '0' does not follow", lambda: DGN(nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))),
    "a ReLU of a ReLU": ("the ReLU '2' does not follow", lambda: DGN(chain(nn.ReLU(), nn.ReLU()))),
    "flattening inputs into one": ("'1' is Flatten", lambda: DGN(chain(nn.Flatten(0), nn.ReLU()))),
    "TorchScript": ("spec_or_net: is TorchScript", lambda: DGN(torch.jit.script(chain(nn.ReLU())))),
    "a shallow network of images of any size": (
        "shallow: gates of linear layers read whole images",
        lambda: DLGN(CONV.relu_net(), shallow=True),
    ),
    "a shallow network with strides": (
        "shallow: needs convolutions that give images of the input's size",
        lambda: DLGN(nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU()), shallow=True),
    ),
    "a shallow network with pools": (
        "shallow: needs convolutions",
        lambda: DLGN(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 1), nn.ReLU()), shallow=True),
    ),
}

SPECS = {
    "no layers": ("widths: got none", lambda: fc_spec(6, [], 3)),
    "an empty layer": ("widths: got 0", lambda: fc_spec(6, [8, 0], 3)),
    "a width for all": ("widths: got 128", lambda: fc_spec(6, 128, 3)),
    "a fraction": ("inputs: got 6.0", lambda: fc_spec(6.0, [8], 3)),
    "no outputs": ("outputs: got 0", lambda: fc_spec(6, [8], 0)),
    "a truth": ("outputs: got True", lambda: fc_spec(6, [8], True)),
    "no convolutions": ("channels: got none", lambda: conv_spec(channels=[])),
    "a flat image": (r"shape: got \(32, 32\)", lambda: conv_spec((32, 32))),
    "an unknown head": ("head: got 'max'", lambda: conv_spec(head="max")),
    "an unknown padding": ("padding_mode: got 'reflect'", lambda: conv_spec(padding_mode="reflect")),
    "no kernel": ("kernel_size: got 0", lambda: conv_spec(kernel_size=0)),
    "an empty dense layer": ("dense: got -1", lambda: conv_spec(dense=[-1])),
    "two seeds": ("seed: got a generator as well", lambda: SPEC.relu_net(0, generator=seeded())),
}

CALLING = {
    "x of another width": (r"x: got shape \(5, 5\), needs \(n, 6\)", lambda: MODEL(X[:, 1:])),
    "x without rows": (r"x: got shape \(6,\), needs \(n, 6\)", lambda: MODEL(X[0])),
    "x is an image": (r"x: got shape \(5, 2, 5, 4\), needs \(n, 6\)", lambda: MODEL(IMAGES)),
    "an image of another size": (r"needs \(n, 2, 5, 4\)", lambda: IMAGE_MODEL(IMAGES[..., 1:])),
    "an image of other channels": (r"needs \(n, 2, any, any\)", lambda: DGN(CONV.relu_net())(IMAGES[:, 1:])),
    "x is a list": ("x: got list", lambda: MODEL(X.tolist())),
    "x is uint8": ("x: got torch.uint8, but the model is torch.float32", lambda: MODEL(X.byte())),
    "x is float64": ("x: got torch.float64", lambda: IMAGE_MODEL(IMAGES.double())),
    "x is on another device": ("x: is on meta, the model is on cpu", lambda: MODEL(X.to("meta"))),
    "gates of a bad x": ("x: got shape", lambda: MODEL.gates(X[:, 1:])),
    "gates for soft gates": ("gates: this network's gates are soft", lambda: SOFT(X, gates=BITS)),
    "gates of other rows": ("gates: has 4 rows, x has 5", lambda: MODEL(X, gates=BITS[:4])),
    "gates of fewer layers": (
        r"gates: has layers of \(8\), \(8\); this",
        lambda: MODEL(X, gates=BITS.select_layers([0, 1])),
    ),
    "gates of other widths": ("gates: has layers of", lambda: MODEL(X, gates=random_bits(5, dense(8, 8, 8)))),
    "gates of images": (r"gates: has layers of .*\(4, any, any\)", lambda: IMAGE_MODEL(IMAGES, gates=BITS)),
    "gates of images of another size": (
        r"gate: got shape \(5, 4, 4, 5\), needs that of q, \(5, 4, 5, 4\)",
        lambda: IMAGE_MODEL(IMAGES, gates=IMAGE_MODEL_TURNED.gates(IMAGES.mT)),
    ),
    "gates that are a tensor": ("gates: got Tensor", lambda: MODEL(X, gates=BITS.words)),
    "gates on another device": ("gates: is on meta", lambda: MODEL(X, gates=BITS.to("meta"))),
}
IMAGE_MODEL_TURNED = DGN(conv_spec((2, 4, 5), [4, 4], [8, 4], 3), "FR-II")


def refused(wrong):
    message, call = wrong
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("what", SPECS)
def test_a_bad_spec_is_named(what):
    refused(SPECS[what])


@pytest.mark.parametrize("what", MAKING)
def test_a_bad_network_is_named(what):
    refused(MAKING[what])


@pytest.mark.parametrize("what", CALLING)
def test_a_bad_call_is_named(what):
    refused(CALLING[what])


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_a_device_that_is_not_there():
    for make in (lambda: DGN(SPEC, device="cuda"), lambda: SPEC.relu_net(device="cuda:1")):
        with pytest.raises(ValueError, match=r"device: got cuda.*use 'cpu'"):
            make()


def test_an_error_leaves_everything_as_it_was():
    before = copy.deepcopy(STATE)
    state = torch.get_rng_state()
    for what in ("an unknown mode", "features with fewer layers", "a functional network", "a repeated layer"):
        refused(MAKING[what])
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.grad is not None for p in NET.parameters())
    for key, value in before.items():
        assert_same_bits(NET.state_dict()[key], value)


def test_what_looks_odd_and_is_fine():
    assert DGN(chain(Gate())).gates(X).widths == (8,)
    assert DGN(nn.Sequential(nn.Linear(6, 8), nn.ReLU()))(X).shape == (5, 8)  # this network ends with a gate
    assert DGN(SPEC, "FL", feature=NET.requires_grad_(False))(X).requires_grad
    assert DGN(fc_spec(6, [8, 8], 3), order=torch.tensor([1, 0])).order == (1, 0)
    assert isinstance(DLGN(CONV, shallow=True).gates(IMAGES), GateBits)
