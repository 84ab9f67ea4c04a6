"""record_gates(activations="piecewise") records the gates of activations of two slopes beside those of the ReLUs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import GateBits, fuse_relu, record_gates
from gatedops.nn import GatedLinear
from gatedops.trace.graph import Places, op_of
from gatedops.trace.names import activation_op

INF = float("inf")
aten = torch.ops.aten
Activation = Callable[[Tensor], Tensor]

# Each of these has a gate that is on where q > 0. The second entry is the function in the name of the layer, or "" if
# the name is the path of the module.
SLOPED: dict[str, tuple[Activation, str]] = {
    "LeakyReLU": (nn.LeakyReLU(), ""),
    "LeakyReLU in place": (nn.LeakyReLU(0.2, inplace=True), ""),
    "LeakyReLU of slope 1": (nn.LeakyReLU(1.0), ""),
    "LeakyReLU of slope -1": (nn.LeakyReLU(-1.0), ""),
    "leaky_relu": (lambda q: F.leaky_relu(q, 0.1), "leaky_relu"),
    "leaky_relu of keywords": (lambda q: F.leaky_relu(input=q, negative_slope=0.1, inplace=True), "leaky_relu"),
    "leaky_relu_": (lambda q: F.leaky_relu_(q), "leaky_relu"),
    "aten.leaky_relu": (lambda q: aten.leaky_relu.default(q, 0.3), "leaky_relu"),
    "PReLU": (nn.PReLU(), ""),
    "PReLU of channels": (nn.PReLU(7), ""),
    "PReLU of slope 0": (nn.PReLU(init=0.0), ""),
    "prelu": (lambda q: F.prelu(q, torch.tensor([0.1])), "prelu"),
    "q.prelu": (lambda q: q.prelu(torch.full((7,), 0.1)), "prelu"),
    "aten._prelu_kernel": (lambda q: aten._prelu_kernel(q, torch.tensor([0.1])), "prelu"),
    "RReLU": (nn.RReLU(), ""),
    "RReLU in place": (nn.RReLU(0.1, 0.1, inplace=True), ""),
    "rrelu": (lambda q: F.rrelu(q, 0.1, 0.4), "rrelu"),
    "torch.rrelu": (lambda q: torch.rrelu(q, training=False), "rrelu"),
    "rrelu_": (lambda q: F.rrelu_(q), "rrelu"),
    "torch.abs": (torch.abs, "abs"),
    "abs": (abs, "abs"),
    "q.abs": (lambda q: q.abs(), "abs"),
    "q.abs_": (lambda q: q.abs_(), "abs"),
    "torch.abs_": (torch.abs_, "abs"),
    "absolute": (torch.absolute, "abs"),
    "absolute_": (lambda q: q.absolute_(), "abs"),
    "aten.abs": (aten.abs, "abs"),
}
# Each of these has a gate that is on strictly between the last two entries.
BOUNDED: dict[str, tuple[Activation, str, float, float]] = {
    "ReLU6": (nn.ReLU6(), "", 0, 6),
    "ReLU6 in place": (nn.ReLU6(inplace=True), "", 0, 6),
    "relu6": (F.relu6, "hardtanh", 0, 6),
    "relu6 in place": (lambda q: F.relu6(input=q, inplace=True), "hardtanh", 0, 6),
    "Hardtanh": (nn.Hardtanh(), "", -1, 1),
    "Hardtanh in place": (nn.Hardtanh(-0.5, 2.0, inplace=True), "", -0.5, 2),
    "hardtanh": (F.hardtanh, "hardtanh", -1, 1),
    "hardtanh of one keyword": (lambda q: F.hardtanh(q, max_val=0.5), "hardtanh", -1, 0.5),
    "hardtanh_": (lambda q: F.hardtanh_(q, -1.0, 2.0), "hardtanh", -1, 2),
    "aten.hardtanh": (aten.hardtanh, "hardtanh", -1, 1),
    "q.clamp": (lambda q: q.clamp(-1, 1), "clamp", -1, 1),
    "q.clamp_": (lambda q: q.clamp_(0, 1.5), "clamp", 0, 1.5),
    "torch.clamp": (lambda q: torch.clamp(q, max=1.0, min=-0.25), "clamp", -0.25, 1),
    "torch.clip": (lambda q: torch.clip(q, 0, 6), "clamp", 0, 6),
    "clip_": (lambda q: q.clip_(-1, 1), "clamp", -1, 1),
    "clamp with tensors": (lambda q: q.clamp(torch.tensor(-1.0), torch.full((), 0.5)), "clamp", -1, 0.5),
    "clamp of bounds in the wrong order": (lambda q: q.clamp(1, 0), "clamp", 1, 0),
}


class Net(nn.Module):
    """Runs an activation between two ReLUs, and keeps the pre-activations."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.act = activation if isinstance(activation, nn.Module) else None
        self.function = None if isinstance(activation, nn.Module) else activation
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 8)])
        self.relu = nn.ReLU()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = []
        for layer, activation in zip(self.layers, (self.relu, self.act or self.function, F.relu), strict=True):
            q = layer(x)
            self.seen.append(q.clone())
            x = activation(q)
        return x


class Forward(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def piecewise(model: nn.Module, data: Any, *args: Any, **kwargs: Any) -> GateBits:
    return record_gates(model, data, *args, activations="piecewise", **kwargs)


def names(bits: GateBits) -> list[str]:
    return [layer.name for layer in bits.layers]


@torch.no_grad()
def pre_activations(net: Net, x: Tensor, batch: int) -> list[Tensor]:
    parts = [(net(rows), net.seen)[1] for rows in x.split(batch)]
    return [torch.cat(layer) for layer in zip(*parts, strict=True)]


# --- gates and names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SLOPED, *BOUNDED])
def test_gates_are_those_of_the_definition(name, tmp_path):
    activation, op, *bounds = (SLOPED | BOUNDED)[name]
    torch.manual_seed(0)
    net, x = Net(activation).eval(), 3 * torch.randn(10, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits = piecewise(net, x, 4)
    first, q, last = pre_activations(net, x, 4)
    low, high = bounds or (0, INF)
    expected = [first > 0, (q > low) & (q < high), last > 0]
    assert names(bits) == ["relu", op or "act", "relu#2"]
    assert bits == GateBits.pack(expected, names=names(bits))
    assert piecewise(net, x, 4, out=tmp_path / "gates") == bits


@pytest.mark.parametrize("name", [*SLOPED, *BOUNDED])
def test_they_are_not_recorded_unless_asked_for(name):
    net, x = Net((SLOPED | BOUNDED)[name][0]).eval(), torch.randn(10, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert record_gates(net, x, 4) == record_gates(net, x, 4, activations="relu")
        bits = record_gates(net, x, 4)
    first, _, last = pre_activations(net, x, 4)
    assert bits == GateBits.pack([first > 0, last > 0], names=["relu", "relu#2"])


@pytest.mark.parametrize(
    "form",
    [
        lambda q: F.leaky_relu(q, 0.0),
        lambda q: F.hardtanh(q, 0.0, INF),
        lambda q: q.clamp(min=0),
        lambda q: q.clamp(0, INF),
        lambda q: F.threshold(q, 0, 0),
        F.relu,
    ],
)
def test_relus_under_other_names_stay_relus(form):
    net, x = Forward(form), torch.randn(6, 5)
    assert piecewise(net, x) == record_gates(net, x)
    assert names(piecewise(net, x)) == ["relu"]


def test_zeros_and_what_is_not_a_number():
    q = torch.tensor([[0.0, -0.0, float("nan"), 1e-45, -1e-45, INF, -INF, 1.0]])
    on = [[False, False, False, True, False, True, False, True]]
    for form in (nn.LeakyReLU(), nn.PReLU(), nn.RReLU().eval(), Forward(torch.abs)):
        assert piecewise(form, q).unpack()[0].tolist() == on
    q = torch.tensor([[0.0, -0.0, float("nan"), 1e-45, INF, -INF, 6.0, 5.9999995, -1e-45]])
    on = [[False, False, False, True, False, False, False, True, False]]
    assert piecewise(nn.ReLU6(), q).unpack()[0].tolist() == on


@examples(30)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.lists(st.floats(-100, 100), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_bounds_are_outside(dtype, bounds):
    """A bound is the number that torch compares with: the bound in the dtype of the pre-activation."""
    low, high = (torch.tensor(bound, dtype=dtype) for bound in bounds)
    near = [torch.nextafter(bound, torch.tensor(to, dtype=dtype)) for bound in (low, high) for to in (-INF, INF)]
    q = torch.stack([low, high, *near, (low + high) / 2]).unsqueeze(0)
    expected = [[low.item() < value < high.item() for value in q[0].tolist()]]
    assert piecewise(Forward(lambda q: q.clamp(*bounds)), q).unpack()[0].tolist() == expected
    assert piecewise(Forward(lambda q: F.hardtanh(q, *bounds)), q).unpack()[0].tolist() == expected


def test_names_are_those_of_the_exported_graph():
    """trace.steps names a call by the same rule, so that kernels find the gates of each step."""
    # torch, or torch.export, calls these by several names.
    several = ["leaky_relu_", "prelu", "aten._prelu_kernel", "rrelu", "rrelu_", "q.abs_", "absolute", "absolute_"]
    several += ["relu6", "relu6 in place", "hardtanh_", "q.clamp_", "torch.clip", "clip_"]

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.PReLU(), nn.RReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU()])
            self.own = type("OwnReLU6", (nn.ReLU6,), {"__module__": "mine"})()
            self.functions = [(SLOPED | BOUNDED)[name][0] for name in several]

        def forward(self, q: Tensor) -> Tensor:
            return sum(form(q.sin()) for form in (*self.layers, self.own, *self.functions))

    net, x = All().eval(), torch.randn(2, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (x,), strict=False).run_decompositions({})
    places = Places(net)
    ops = ("leaky_relu", "prelu", "rrelu", "abs", "hardtanh", "clamp")
    gates = [node for node in program.graph.nodes if activation_op(op_of(node)) in ops]
    found = [name.split("#")[0] for name in names(piecewise(net, x))]
    assert found == [places.name(node, op_of(node)) for node in gates]
    assert found[:5] == ["layers.0", "layers.1", "layers.2", "layers.3", "own.hardtanh"]


def test_names_and_numbers_count_on_over_all_activations():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.LeakyReLU()

        def forward(self, q: Tensor) -> Tensor:
            return F.leaky_relu(self.act(F.relu(self.act(F.leaky_relu(q).abs())).abs_()).clamp(-1, 1))

    found = names(piecewise(nn.Sequential(Inner(), nn.ReLU6()), torch.randn(4, 5)))
    assert found[:3] == ["0.leaky_relu", "0.abs", "0.act"]
    assert found[3:] == ["0.relu", "0.abs#2", "0.act#2", "0.clamp", "0.leaky_relu#2", "1"]


# --- what has no gates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        lambda q: q + (10 * q).long().clamp(0, 6),
        lambda q: q + (10 * q).int().abs(),
        lambda q: q.clamp(-INF, INF),
        lambda q: q.clamp(-1, INF),
        lambda q: q.clamp(max=6),
        lambda q: q.clamp(min=-1),
        lambda q: q.clamp(float("nan"), 1.0),
        lambda q: q.clamp(q.detach() - 1, q.detach() + 1),
        lambda q: torch.view_as_complex(torch.stack([q, q], -1)).abs(),
        lambda q: q * (torch.isfinite(q) & torch.isclose(q, q)),
        lambda q: q * nn.Parameter(-torch.ones(6)).abs().clamp(-2.0, 2.0),
    ],
)
def test_what_is_another_function_is_not_recorded(form):
    net = nn.Sequential(nn.Linear(5, 6), Forward(form), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(piecewise(net, torch.randn(8, 5), 3)) == ["2"]


def test_calls_on_weights_have_no_gates():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            weight = F.leaky_relu(self.weight.clamp(-1, 1).abs() + F.rrelu(self.weight, training=True))
            return F.relu6(x @ weight)

    assert names(piecewise(Weighted(), torch.randn(8, 5), 3)) == ["hardtanh"]


def test_bounds_of_channels_are_taken_if_no_input_changes_them():
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("low", torch.linspace(-1, 0, 6))
            self.register_buffer("high", torch.linspace(0, 1, 6))

        def forward(self, q: Tensor) -> Tensor:
            return q.clamp(self.low, self.high)

    net, q = Clipped(), torch.randn(9, 6)
    assert_same_bits(piecewise(net, q, 4).unpack()[0], (q > net.low) & (q < net.high))


# --- everything else that record_gates does -----------------------------------------------------------------


def test_max_pools_are_recorded_beside_them():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU6(), nn.MaxPool2d(2), nn.ReLU()
    ).double()
    x = 5 * torch.randn(5, 2, 12, 12, dtype=torch.float64)
    bits = piecewise(net, x, 2, max_pool=True)
    assert [(layer.name, layer.kind) for layer in bits.layers] == [
        *[("1", "gate"), ("2", "select"), ("4", "gate"), ("5", "select"), ("6", "gate")]
    ]
    q = net[3](net[:3](x))
    assert_same_bits(bits.unpack()[0], net[0](x) > 0)
    assert_same_bits(bits.unpack()[2], (q > 0) & (q < 6))
    with pytest.warns(UserWarning, match="LeakyReLU"):
        plain = record_gates(net, x, 2, max_pool=True)
    assert [bits.unpack()[i].tolist() for i in (1, 3, 4)] == [gates.tolist() for gates in plain.unpack()]


@pytest.mark.parametrize("form", [nn.PReLU(4), nn.Hardtanh(-0.5, 0.25)], ids=["sloped", "bounded"])
@pytest.mark.parametrize("arranged", ["first", "second", "flat"])
def test_the_rows_are_found_wherever_they_lie(form, arranged):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = form

        def forward(self, x: Tensor) -> Tensor:
            q = {"first": x, "second": x.transpose(0, 1), "flat": x.flatten(0, 1)}[arranged]
            # PReLU takes the channels along the second axis.
            return self.act(q.movedim(-1, 1)) if arranged == "flat" else self.act(q.reshape(-1, 4)).view(q.shape)

    x = torch.randn(7, 3, 4)
    on = x > 0 if isinstance(form, nn.PReLU) else (x > -0.5) & (x < 0.25)
    assert_same_bits(piecewise(Tokens(), x, 3).unpack()[0], on)


def test_call_and_training_mode():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.LeakyReLU())
    x = torch.randn(12, 5)
    data = {"x": x, "factor": 2.0}
    bits = piecewise(net, data, 4, call=lambda model, batch: model(batch["factor"] * batch["x"]), training=True)
    with torch.no_grad():
        expected = [net[:2].train()(2 * rows) > 0 for rows in x.split(4)]
    assert_same_bits(bits.unpack()[0], torch.cat(expected))


def test_fuse_relu_does_not_count_them():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 4), nn.ReLU6())
    fused = fuse_relu(net, torch.randn(4, 5))
    assert [type(layer) for layer in fused] == [GatedLinear, nn.Identity, *map(type, net[2:])]


# --- messages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["leaky", None, 1])
def test_other_values_of_activations_are_refused(given):
    with pytest.raises(ValueError, match=re.escape(f"activations: got {given!r}, needs 'relu' or 'piecewise'")):
        record_gates(nn.ReLU(), torch.randn(2, 3), activations=given)


def test_the_warning_says_how_to_record_them():
    net, x = nn.Sequential(nn.GELU(), nn.LeakyReLU(), nn.ReLU(), nn.PReLU()), torch.randn(4, 3)
    with pytest.warns(UserWarning, match="have no gates") as caught:
        record_gates(net, x)
    assert str(caught[0].message) == (
        "these activations have no gates and are not recorded: GELU (0), LeakyReLU (1), PReLU (3);"
        ' record_gates(model, data, activations="piecewise") records LeakyReLU (1), PReLU (3)'
    )
    with pytest.warns(UserWarning, match=r"are not recorded: GELU \(0\), Hardtanh \(1\)$"):
        assert names(piecewise(nn.Sequential(nn.GELU(), nn.Hardtanh(-1.0, INF), nn.PReLU()), x)) == ["2"]


@pytest.mark.parametrize(
    ("form", "label"),
    [
        (nn.LeakyReLU(), "its activations have none: LeakyReLU (0); {}LeakyReLU (0)"),
        (lambda q: F.gelu(abs(q)), "its activations have none: gelu (0.gelu); {}abs (0.abs)"),
        (lambda q: F.relu6(q.clip(-1, 1)), "its activations have none: relu6 (0.relu6); {}clip (0.clamp), relu6"),
        (lambda q: F.gelu(q.clamp(min=-1)), "its activations have none: gelu (0.gelu); put nn.ReLU in their place"),
        (nn.Identity(), "no gates to record"),
    ],
)
def test_a_model_without_relus_is_told_how_to_record_them(form, label):
    net = nn.Sequential(form if isinstance(form, nn.Module) else Forward(form))
    expected = label.format('record_gates(model, data, activations="piecewise") records ')
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        record_gates(net, torch.randn(4, 3))
    assert str(raised.value).startswith("model: calls no ReLU, so there are no gates to record")


def test_a_model_without_any_is_refused():
    with pytest.raises(ValueError, match=r"calls no ReLU and no other activation of two slopes, .* GELU \(0\); put nn"):
        piecewise(nn.Sequential(nn.GELU()), torch.randn(4, 3))


def test_random_slopes_are_refused():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.RReLU()), torch.randn(4, 3)
    message = "is an RReLU in training mode, whose slopes are random; record it in evaluation mode"
    with pytest.raises(ValueError, match=f"model: 1 {message}"):
        piecewise(net, x, training=True)
    with pytest.raises(ValueError, match=f"model: rrelu {message}"):
        piecewise(Forward(lambda q: F.rrelu(q, training=True)), x)
    with pytest.raises(ValueError, match=f"model: rrelu {message}"):
        piecewise(Forward(lambda q: torch.rrelu_(q.clone(), 0.1, 0.2, True)), x)
    assert names(piecewise(net.train(), x)) == ["1"]


@torch.jit.script
def scripted_leaky(q: Tensor) -> Tensor:
    return torch.nn.functional.leaky_relu(q, 0.1)


@torch.jit.script
def scripted_clamp(q: Tensor) -> Tensor:
    return torch.clamp(q, -1.0, 1.0)


@torch.jit.script
def scripted_abs(q: Tensor) -> Tensor:
    return q.abs()


@pytest.mark.parametrize(
    ("form", "op"),
    [
        (scripted_leaky, "leaky_relu"),
        (scripted_clamp, "clamp"),
        (scripted_abs, "abs"),
        (lambda q: torch.abs(q, out=torch.empty_like(q)), "abs.out"),
    ],
)
def test_one_that_was_missed_is_warned_of_by_its_layer(form, op):
    net, x = nn.Sequential(nn.Linear(5, 6), Forward(form), nn.ReLU()), torch.randn(8, 5)
    with pytest.warns(UserWarning, match=rf"are not recorded: aten::{op} in 1 \(Forward\); write them as torch.relu"):
        assert names(piecewise(net, x)) == ["2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(record_gates(net, x)) == ["2"]


def test_the_gates_of_a_softsign_are_not_asked_for():
    with pytest.warns(UserWarning, match="not recorded") as caught:
        piecewise(nn.Sequential(nn.Softsign(), nn.ReLU()), torch.randn(8, 5))
    assert [str(warning.message) for warning in caught] == [
        "these activations have no gates and are not recorded: Softsign (0)"
    ]
