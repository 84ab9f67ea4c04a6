"""gated_twin draws every value weight, or an error names the weights that nothing draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from gatedops import GatedLinear, gated_twin

L = nn.Linear
OLD = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")


def net(first: nn.Module, wide: int = 8) -> nn.Module:
    return nn.Sequential(first, nn.ReLU(), L(wide, 3))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


class Low(nn.Module):
    """Adds a product of two thin matrices, which have weights of their own, to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = L(5, 2, bias=False), L(2, 8, bias=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up.weight @ self.down.weight


class Symmetric(nn.Module):
    """A parametrization without right_inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


def low_rank() -> nn.Module:
    layer = L(5, 8)
    parametrize.register_parametrization(layer, "weight", Low())
    return net(layer)


def symmetric() -> nn.Module:
    layer = L(5, 5)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return net(layer, 5)


def twice() -> nn.Module:
    layer = parametrizations.weight_norm(L(5, 8))
    return net(parametrizations.spectral_norm(layer))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mix = nn.MultiheadAttention(5, 1, batch_first=True), L(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = x.unsqueeze(1)
        return self.mix(self.attention(z, z, z, need_weights=False)[0].relu().squeeze(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = L(5, 5), L(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


# torch keeps the weights of these nets in different ways. They take inputs (n, 5).
KEPT = {
    "spectral_norm": lambda: net(nn.utils.spectral_norm(L(5, 8))),
    "weight_norm": lambda: net(nn.utils.weight_norm(L(5, 8))),
    "both": lambda: net(nn.utils.weight_norm(nn.utils.spectral_norm(L(5, 8)), "bias")),
    "new spectral_norm": lambda: net(parametrizations.spectral_norm(L(5, 8))),
    "new weight_norm": lambda: net(parametrizations.weight_norm(L(5, 8))),
    "orthogonal": lambda: net(parametrizations.orthogonal(L(5, 8))),
    "orthogonal by maps": lambda: net(parametrizations.orthogonal(L(5, 8), orthogonal_map="cayley")),
    "two on one": twice,
    "one with weights": low_rank,
    "one without an inverse": symmetric,
    "pruned": lambda: net(prune.random_unstructured(L(5, 8), "weight", 0.3)),
    "attention": Attending,
    "tied": Tied,
    "own": lambda: nn.Sequential(GatedLinear(5, 8), L(8, 3)),
    "prelu": lambda: nn.Sequential(L(5, 8), nn.PReLU(), L(8, 8), nn.ReLU(), L(8, 3)),
    "norms": lambda: nn.Sequential(L(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.BatchNorm1d(8), L(8, 3)),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.utils.spectral_norm(nn.Conv1d(1, 2, 3)), nn.ReLU(), nn.Flatten(), L(6, 3)
    ),
}
# Drawing gives these parameters the numbers that they had. In an orthogonal layer, a matrix that is drawn multiplies
# them.
CONSTANT = ("prelu.1", "norms.1", "norms.3", "orthogonal.0", "orthogonal by maps.0")


@OLD
@pytest.mark.parametrize("kind", KEPT)
def test_every_parameter_is_drawn_anew_and_the_model_keeps_its_own(kind):
    torch.manual_seed(0)
    model, x = KEPT[kind](), torch.randn(4, 5)
    if kind != "norms":
        model(x)
    model.eval()
    before, expected = weights(model), model(x)
    keys = list(model.state_dict())
    twin = gated_twin(model)
    assert list(twin.value.state_dict()) == keys
    assert [type(m).__name__ for m in twin.value.modules()] == [type(m).__name__ for m in model.modules()]
    for name, parameter in twin.value.named_parameters():
        layer = f"{kind}.{name.split('.')[0]}"
        assert parameter.isfinite().all(), name
        assert parameter.requires_grad
        same = (parameter == before[name]).float().mean()
        assert same < 0.2 or layer in CONSTANT or "bias" in name.rpartition(".")[2], name
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    twin.eval()
    assert torch.equal(twin(x), twin(x))
    assert torch.equal(gated_twin(model, model).eval()(x), expected)
    twin.train()(x).sum().backward()
    assert all(p.grad is not None for p in twin.value.parameters())


@OLD
@pytest.mark.parametrize("kind", ["spectral_norm", "new spectral_norm", "conv"])
def test_a_spectral_norm_is_one_of_the_new_weight(kind):
    torch.manual_seed(0)
    model = KEPT[kind]()
    for _ in range(20):
        model(torch.randn(4, 5))
    twin = gated_twin(model)
    for _ in range(20):
        twin(torch.randn(4, 5))
    layer = twin.value[1 if kind == "conv" else 0]
    assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_a_new_spectral_norm_fits_before_the_first_call():
    layer = gated_twin(KEPT["new spectral_norm"]()).value[0]
    assert torch.linalg.matrix_norm(layer.weight.detach(), 2).item() == pytest.approx(1, abs=0.05)
    assert layer.parametrizations.weight[0].training


@OLD
@pytest.mark.parametrize("kind", ["weight_norm", "new weight_norm", "pruned"])
def test_what_is_drawn_is_the_weight_that_counts(kind):
    model = KEPT[kind]()
    torch.manual_seed(3)
    twin = gated_twin(model).eval()
    torch.manual_seed(3)
    L(8, 3)
    expected = L(5, 8).weight
    if kind == "pruned":
        expected = expected * model[0].weight_mask
    twin(torch.randn(2, 5))
    torch.testing.assert_close(twin.value[0].weight, expected)


def test_orthogonal_weights_are_orthogonal():
    for kind in ("orthogonal", "orthogonal by maps"):
        model = KEPT[kind]()
        w = gated_twin(model).value[0].weight
        assert (w - model[0].weight).abs().mean() > 0.05
        torch.testing.assert_close(w.mT @ w, torch.eye(5), atol=1e-5, rtol=0)


def test_tied_weights_stay_tied():
    twin = gated_twin(Tied())
    assert twin.value.a.weight is twin.value.b.weight
    assert twin.feature.a.weight is twin.feature.b.weight


# --- init -------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Has a parameter that nothing draws; `drawn` is what a method would give it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = L(5, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.fc(x) * self.scale).relu()


class InTimm(Scaled):
    def init_weights(self, mode: str = "") -> None:
        nn.init.constant_(self.fc.weight, 0.5)
        nn.init.ones_(self.scale)


class InTransformers(Scaled):
    _is_hf_initialized = False

    def __init__(self) -> None:
        super().__init__()
        self._is_hf_initialized = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, L):
            module.weight.data.fill_(0.5)
        if isinstance(module, InTransformers):
            module.scale.data.fill_(1.0)

    def init_weights(self) -> None:
        if not getattr(self, "_is_hf_initialized", False):
            self.apply(self._init_weights)


class Vgg(Scaled):
    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, L):
                nn.init.constant_(module.weight, 0.5)
        self.scale.fill_(1.0)


class Reset(Scaled):
    def reset_parameters(self) -> None:
        self.fc.weight.fill_(0.5)
        self.scale.fill_(1.0)


@pytest.mark.parametrize("make", [InTimm, InTransformers, Vgg])
@pytest.mark.parametrize("inside", [False, True])
def test_a_models_own_methods(make, inside):
    model = nn.Sequential(make(), L(8, 3)) if inside else make()
    twin = gated_twin(model, init="model")
    value = twin.value[0] if inside else twin.value
    assert value.fc.weight.eq(0.5).all()
    assert value.scale.eq(1).all()
    assert not value.fc.bias.eq(model[0].fc.bias if inside else model.fc.bias).any()


def test_methods_of_inner_models_come_first():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = InTimm()

        def init_weights(self) -> None:
            self.inner.fc.weight.data.mul_(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    assert gated_twin(Outer(), init="model").value.inner.fc.weight.eq(1.0).all()


def test_reset_parameters_of_a_model_draws_with_torchs():
    twin = gated_twin(Reset())
    assert twin.value.fc.weight.eq(0.5).all()


@OLD
def test_a_function_works_on_plain_weights_that_torch_has_drawn():
    seen = []

    def init(network: nn.Module) -> None:
        seen.append(network[2].weight.isfinite().all() and not torch.is_grad_enabled())
        nn.init.constant_(network[0].weight, 2.0)

    for kind in ("weight_norm", "new weight_norm", "pruned"):
        model = KEPT[kind]()
        twin = gated_twin(model, init=init)
        twin(torch.randn(2, 5))
        weight = twin.value[0].weight
        mask = model[0].weight_mask if kind == "pruned" else torch.ones(8, 5)
        torch.testing.assert_close(weight, 2.0 * mask)
    assert all(seen)
    assert len(seen) == 3


def test_a_function_draws_what_has_no_reset_parameters():
    twin = gated_twin(Scaled(), init=lambda network: nn.init.normal_(network.scale))
    assert twin.value.scale.isfinite().all()
    assert twin.value.scale.requires_grad


# --- refused ----------------------------------------------------------------------------------------------------


class Half(nn.Module):
    """Draws the first half of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 5))

    def reset_parameters(self) -> None:
        self.w.data[:2].normal_()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w.T)


class Nothing(Scaled):
    def init_weights(self) -> None: ...


class Raises(Scaled):
    def _init_weights(self, m: nn.Module) -> None:
        nn.init.orthogonal_(m.bias)


class Unclear(Scaled):
    def init_weights(self, gain: float) -> None: ...


class Numbered(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)


WRONG = {
    "whole numbers": (Numbered, {}, r"order, of Numbered, is torch\.int64.*make it a buffer"),
    "torch's own layers": (lambda: net(L(5, 8)), {"init": "model"}, r"the model \(Sequential\) has none of"),
    "a model without numbers": (lambda: net(L(5, 8).to("meta")), {}, r"0\.weight is on the device meta.*load the"),
    "a method that raises": (Raises, {"init": "model"}, "init: _init_weights of Raises raises .*; give init="),
    "a method of other arguments": (Unclear, {"init": "model"}, r"the model \(Unclear\) has none of"),
    "a parameter that nothing draws": (Scaled, {}, "nothing draws scale, of Scaled; give init="),
    "in a list": (lambda: nn.Sequential(Half(), nn.ParameterList([torch.ones(2)])), {}, "nothing draws 0.w, of Half"),
    "half of it": (Half, {}, "nothing draws w, of Half"),
    "what a function leaves": (Scaled, {"init": lambda net: None}, "nothing draws scale, of Scaled"),
    "no method": (Scaled, {"init": "model"}, r"init: 'model' needs a method .* the model \(Scaled\) has none"),
    "no method inside": (
        lambda: nn.Sequential(InTimm(), nn.Sequential(Half())),
        {"init": "model"},
        r"1\.0 \(Half\) has none of",
    ),
    "a method that does nothing": (lambda: nn.Sequential(L(3, 3), Tied2()), {"init": "model"}, "draw none of"),
    "another word": (Tied, {"init": "kaiming"}, "init: got 'kaiming', needs"),
    "a number": (Tied, {"init": 3}, "init: got int, needs"),
    "both": (Tied, {"init": "model", "value": Tied()}, "init: says how weights are drawn"),
    "a lazy layer": (lambda: net(nn.LazyLinear(8)), {}, "0.weight of a lazy layer .* call the model on a batch"),
}


class Tied2(Tied):
    def init_weights(self) -> None: ...


@pytest.mark.parametrize("what", WRONG)
def test_refused_by_name(what):
    make, given, message = WRONG[what]
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises((ValueError, TypeError), match=message):
        gated_twin(model, **given)
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert isinstance(ours, nn.parameter.UninitializedParameter) or ours.is_meta or torch.equal(ours, theirs)


def test_an_exception_of_a_function_goes_through_and_leaves_the_model():
    model = KEPT["new weight_norm"]()
    x = torch.randn(3, 5)
    expected = model(x)

    def broken(network: nn.Module) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gated_twin(model, init=broken)
    assert torch.equal(model(x), expected)
    assert parametrize.is_parametrized(model[0])
