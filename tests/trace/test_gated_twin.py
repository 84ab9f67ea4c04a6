"""gated_twin: only the feature network gates the value network."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from nets import INPUTS, ResNet, made, mlp
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import gated_twin, record_gates

NAMES = list(INPUTS)
COMBINATIONS = [("value", "hard"), ("feature", "soft, learnt"), ("off", "soft")]
GATES = {"hard": {}, "soft": {"gate": "soft"}, "soft, learnt": {"gate": "soft", "train_features": True}}


def by_hand(twin: nn.Module, x: Tensor, gate) -> Tensor:
    """A twin of mlp() in plain torch: gate(q) of feature pre-activations q multiplies the value network's."""
    f, z = x, x
    for index in (0, 2):
        q = twin.feature[index](f)
        z = twin.value[index](z) * gate(q)
        f = q.relu()
    return twin.value[4](z)


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


# --- the function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", ["value", "feature"])
@pytest.mark.parametrize("pool", ["feature", "value"])
@pytest.mark.parametrize("name", NAMES)
def test_with_the_nets_own_weights_it_is_the_net(name, pool, batch_norm):
    net, x = made(name, 4)
    twin = gated_twin(net, net, pool, batch_norm).eval()
    assert torch.equal(twin(x), net(x))
    assert torch.equal(gated_twin(net, net.state_dict(), pool, batch_norm).eval()(x), net(x))


def test_without_biases_the_output_is_linear_in_the_value_weights_of_a_layer():
    net, x = mlp(bias=False), torch.randn(5, 6)
    twin = gated_twin(net)
    before = twin(x)
    with torch.no_grad():
        # The twin's output stays linear in this weight; that of a ReLU network would not.
        twin.value[2].weight.mul_(-2)
    assert torch.equal(twin(x), -2 * before)


@pytest.mark.parametrize("kind", GATES)
def test_output_and_gradients_are_those_of_the_formula(kind):
    seeded()
    twin, x = gated_twin(mlp(), beta=3.0, gain=1.2, **GATES[kind]).double(), torch.randn(5, 6).double()
    gate = (lambda q: (q > 0).double()) if kind == "hard" else (lambda q: 1.2 * torch.sigmoid(3.0 * q))
    other = copy.deepcopy(twin)
    output, expected = twin(x), by_hand(other, x, gate)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    output.square().sum().backward()
    expected.square().sum().backward()
    learns = kind == "soft, learnt"
    for (name, ours), theirs in zip(twin.named_parameters(), other.parameters(), strict=True):
        needed = name.startswith("value") or learns
        assert ours.requires_grad == needed
        assert (ours.grad is None) == (not needed or name.startswith("feature.4")), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_a_gate_that_is_off_gives_exactly_zero():
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    twin = gated_twin(net, net)
    with torch.no_grad():
        twin.feature[0].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        twin.value[0].weight.fill_(math.inf)
    assert twin(torch.ones(1, 1)).tolist() == [[0.0, math.inf]]
    assert twin(torch.full((1, 1), math.nan)).tolist() == [[0.0, 0.0]]


def test_gates_are_those_that_are_recorded():
    net, x = made("vgg", 4)
    twin = gated_twin(net, pool="value", batch_norm="off").eval()
    seen: list[Tensor] = []
    for module in twin.value.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, args, output: seen.append(output != 0))
    twin(x)
    for gates, shown in zip(record_gates(net, x).unpack(), seen, strict=True):
        assert_same_bits(shown, gates)


def test_pools_take_the_input_that_the_chosen_network_takes():
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2, return_indices=True))

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[0]

    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    for pool, expected in (("feature", -4.0), ("value", -1.0)):
        twin = gated_twin(First(), pool=pool)
        with torch.no_grad():
            twin.feature.net[1].weight.fill_(1.0)
            twin.value.net[1].weight.fill_(-1.0)
        assert twin(x).item() == expected


def test_batch_norm_of_each_choice():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.relu(self.fc(x)))

    x = torch.randn(9, 3)
    net = Normed()
    for _ in range(3):
        net(torch.randn(20, 3) + 1)
    for batch_norm in ("value", "feature", "off"):
        twin = gated_twin(net.eval(), batch_norm=batch_norm).train()
        z = (twin.value.fc(x) * (net.fc(x) > 0)).detach()
        mean, var = {
            "value": (z.mean(0), z.var(0, correction=0)),
            "feature": (net.norm.running_mean, net.norm.running_var),
        }.get(batch_norm, (0.0, 1.0 - 1e-5))
        torch.testing.assert_close(twin(x), (z - mean) / (var + 1e-5) ** 0.5)
        assert twin.value.norm.weight.requires_grad == (batch_norm != "off")
        assert_same_bits(twin.feature.norm.running_mean, net.norm.running_mean)


def test_statistics_of_a_feature_network_that_learns_are_those_of_its_batch():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    twin = gated_twin(net, batch_norm="feature", gate="soft", train_features=True)
    x = torch.randn(9, 3)
    q = twin.feature[0](x)
    mean, scale = q.mean(0), (q.var(0, correction=0) + 1e-5) ** 0.5
    expected = (twin.value[0](x) - mean) / scale * torch.sigmoid(4 * (q - mean) / scale)
    torch.testing.assert_close(twin(x), expected)


# --- the module ---------------------------------------------------------------------------------------------


def test_the_model_stays_as_it_was_and_apart():
    net, x = made("resnet", 4)
    net.train()
    state = copy.deepcopy(net.state_dict())
    twin = gated_twin(net)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin(x).sum().backward()
    optimizer.step()
    assert net.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert all(torch.equal(twin.feature.state_dict()[key], value) for key, value in state.items())
    assert not torch._C._len_torch_function_stack()


def test_modes():
    twin = gated_twin(made("vgg", 1)[0].train())
    assert (twin.training, twin.value.training, twin.feature.training) == (True, True, False)
    assert (twin.eval().value.training, twin.train().value[0][1].training, twin.feature[0][1].training) == (
        False,
        True,
        False,
    )
    learns = gated_twin(made("vgg", 1)[0], gate="soft", train_features=True)
    assert not learns.feature.training
    assert learns.train().feature.training


def test_new_weights_are_drawn_and_given_ones_are_copied():
    net, _ = made("transformer", 1)
    seeded(1)
    twin = gated_twin(net)
    seeded(1)
    again = gated_twin(net)
    for (name, new), old, same in zip(
        twin.value.named_parameters(), net.parameters(), again.value.parameters(), strict=True
    ):
        assert torch.equal(new, same)
        assert not torch.equal(new, old) or "norm" in name or "in_proj_bias" in name or "out_proj.bias" in name
    given = gated_twin(net, net)
    assert all(
        torch.equal(a, b) and a is not b for a, b in zip(given.value.parameters(), net.parameters(), strict=True)
    )


def test_frozen_models_have_value_networks_that_learn():
    twin = gated_twin(mlp().requires_grad_(False))
    assert all(p.requires_grad for p in twin.value.parameters())
    assert not any(p.requires_grad for p in twin.feature.parameters())


def test_copies_pickles_and_state_dicts():
    net, x = made("resnet", 3)
    twin = gated_twin(net).eval()
    expected = twin(x)
    assert_same_bits(copy.deepcopy(twin)(x), expected)
    assert {key.split(".", 1)[1] for key in twin.state_dict()} == set(net.state_dict())
    other = gated_twin(net).eval()
    other.load_state_dict(twin.state_dict())
    assert_same_bits(other(x), expected)
    small = gated_twin(mlp()).eval()
    assert_same_bits(pickle.loads(pickle.dumps(small))(x[:, 0, 0, :6]), small(x[:, 0, 0, :6]))
    assert "gate=hard, pool=feature, batch_norm=value" in repr(twin)
    assert "soft, beta=2.0, gain=1.0" in repr(gated_twin(mlp(), gate="soft", beta=2.0))


@pytest.mark.parametrize(("batch_norm", "kind"), COMBINATIONS)
def test_compiles_into_one_graph(kind, batch_norm):
    torch.compiler.reset()
    net, x = made("resnet", 4)
    seeded()
    twin = gated_twin(net, batch_norm=batch_norm, **GATES[kind]).train()
    other = copy.deepcopy(twin)
    output = torch.compile(twin, fullgraph=True, backend="aot_eager")(x)
    expected = other(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    output.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(twin.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.fixture
def one_process(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch is built without gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("batch_norm", "kind"), COMBINATIONS)
def test_distributed_data_parallel(kind, batch_norm):
    net, x = made("vgg", 4)
    seeded()
    twin = gated_twin(net, batch_norm=batch_norm, **GATES[kind]).train()
    twin.value[1][3].p = 0.0
    twin.feature[1][3].p = 0.0
    other = copy.deepcopy(twin)
    parallel = nn.parallel.DistributedDataParallel(twin, find_unused_parameters=kind == "soft, learnt")
    for _ in range(2):
        parallel(x).square().sum().backward()
        other(x).square().sum().backward()
    for ours, theirs in zip(twin.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_no_gradient_needs_no_memory_of_the_feature_network():
    twin, x = gated_twin(ResNet()), torch.randn(2, 3, 12, 12, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        twin(x)
    features = {p.data_ptr() for p in twin.feature.parameters()}
    assert saved
    assert not any(t.data_ptr() in features for t in saved)


def test_learns():
    seeded()
    x = torch.randn(200, 6)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    twin = gated_twin(mlp())
    optimizer = torch.optim.Adam(twin.parameters(), 1e-2)
    for _ in range(150):
        loss = F.cross_entropy(twin(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
