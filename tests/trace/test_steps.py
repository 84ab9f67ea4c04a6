"""trace.steps: running the list step by step gives the network's output, for every form of every operation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import INPUTS, made
from step_runner import kinds, run
from strategies import examples
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor, nn

from gatedops import record_gates, trace

UNDERSTOOD = [name for name in INPUTS if name != "transformer"]


def assert_steps_compute(net: nn.Module, x: Tensor) -> list[trace.Step]:
    """Returns the steps after a check that running them in float64 gives the network's output."""
    net, x = copy.deepcopy(net).double().eval(), x.double()
    found = trace.steps(net, x)
    with torch.no_grad():
        assert_close_in_float64(run(found, x)[-1], net(x))
    return found


# --- whole networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_network_is_the_sum_of_its_steps(name):
    found = assert_steps_compute(*made(name, 3))
    assert isinstance(found[0], trace.Input)
    assert all(index < number for number, step in enumerate(found) for index in step.inputs)


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_gates_and_pools_have_the_names_and_the_order_of_recorded_gates(name):
    net, x = made(name, 3)
    found = trace.steps(net, x)
    bits = record_gates(net, x, max_pool=True)
    steps = [step for step in found if isinstance(step, trace.Gate | trace.MaxPool)]
    assert [step.name for step in steps] == [layer.name for layer in bits.layers]
    assert [step.shape for step in steps] == [layer.shape[-3:] for layer in bits.layers]
    kind = {"gate": trace.Gate, "select": trace.MaxPool}
    assert [type(step) for step in steps] == [kind[layer.kind] for layer in bits.layers]
    outputs = run(found, x)
    for gates, name in zip(bits.unpack(), [layer.name for layer in bits.layers], strict=True):
        gate = next((step for step in steps if step.name == name and isinstance(step, trace.Gate)), None)
        assert gate is None or torch.equal(gates, outputs[gate.inputs[0]] > 0)


def test_the_steps_of_a_residual_network():
    found = trace.steps(*made("resnet", 1))
    block = ["Conv2d", "BatchNorm", "Gate", "Conv2d", "BatchNorm", "Add", "Gate"]
    wide = [*block[:5], "Conv2d", "BatchNorm", *block[5:]]
    assert kinds(found) == [
        "Input",
        "Conv2d",
        "BatchNorm",
        "Gate",
        "MaxPool",
        *block,
        *wide,
        "AvgPool",
        "Flatten",
        "Linear",
    ]
    names = [step.name for step in found]
    assert names[:6] == ["input", "conv1", "bn1", "relu", "pool", "block1.conv1"]
    assert names[9:12] == ["block1.bn2", "block1.add", "block1.relu#2"]
    assert found[10].inputs == (9, 4)


def test_tensors_are_the_models_own():
    net, x = made("vgg", 1)
    found = trace.steps(net, x)
    parameters = dict(net.named_parameters())
    for step in found:
        if isinstance(step, trace.Linear | trace.Conv2d):
            assert step.weight is parameters[f"{step.name}.weight"]
            assert step.bias is parameters[f"{step.name}.bias"]
        if isinstance(step, trace.BatchNorm):
            assert_same_bits(step.mean, net.get_buffer(f"{step.name}.running_mean"))
            assert step.eps == 1e-5


def test_the_model_is_left_as_it_was():
    net, x = made("vgg", 3)
    net[0].train()
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    with pytest.raises(ValueError, match="training mode"):
        trace.steps(net, x)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


# --- one operation after another ----------------------------------------------------------------------------

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@examples(25)
@given(
    pairs,
    pairs,
    pairs,
    st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    st.sampled_from(["zeros", "circular"]),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_convolutions(kernel, stride, dilation, padding, mode, groups, bias):
    if padding == "same":
        stride = 1
    net = nn.Sequential(nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias, mode), nn.ReLU())
    found = assert_steps_compute(net, torch.randn(2, 4, 9, 8))
    assert kinds(found) == ["Input", "Conv2d", "Gate"]
    assert (found[1].groups, found[1].bias is not None) == (groups, bias)
    assert found[1].padding_mode == mode or not any(found[1].padding)


@examples(15)
@given(
    pairs,
    pairs,
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 3]),
)
def test_pools(kernel, stride, padding, ceil, include, divisor):
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    x = torch.randn(2, 3, 7, 8)
    assert kinds(assert_steps_compute(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), x)) == ["Input", "MaxPool"]
    net = nn.AvgPool2d(kernel, stride, padding, ceil, include, divisor)
    assert kinds(assert_steps_compute(net, x)) == ["Input", "AvgPool"]


class Forward(nn.Module):
    """A function as a network, with some weights to use."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.register_buffer("shift", torch.rand(4))
        self.register_buffer("hidden", torch.rand(1, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


VECTORS = {
    "a number": (lambda net, x: x + 1.5, ["AddConstant"]),
    "a number before": (lambda net, x: 2 + x, ["AddConstant"]),
    "minus a number": (lambda net, x: x - 0.25, ["AddConstant"]),
    "a buffer": (lambda net, x: x + net.shift, ["AddConstant"]),
    "a buffer that is not saved": (lambda net, x: net.hidden + x, ["AddConstant"]),
    "a parameter, scaled": (lambda net, x: torch.add(x, net.scale, alpha=3), ["AddConstant"]),
    "minus a parameter, scaled": (lambda net, x: torch.sub(x, net.scale, alpha=3), ["AddConstant"]),
    "computed from parameters": (lambda net, x: x + (net.scale * net.shift).sin(), ["AddConstant"]),
    "a new tensor": (lambda net, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype), ["AddConstant"]),
    "weights computed": (lambda net, x: F.linear(x, net.fc.weight.abs(), net.shift - 1), ["Linear"]),
    "the same layer twice": (lambda net, x: net.fc(net.fc(x).relu()), ["Linear", "Gate", "Linear"]),
    "a sum with itself": (lambda net, x: x + x, ["Add"]),
    "a sum in place": (lambda net, x: net.fc(x).add_(x).relu_(), ["Linear", "Add", "Gate"]),
    "two branches": (lambda net, x: net.fc(x) + F.relu(x), ["Linear", "Gate", "Add"]),
    "no change": (
        lambda net, x: F.dropout(x.clone().contiguous(), training=False).view(x.shape).detach() + 1,
        ["AddConstant"],
    ),
    "no change of dtype": (lambda net, x: x.to(net.scale.dtype).contiguous() + 1, ["AddConstant"]),
    "unused": (lambda net, x: (net.fc(x), F.gelu(x), x + 1)[-1], ["AddConstant"]),
    "the input itself": (lambda net, x: x, []),
}
IMAGES = {
    "flatten": (lambda net, x: torch.flatten(x, 1), ["Flatten"]),
    "view": (lambda net, x: x.view(x.size(0), -1), ["Flatten"]),
    "reshape": (lambda net, x: x.reshape(len(x), 4 * 36), ["Flatten"]),
    "mean": (lambda net, x: x.mean((2, 3)), ["Mean"]),
    "mean of the last axes, kept": (lambda net, x: x.mean([-1, -2], keepdim=True), ["Mean"]),
    "mean and squeeze": (lambda net, x: x.mean((2, 3), True).squeeze(-1).squeeze(-1), ["Mean", "Flatten"]),
    "mean of one axis": (lambda net, x: x.mean(1), ["Mean"]),
    "adaptive pool": (lambda net, x: F.adaptive_avg_pool2d(x, (2, 3)), ["AvgPool"]),
    "adaptive pool to one": (lambda net, x: nn.AdaptiveAvgPool2d(1)(x).squeeze(), ["AvgPool", "Flatten"]),
    "pad and convolve": (
        lambda net, x: F.conv2d(F.pad(x, (1, 0, 2, 1)), torch.ones(2, 4, 3, 3).to(x), padding=1),
        ["Conv2d"],
    ),
    "batch norm": (lambda net, x: F.batch_norm(x, net.shift, net.scale), ["BatchNorm"]),
    "there and back": (lambda net, x: x.flatten(2).view_as(x) + 1, ["AddConstant"]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_operations_on_vectors(name):
    function, expected = VECTORS[name]
    assert kinds(assert_steps_compute(Forward(function), torch.randn(3, 4))) == ["Input", *expected]


@pytest.mark.parametrize("name", IMAGES)
def test_operations_on_images(name):
    function, expected = IMAGES[name]
    assert kinds(assert_steps_compute(Forward(function), torch.randn(3, 4, 6, 6))) == ["Input", *expected]


def test_linear_layers_work_on_tokens():
    found = assert_steps_compute(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 5, 8))
    assert [step.shape for step in found] == [(5, 8), (5, 6), (5, 6), (5, 2)]


def test_an_in_place_relu_whose_result_is_thrown_away_counts():
    assert kinds(trace.steps(*made("dropped", 2))) == ["Input", "Linear", "Gate", "Linear"]


def test_a_layer_under_two_names_has_the_first():
    layer = nn.Linear(4, 4)
    net = nn.Sequential(nn.Sequential(layer, nn.ReLU()), layer, nn.ReLU())
    assert [step.name for step in trace.steps(net, torch.randn(1, 4))] == ["input", "0.0", "0.1", "0.0#2", "2"]


def test_autocast_leaves_no_conversions_among_the_steps():
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)).eval()
    x = torch.randn(3, 5)
    expected = [type(step) for step in trace.steps(net, x)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trace.steps(net, x)
        assert torch.is_autocast_enabled("cpu")
    assert [type(step) for step in found] == expected
