"""trace.steps: every form of every operation gives the steps that compute it. All forms of a table are one network with
one output for each form, because torch.export takes most of the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from step_forms import (
    MOVEMENTS_OF_IMAGES,
    MOVEMENTS_OF_SEQUENCES,
    RELUS,
    RESAMPLED,
    SLOPES,
    SUMS,
    Form,
    Weights,
)
from step_runner import kinds, run
from strategies import examples
from tolerances import assert_close_in_float64
from torch import Tensor, nn

from gatedops import record_gates, trace

IMAGES, SEQUENCES = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 6)


class Forward(nn.Module):
    """A function as a network, with the parameters of another module."""

    def __init__(self, function: Callable[[Tensor], Any], weights: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.weights = function, weights

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class AllOf(Weights):
    """Puts the outputs of functions side by side, each of them doubled and flattened."""

    def __init__(self, functions: list[Callable[[Any, Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(2 * function(self, x)).flatten(1) for function in self.functions], 1)


def parts_of(functions: list[Callable[[Any, Tensor], Tensor]], x: Tensor) -> list[list[trace.Step]]:
    """The steps of each function, without the input, after a check that they compute what it computes."""
    net, x = AllOf(functions).double().eval(), x.double()
    *found, last = trace.steps(net, x)
    assert isinstance(last, trace.Concat)
    outputs, parts = run(found, x), []
    for function, flat in zip(functions, last.inputs, strict=True):
        doubled = found[flat] if isinstance(found[flat], trace.Scale) else found[found[flat].inputs[0]]
        assert isinstance(doubled, trace.Scale)
        (result,) = doubled.inputs
        assert_close_in_float64(outputs[result], function(net, x).detach())
        parts.append(steps_behind(found, result))
    return parts


def steps_behind(steps: list[trace.Step], last: int) -> list[trace.Step]:
    """A step and those that it depends on, in order, without the input."""
    wanted, waiting = set(), [last]
    while waiting:
        index = waiting.pop()
        wanted.add(index)
        waiting += steps[index].inputs
    return [steps[index] for index in sorted(wanted - {0})]


TABLES: dict[str, tuple[dict[str, Form], Tensor]] = {
    "movements of images": (MOVEMENTS_OF_IMAGES, IMAGES),
    "movements of sequences": (MOVEMENTS_OF_SEQUENCES, SEQUENCES),
    "sums": (SUMS, IMAGES),
    "resampled": (RESAMPLED, IMAGES),
}


@pytest.mark.parametrize("table", TABLES)
def test_forms(table):
    forms, x = TABLES[table]
    parts = parts_of([function for function, _ in forms.values()], x)
    for name, part, (_, expected) in zip(forms, parts, [*forms.values()], strict=True):
        assert kinds(part) == expected, name


def test_every_relu_is_a_gate_with_the_name_of_recorded_gates():
    net, x = AllOf([*RELUS.values()]).eval(), IMAGES
    parts = parts_of([*RELUS.values()], x)
    gates = [part[-1] for part in parts]
    for name, part, gate in zip(RELUS, parts, gates, strict=True):
        assert isinstance(gate, trace.Gate), name
        assert kinds(part[:-1]) in ([], ["Scale"]), name
        assert (gate.slope, gate.inside) == (0.0, None), name
    assert [gate.name for gate in gates] == [layer.name for layer in record_gates(net, x).layers]


@pytest.mark.parametrize("x", [IMAGES, torch.randn(3, 4)])
def test_gates_with_slopes_and_bounds(x):
    net = AllOf([function for function, _, _ in SLOPES.values()])
    parts = parts_of(net.functions, x)
    recorded = record_gates(net.eval(), x, activations="piecewise")
    assert [part[-1].name for part in parts] == [layer.name for layer in recorded.layers]
    for name, part, (_, slope, inside) in zip(SLOPES, parts, SLOPES.values(), strict=True):
        gate = part[-1]
        assert isinstance(gate, trace.Gate), name
        assert kinds(part[:-1]) in ([], ["Scale"]), name
        assert gate.inside == inside, name
        if slope == "slopes":
            assert isinstance(gate.slope, nn.Parameter)
            assert gate.slope.shape == (4,)
        else:
            assert isinstance(gate.slope, float), name
            assert slope == "number" or gate.slope == slope, name


def test_modules_of_activations_give_gates_their_names():
    modules = [nn.ReLU(), nn.LeakyReLU(), nn.PReLU(4), nn.RReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Threshold(0, 0)]
    net = nn.Sequential(*modules).eval()
    found = trace.steps(net, IMAGES)
    assert kinds(found) == ["Input", *["Gate"] * len(modules)]
    assert [step.name for step in found[1:]] == [str(index) for index in range(len(modules))]


def test_a_concatenation_lists_an_output_twice():
    found = trace.steps(Forward(lambda x: torch.cat([x, x.relu(), x], 1)), IMAGES)
    assert isinstance(found[2], trace.Concat)
    assert (found[2].inputs, found[2].axis, found[2].shape) == ((0, 1, 0), 0, (12, 5, 6))


def several(*choices: st.SearchStrategy[Any]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Draws several choices at once, which one network tries."""
    return st.lists(st.tuples(*choices), min_size=8, max_size=8)


small = st.integers(1, 3)


@examples(2)
@given(
    several(
        *(small, small, small),
        st.sampled_from(["same", "valid", 0, 1, 2]),
        st.sampled_from(["constant", "circular", "reflect", "replicate"]),
        st.tuples(st.integers(0, 2), st.integers(0, 2)),
        st.sampled_from([1, 2]),
    )
)
def test_convolutions_over_one_axis(choices):
    def convolution(kernel, stride, dilation, padding, mode, before, groups):
        def function(net: Weights, x: Tensor) -> Tensor:
            weight = net.conv1.weight[:2, : 4 // groups, :kernel]
            step = 1 if padding == "same" else stride
            return F.conv1d(F.pad(x, before, mode), weight, None, step, padding, dilation, groups)

        return function

    for choice, part in zip(choices, parts_of([convolution(*choice) for choice in choices], SEQUENCES), strict=True):
        *moved, last = kinds(part)
        assert last == "Conv2d"
        assert not moved or (moved == ["Rearrange"] and choice[4] != "constant"), choice


@examples(2)
@given(
    several(
        st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        st.booleans(),
    )
)
def test_sizes_of_interpolation(choices):
    def interpolation(mode, size, corners):
        corners = corners if mode in ("bilinear", "bicubic") else None
        return lambda net, x: F.interpolate(x, size, mode=mode, align_corners=corners)

    parts_of([interpolation(*choice) for choice in choices], IMAGES)


def test_a_convolution_over_one_axis_keeps_its_weight():
    net = nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1, 2, 2, padding_mode="circular"), nn.ReLU())
    _, step, gate = trace.steps(net, SEQUENCES)
    assert isinstance(step, trace.Conv2d)
    assert torch.equal(step.weight, net[0].weight.unsqueeze(2))
    assert step.weight.untyped_storage()._cdata == net[0].weight.untyped_storage()._cdata
    assert step.weight_made_of[0].tensor is net[0].weight
    assert step.weight_drawn is None
    assert (step.stride, step.padding, step.dilation) == ((1, 2), (1, 1, 0, 0), (1, 2))
    assert (step.groups, step.padding_mode, step.shape, gate.shape) == (2, "circular", (6, 2), (6, 2))


def test_a_computed_weight_over_one_axis_is_drawn_in_its_shape():
    net = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3))
    step = trace.steps(net, SEQUENCES)[1]
    assert isinstance(step, trace.Conv2d)
    assert step.weight_drawn is not None
    assert step.weight_drawn(0).shape == step.weight.shape == (6, 4, 1, 3)


def test_the_factor_of_a_quotient_is_drawn_like_its_value():
    net = Weights()
    step = trace.steps(Forward(lambda x: x / (2 * net.per_channel), net), IMAGES)[1]
    assert isinstance(step, trace.Scale)
    assert torch.equal(step.factor, (2 * net.per_channel).reciprocal())
    assert [source.tensor for source in step.made_of] == [net.per_channel]
    twice, once = step.drawn, trace.steps(Forward(lambda x: x * (2 * net.per_channel), net), IMAGES)[1].drawn
    assert torch.equal(twice(3), once(3).reciprocal())


def test_numbers_become_tensors_without_axes():
    step = trace.steps(Forward(lambda x: x / 4), IMAGES)[1]
    assert isinstance(step, trace.Scale)
    assert step.factor.shape == ()
    assert step.factor == 0.25


def test_a_rearrangement_that_two_steps_read_is_one_step():
    found = trace.steps(Forward(lambda x: (y := x.flip(1)).relu() + y.clone()), IMAGES)
    assert kinds(found) == ["Input", "Rearrange", "Gate", "Add"]
    assert found[3].inputs == (2, 1)


def test_the_source_of_a_rearrangement():
    step = trace.steps(Forward(lambda x: F.pad(x[:, 1:], (1, 0))), torch.zeros(2, 2, 3))[1]
    assert isinstance(step, trace.Rearrange)
    assert step.source.tolist() == [[-1, 3, 4, 5]]


def test_nearest_pixels_are_those_of_the_networks_dtype():
    sizes, x = ((2, 7), (29, 11), (5, 63)), torch.randn(2, 1, 13, 17)
    net = Forward(lambda x: torch.cat([F.interpolate(x, size=size).flatten(1) for size in sizes], 1))
    assert torch.equal(run(trace.steps(net, x), x)[-1], net(x))


class OnMeta(Weights):
    """Has an operation of each kind that looks at the values of its constants."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.pad(F.prelu(x / self.ones, self.slopes), (1, 1, 1, 1), "reflect"))
        return F.interpolate(torch.cat([x.clamp(min=0), x.flip(1)], 1), scale_factor=2, mode="bilinear") * self.number


def test_models_without_values():
    net = OnMeta()
    expected = ["Input", "Gate", "Rearrange", "Conv2d", "Gate", "Rearrange", "Concat", "Resample", "Scale"]
    assert kinds(trace.steps(net, IMAGES)) == expected
    # Without values, nothing says that a factor is 1.
    assert kinds(trace.steps(net.to("meta"), IMAGES.to("meta"))) == ["Input", "Scale", *expected[1:]]
    for function in (lambda x: x[:, net.order], lambda x: F.prelu(x, net.number)):
        with pytest.raises(ValueError, match="on the device meta; move the model to another device"):
            trace.steps(Forward(function, net), IMAGES.to("meta"))


# --- outputs ------------------------------------------------------------------------------------------------


@dataclass
class Heads:
    logits: Tensor
    features: Tensor
    note: str = "not a tensor"


class TwoHeads(nn.Module):
    """Returns two outputs in one of several forms; the second depends on an operation that is not a step."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.returned, self.body, self.head = returned, nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        features = F.relu(F.gelu(self.body(x)))
        return self.returned(self.head(F.relu(self.body(x))), features)


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        (lambda logits, features: (logits, features), 0),
        (lambda logits, features: [features, logits], 1),
        (lambda logits, features: {"features": features, "logits": logits, "loss": None}, "logits"),
        (Heads, "logits"),
    ],
)
def test_one_of_several_outputs(returned, output):
    net, x = TwoHeads(returned).double(), torch.randn(3, 4).double()
    found = trace.steps(net, x, output=output)
    assert kinds(found) == ["Input", "Linear", "Gate", "Linear"]
    assert torch.equal(run(found, x)[-1], net.head(net.body(x).relu()))
    # record_gates sees the ReLU of the other output first.
    assert found[2].name == "relu#2"
    assert not net._forward_hooks


def test_a_tuple_of_one_output():
    net, x = Forward(lambda x: (x.relu(),)), torch.randn(3, 4)
    assert kinds(trace.steps(net, x, output=0)) == ["Input", "Gate"]


def test_an_output_before_the_end():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    found = trace.steps(
        Forward(lambda x: {"before": net[0](x), "after": net(x)}, net), torch.ones(1, 4), output="before"
    )
    assert kinds(found) == ["Input", "Linear"]


SQUASHED = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, dim=-1),
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("name", SQUASHED)
def test_a_function_of_all_outputs(name):
    x = torch.randn(3, 1).double() if name == "sigmoid" else torch.randn(3, 4).double()
    net = Forward(SQUASHED[name])
    found = trace.steps(net, x)
    assert isinstance(found[1], trace.Squash)
    assert found[1].function == name
    assert_close_in_float64(run(found, x)[-1], net(x))


def test_an_output_without_an_axis():
    net, x = Forward(lambda x: x.sigmoid().squeeze(1)), torch.randn(3, 1).double()
    found = trace.steps(net, x)
    assert kinds(found) == ["Input", "Squash", "Rearrange"]
    assert found[2].shape == ()
    assert torch.equal(run(found, x)[-1], net(x))
