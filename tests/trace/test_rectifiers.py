"""ReLUs under all their names, in recurrent layers too, are recorded, or a warning names those that are missed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import gated_twin, record_gates

INF = float("inf")


def masked(q: Tensor) -> Tensor:
    q = q.clone()
    q[q < 0] = 0
    return q


def multiplied(q: Tensor) -> Tensor:
    q = q.clone()
    q *= q > 0
    return q


def filled(q: Tensor) -> Tensor:
    return q.clone().masked_fill_(q.detach() <= 0, 0.0)


# Each of these computes relu(q).
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp(min=0)": lambda q: q.clamp(min=0),
    "torch.clamp(q, 0)": lambda q: torch.clamp(q, 0.0),
    "clamp(0, None)": lambda q: q.clamp(0, None),
    "clamp(0, inf)": lambda q: q.clamp(0.0, INF),
    "clamp with a tensor": lambda q: torch.clamp(q, min=torch.zeros(())),
    "clamp_": lambda q: q.clone().clamp_(min=0),
    "clip": lambda q: torch.clip(q, 0),
    "clamp_min": lambda q: torch.clamp_min(q, 0),
    "clamp_min_": lambda q: q.clone().clamp_min_(0.0),
    "threshold": lambda q: F.threshold(q, 0, 0),
    "threshold_": lambda q: F.threshold_(q.clone(), 0.0, 0.0),
    "Threshold": nn.Threshold(0.0, 0.0, inplace=True),
    "maximum": lambda q: torch.maximum(q, torch.zeros_like(q)),
    "maximum of 0 and q": lambda q: torch.maximum(torch.tensor(0.0), q),
    "max": lambda q: torch.max(q, torch.zeros(1)),
    "q.max": lambda q: q.max(torch.zeros(q.shape[-1])),
    "fmax": lambda q: torch.fmax(q, q.new_zeros(())),
    "where": lambda q: torch.where(q > 0, q, 0.0),
    "where with zeros": lambda q: torch.where(q > 0, q, torch.zeros_like(q)),
    "where of the contrary": lambda q: torch.where(q <= 0, torch.zeros(()), q),
    "where as a method": lambda q: q.where(q > 0, torch.zeros(())),
    "where of a detached mask": lambda q: torch.where(q.detach() > 0, q, 0.0),
    "product": lambda q: q * (q > 0),
    "product with whole numbers": lambda q: q * (q > 0).int(),
    "product with 1 less the contrary": lambda q: q * (1 - (q <= 0).float()),
    "product with a step": lambda q: q * torch.heaviside(q.detach(), torch.zeros(())),
    "product with floats": lambda q: q * (q > 0).float(),
    "product with the same type": lambda q: torch.lt(torch.zeros(()), q).type_as(q).mul(q),
    "product in place": multiplied,
    "product with the contrary's contrary": lambda q: q * ~(q <= 0),
    "masked_fill": lambda q: q.masked_fill(q < 0, 0),
    "masked_fill_": filled,
    "setitem": masked,
    "leaky_relu": lambda q: F.leaky_relu(q, 0.0),
    "LeakyReLU": nn.LeakyReLU(0.0, inplace=True),
    "hardtanh": lambda q: F.hardtanh(q, 0.0, INF),
    "aten": lambda q: torch.ops.aten.relu.default(q),
    "aten.clamp_min": lambda q: torch.ops.aten.clamp_min(q, 0),
    "relu": F.relu,
}
# Each of these looks like a ReLU and computes something else.
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp(min=1)": lambda q: q.clamp(min=1),
    "clamp(0, 6)": lambda q: q.clamp(0, 6),
    "clamp(max=0)": lambda q: q.clamp(max=0),
    "threshold(1)": lambda q: F.threshold(q, 1.0, 0.0),
    "maximum": lambda q: torch.maximum(q, -q),
    "maximum with what happens to be 0": lambda q: torch.maximum(q, (q - 1e6) * (q > 1e6)),
    "max over an axis": lambda q: q.max(dim=1, keepdim=True)[0].expand_as(q),
    "where another is on": lambda q: torch.where(q.flip(1) > 0, q, 0.0),
    "where q is off": lambda q: torch.where(q > 0, 0.0, q),
    "mask of an older value": lambda q: (lambda m, p: p.add_(1) * m)(q > 0, q),
    "product with another mask": lambda q: q * (q.roll(1, 1) > 0),
    "product with its own half": lambda q: q * (q > 0.5),
    "masked_fill with one": lambda q: q.masked_fill(q < 0, 1.0),
    "of whole numbers": lambda q: q + (10 * q).long().clamp(min=0),
}


class Activated(nn.Module):
    """Has two layers with an activation behind each, and keeps the pre-activations."""

    def __init__(self, activation: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.activation, self.last = activation, last
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 7)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x)
        hidden = self.activation(first.clone())
        second = self.b(hidden)
        self.seen = [first, second]
        return self.last(second)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_relu_is_a_gated_layer(name):
    net, x = Activated(FORMS[name]), torch.randn(5, 5)
    assert torch.equal(net(x), F.relu(net.b(F.relu(net.a(x)))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits = record_gates(net, x)
    net(x)
    assert [layer.shape for layer in bits.layers] == [(6,), (7,)]
    for found, q in zip(bits.unpack(), net.seen, strict=True):
        assert_same_bits(found, q > 0)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_relu_takes_the_gates_of_a_twin(name):
    torch.manual_seed(0)
    net, other, x = Activated(FORMS[name]), Activated(F.relu), torch.randn(5, 5)
    assert torch.equal(gated_twin(net, net)(x), net(x))
    twin = gated_twin(net, other.state_dict())
    net(x)
    gates = [q > 0 for q in net.seen]
    expected = torch.where(gates[1], other.b(torch.where(gates[0], other.a(x), 0.0)), 0.0)
    torch.testing.assert_close(twin(x), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_function_is_not_recorded(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bits = record_gates(Activated(OTHERS[name]), torch.randn(5, 5))
    assert [layer.shape for layer in bits.layers] == [(7,)]


# --- rectifiers that functions do not show -------------------------------------------------------------------------


@torch.jit.script
def scripted(q: Tensor) -> Tensor:
    return torch.relu(q)


@torch.jit.script
def scripted_clamp(q: Tensor) -> Tensor:
    return torch.clamp(q, min=0.0) + 1


@pytest.fixture(scope="module")
def library():
    with torch.library._scoped_library("wild", "DEF") as made:
        made.define("bias_relu(Tensor q, Tensor b) -> Tensor")
        made.define("hidden(Tensor q) -> Tensor")
        made.impl("bias_relu", lambda q, b: torch.add(q, b) * 1, "CPU")
        made.impl("hidden", lambda q: q.clamp_min(0), "CompositeImplicitAutograd")
        yield


@pytest.mark.parametrize("form", [scripted, scripted_clamp], ids=["relu", "clamp"])
def test_a_rectifier_that_was_missed_is_warned_of_by_its_layer(form):
    net = nn.Sequential(Activated(form))
    with pytest.warns(
        UserWarning, match=r"rectifiers ran and are not recorded: aten::(relu|clamp)\S* in 0 \(Activated\)"
    ):
        bits = record_gates(net, torch.randn(5, 5))
    assert [layer.name for layer in bits.layers] == ["0.relu"]


def test_operators_that_are_rectifiers_inside_or_by_name_are_warned_of(library):
    hidden = Activated(torch.ops.wild.hidden)
    with pytest.warns(UserWarning, match="not recorded: aten::clamp_min in the model"):
        record_gates(hidden, torch.randn(5, 5))
    named = Activated(lambda q: torch.ops.wild.bias_relu(q, q))
    with pytest.warns(UserWarning, match="not recorded: wild::bias_relu in the model"):
        record_gates(named, torch.randn(5, 5))


@pytest.mark.parametrize(
    "form",
    [
        lambda q: -(-q).clamp(max=0),
        lambda q: q - q.clamp(None, 0),
        lambda q: -torch.minimum(-q, torch.zeros(())),
        lambda q: q - q.clamp_max(0),
    ],
)
def test_negative_halves_of_which_a_relu_is_made_are_warned_of(form):
    with pytest.warns(UserWarning, match=r"rectifiers ran and are not recorded: aten::(clamp|minimum)\S* in the model"):
        record_gates(Activated(form), torch.randn(5, 5))


def test_a_model_of_missed_rectifiers_alone_is_refused_by_their_names():
    net = Activated(scripted, torch.tanh)
    with pytest.raises(
        ValueError, match=r"calls no ReLU.*tanh \(tanh\).*not seen: aten::relu in the model.*torch.relu"
    ):
        record_gates(net, torch.randn(5, 5))


def test_clamps_for_the_sake_of_rounding_are_no_rectifiers():
    class Distances(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.centres, self.layer = nn.Parameter(torch.randn(30, 5)), nn.Linear(30, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(torch.cdist(x, self.centres)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bits = record_gates(Distances(), torch.randn(40, 5))
    assert len(bits.layers) == 1


@pytest.mark.parametrize(
    "module",
    [nn.Threshold(1.0, 0.0), nn.LogSigmoid(), nn.LeakyReLU(), nn.ReLU6(), nn.RReLU(), nn.Softsign(), nn.Hardshrink()],
    ids=lambda module: type(module).__name__,
)
def test_activations_without_gates_are_warned_of(module):
    with pytest.warns(UserWarning, match=rf"are not recorded: {type(module).__name__} \(activation\)"):
        record_gates(Activated(module), torch.randn(5, 5))


# --- recurrent layers ----------------------------------------------------------------------------------------------


def states(rnn: nn.RNN, x: Tensor, layer: int) -> Tensor:
    """Computes the pre-activations of a layer of an RNN in plain torch, direction after direction, step by step."""
    parts = []
    for suffix in ["", "_reverse"] if rnn.bidirectional else [""]:
        w, u = (getattr(rnn, f"weight_{kind}_l{layer}{suffix}") for kind in ("ih", "hh"))
        b, c = (getattr(rnn, f"bias_{kind}_l{layer}{suffix}") for kind in ("ih", "hh"))
        h, found = x.new_zeros(len(x), rnn.hidden_size), []
        for step in reversed(range(x.shape[1])) if suffix else range(x.shape[1]):
            found.append(x[:, step] @ w.T + b + h @ u.T + c)
            h = found[-1].clamp(min=0)
        parts.append(torch.stack(found[::-1] if suffix else found, 1))
    return torch.cat(parts, 2)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@torch.no_grad()
def test_gates_of_recurrent_layers(layers, bidirectional, batch_first):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(5, 7, layers, nonlinearity="relu", batch_first=batch_first, bidirectional=bidirectional)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x if batch_first else x.transpose(0, 1))[0]

    net, x = Net().double(), torch.randn(4, 6, 5, dtype=torch.float64)
    bits = record_gates(net, x, batch_size=3)
    assert [layer.name for layer in bits.layers] == ["rnn", "rnn#2", "rnn#3"][:layers]
    for layer, found in enumerate(bits.unpack()):
        q = states(net.rnn, x, layer)
        assert_same_bits(found, q > 0)
        x = q.clamp(min=0)


def test_gates_of_a_recurrent_cell():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(5, 7, nonlinearity="relu")

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x, self.cell(x))

    net, x = Net(), torch.randn(4, 5)
    bits = record_gates(net, x)
    first = F.linear(x, net.cell.weight_ih, net.cell.bias_ih + net.cell.bias_hh)
    assert [layer.name for layer in bits.layers] == ["cell", "cell#2"]
    assert_same_bits(bits.unpack()[0], first > 0)


def test_packed_sequences_and_recurrent_twins_are_refused():
    class Net(nn.Module):
        def __init__(self, packed: bool) -> None:
            super().__init__()
            self.rnn, self.packed = nn.RNN(5, 7, nonlinearity="relu", batch_first=True), packed

        def forward(self, x: Tensor) -> Tensor:
            if self.packed:
                return self.rnn(nn.utils.rnn.pack_padded_sequence(x, [3] * len(x), batch_first=True))[1]
            return self.rnn(x)[0]

    x = torch.randn(4, 3, 5)
    with pytest.raises(ValueError, match=r"packed sequences.*pad them"):
        record_gates(Net(True), x)
    with pytest.raises(ValueError, match="rnn"):
        gated_twin(Net(False))(x)
