"""Twins treat all calls of a model: on weights, under other names, in wrappers; calls that cannot take gates raise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatedops import fuse_relu, gated_twin

X = torch.randn(4, 5)


class Called(nn.Module):
    """Has a layer, a function of its outputs, and another layer."""

    def __init__(self, call, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(width, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.call(self.a(x)))


# --- calls on weights ---------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """timm's StdConv: its weight goes through a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(w, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Weighted(nn.Module):
    """Applies ReLUs and a max-pool to weights, and a ReLU to activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.w, self.kernel = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1, 1, 16))
        self.register_buffer("mask", torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.relu(self.w) + F.max_pool1d(self.kernel, 2)[0, 0] + self.mask.clamp(min=0)
        return self.b(F.relu(self.a(x) * weight))


@pytest.mark.parametrize("batch_norm", ["value", "feature", "off"])
def test_calls_on_weights_are_not_calls_on_activations(batch_norm):
    conv = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    for net, x in ((conv, torch.randn(4, 3, 8, 8)), (Weighted(), X)):
        for pool in ("feature", "value"):
            assert torch.equal(gated_twin(net, net, pool, batch_norm)(x), net(x))
            value = gated_twin(net).value if net is conv else type(net)()
            twin = gated_twin(net, value, pool, batch_norm)
            assert not torch.equal(twin(x), net(x))
    twin = gated_twin(Weighted(), Weighted())
    v, f = twin.value, twin.feature
    weight = v.w.relu() + F.max_pool1d(v.kernel, 2)[0, 0] + v.mask.relu()
    gate = f.a(X) * (f.w.relu() + F.max_pool1d(f.kernel, 2)[0, 0] + f.mask.relu()) > 0
    torch.testing.assert_close(twin(X), v.b(v.a(X) * weight * gate))


# --- ReLUs under other names --------------------------------------------------------------------------------------


def by_index(q: Tensor) -> Tensor:
    q = q.clone()
    q[q <= 0] = 0
    return q


def times_in_place(q: Tensor) -> Tensor:
    q = q.clone()
    q *= q > 0
    return q


def mask_in_place(q: Tensor) -> Tensor:
    mask = (q > 0).to(q.dtype)
    mask *= q
    return mask + 0 * q


FORMS = {
    "clamp": lambda q: q.clamp(min=0),
    "clamp_": lambda q: q.clamp_(min=0),
    "clamp_min": lambda q: torch.clamp_min(q, 0),
    "clip": lambda q: q.clip(0),
    "threshold": lambda q: F.threshold(q, 0, 0),
    "threshold in place": lambda q: F.threshold(q, 0, 0, inplace=True),
    "maximum": lambda q: torch.maximum(q, torch.zeros(())),
    "max": lambda q: torch.max(torch.zeros_like(q), q),
    "where": lambda q: torch.where(q > 0, q, 0.0),
    "where not": lambda q: torch.where(q <= 0, torch.zeros_like(q), q),
    "method where": lambda q: q.where(q > 0, torch.zeros(())),
    "times": lambda q: q * (q > 0),
    "float times": lambda q: (q > 0).float() * q,
    "masked_fill": lambda q: q.masked_fill(q <= 0, 0),
    "masked_fill_": lambda q: q.masked_fill_(q < 0, 0.0),
    "leaky_relu": lambda q: F.leaky_relu(q, 0.0),
    "hardtanh": lambda q: F.hardtanh(q, 0.0, math.inf),
    "aten": lambda q: torch.ops.aten.relu.default(q),
    "by index": by_index,
    "times in place": times_in_place,
    "mask in place": mask_in_place,
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_relu_under_another_name_takes_the_gate(form, soft):
    net = Called(FORMS[form])
    assert torch.equal(gated_twin(net, net)(X), net(X))
    given = {"gate": "soft", "train_features": True} if soft else {}
    twin = gated_twin(net, **given)
    q = twin.feature.a(X)
    gate = torch.sigmoid(4 * q) if soft else (q > 0).float()
    expected, output = twin.value.b(twin.value.a(X) * gate), twin(X)
    torch.testing.assert_close(output, expected)
    parameters = [twin.value.a.weight, twin.value.b.weight] + ([twin.feature.a.weight] if soft else [])
    found = torch.autograd.grad(output.sum(), parameters)
    for ours, theirs in zip(found, torch.autograd.grad(expected.sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs)


def with_out(q: Tensor) -> Tensor:
    return torch.clamp(q.detach(), min=0, out=torch.empty(q.shape))


class InScript(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), Called(with_out), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.c(self.b(F.relu(self.a(x))[:, :5])))


def test_a_relu_that_no_function_call_shows_is_told_once():
    twin = gated_twin(InScript())
    with pytest.warns(UserWarning, match=r"value: these rectifiers take no gates .*clamp\.out in b; call F\.relu"):
        twin(X)
    twin(X)  # a warning would be an error


# --- wrappers and copies ------------------------------------------------------------------------------------------


def test_compiled_models_and_compiled_parts_are_taken_as_they_were_written():
    net = nn.Sequential(nn.Linear(5, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3))
    expected = net(X)
    whole = torch.compile(net, backend="eager")
    assert torch.equal(gated_twin(whole, whole)(X), expected)
    assert type(gated_twin(whole).value) is nn.Sequential
    parallel = nn.DataParallel(net)
    for value in (parallel, parallel.state_dict(), whole.state_dict()):
        assert torch.equal(gated_twin(parallel, value)(X), expected)
    net[1] = torch.compile(net[1], backend="eager")
    for value in (net, net.state_dict()):
        twin = gated_twin(net, value)
        assert torch.equal(twin(X), expected)
    assert "value.1.0.weight" in twin.state_dict()
    assert "_orig_mod" in str(list(net.state_dict()))


def test_models_that_keep_what_a_training_pass_computed():
    class Keeps(Called):
        def forward(self, x: Tensor) -> Tensor:
            self.h = F.relu(self.a(x))
            return self.b(self.h)

    net = Keeps(None)
    net(X).sum().backward()
    assert torch.equal(gated_twin(net, net)(X), net(X))
    assert net.h.grad_fn is not None


# --- refused ------------------------------------------------------------------------------------------------------


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(8, 5), torch.randn(8, 8), torch.randn(8), torch.randn(8)])

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, len(x), 8)
        return torch.rnn_relu(x.unsqueeze(1), state, list(self.weights), True, 1, 0.0, False, False, True)[0]


class Past(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.a(x))
        return torch.batch_norm(z, None, None, None, None, True, 0.1, 1e-5, False)


class Quantized(nn.Linear):
    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"


REFUSED = {
    "quantized layers": (lambda: nn.Sequential(Quantized(5, 8), nn.ReLU()), {}, r"model: 0 \(Quantized\) is quantized"),
    "an RNN": (
        lambda: nn.Sequential(nn.RNN(5, 8, nonlinearity="relu")),
        {},
        r"model: 0 is a recur.*write",
    ),
    "an RNNCell": (lambda: nn.Sequential(nn.RNNCell(5, 8, nonlinearity="relu")), {}, "model: 0 is a recurrent"),
    "an RNN by function": (Functional, {"value": Functional()}, "model: rnn_relu is a recurrent"),
    "no ReLU": (lambda: Called(torch.tanh), {}, "model: calls no ReLU.*give a model that calls"),
    "another batch norm": (
        Past,
        {"batch_norm": "off"},
        r"value: batch_norm is not called as .* or use batch",
    ),
    "soft gates of a fused model": (
        lambda: fuse_relu(nn.Sequential(nn.Linear(5, 8), nn.ReLU())),
        {"gate": "soft"},
        "gate: soft gates need torch's own ReLUs; take the twin of the model before fuse_relu",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_and_nothing_is_left(what):
    make, given, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        gated_twin(make(), **given)(X)
    assert not torch._C._len_torch_function_stack()
    assert torch.is_grad_enabled()


def test_other_calls_in_the_value_network_are_refused():
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 8)
            self.more = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(self.a(x))
            return self.more(z) if self.a.weight.sum() > 0 else z

    twin = gated_twin(Depends())
    with torch.no_grad():
        twin.feature.a.weight.fill_(1.0)
        twin.value.a.weight.fill_(-1.0)
    with pytest.raises(ValueError, match="value: calls 1 ReLUs, the feature network 2; a twin needs"):
        twin(X)
    twin.feature, twin.value = twin.value, twin.feature
    with pytest.raises(ValueError, match=r"value: more\.1 is call 2 of its kind, the feature network has 1; a twin"):
        twin(X)
