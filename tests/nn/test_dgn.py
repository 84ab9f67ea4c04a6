"""DGN and DLGN compute their formulas and path sums, train the right network, and work as modules do."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dgns import (
    ARCHITECTURES,
    CASES,
    HARD,
    VARIANTS,
    by_hand,
    feature_pre_activations,
    gates_by_hand,
    inputs_of,
    model_of,
    modules_of,
    seeded,
)
from hypothesis import given
from hypothesis import strategies as st
from paths import all_paths, features, values
from saved_tensors import saved_tensors
from strategies import examples
from tolerances import FLOAT64_SUMS, assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from gatedops import DGN, DLGN, GateBits, fuse_relu, record_gates, reference
from gatedops.nn import conv_spec, fc_spec


def gradients(model, output):
    """Computes the gradient of a scalar made of the output for every parameter; None if there is none."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    made = iter(torch.autograd.grad(output.square().sum(), wanted, allow_unused=True))
    return [next(made) if p.requires_grad else None for p in model.parameters()]


def assert_same_model(model, x):
    """Checks that output and gradients are those of the formulas."""
    output, expected = model(x), by_hand(model, x)
    if not len(x):
        assert output.shape == expected.shape
        return
    assert_close_in_float64(output, expected)
    for ours, theirs in zip(gradients(model, output), gradients(model, expected), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_close_in_float64(ours, theirs)


# --- the function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_output_and_gradients_are_those_of_the_formulas(architecture, variant):
    assert_same_model(model_of(architecture, variant), inputs_of(architecture, 6))


@examples(40)
@given(
    variant=st.sampled_from(sorted(VARIANTS)),
    inputs=st.integers(1, 9),
    width=st.sampled_from([1, 2, 31, 32, 33, 64, 65]),
    depth=st.integers(1, 4),
    rows=st.sampled_from([0, 1, 2, 7]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fully_connected_ones_of_any_size(variant, inputs, width, depth, rows, bias, seed):
    kind, arguments = VARIANTS[variant]
    spec = fc_spec(inputs, [width] * depth, 2, bias=bias)
    arguments = arguments | {"generator": seeded(seed), "dtype": torch.float64}
    if "order" in arguments:
        arguments["order"] = torch.randperm(depth, generator=seeded(seed))
    if variant == "FL":
        arguments["feature"] = spec.relu_net(seed + 1)
    x = torch.randn(rows, inputs, generator=seeded(seed), dtype=torch.float64)
    assert_same_model(kind(spec, **arguments), x)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_in_float32_it_is_as_good_as_torch(architecture, variant):
    model, x = model_of(architecture, variant, dtype=torch.float32), inputs_of(architecture, 6, dtype=torch.float32)
    exact = copy.deepcopy(model).double()
    rounded = [gate.double() for gate in gates_by_hand(model, x)] if model.gate == "hard" else None
    assert_as_good_as_torch(model(x), by_hand(model, x), by_hand(exact, x.double(), rounded))


@pytest.mark.parametrize(("architecture", "variant"), [case for case in CASES if case[1] in HARD])
def test_gates_are_of_the_feature_network_in_the_value_networks_order(architecture, variant):
    model, x = model_of(architecture, variant), inputs_of(architecture, 5)
    bits = model.gates(x)
    pre_activations = feature_pre_activations(model, x)
    names = [layer.name for layer in record_gates(model.value, x).layers]
    expected = [reference.pack_gates(pre_activations[layer]) for layer in model.order]
    for place, packed in enumerate(expected):
        assert torch.equal(bits.unpack()[place], packed.unpack()[0])
        assert bits.layers[place].name == names[model.order[place]]
    assert bits == bits.compact()
    assert not bits.words.requires_grad


@pytest.mark.parametrize(("architecture", "variant"), [case for case in CASES if case[1] in HARD])
def test_given_gates_take_the_place_of_the_feature_network(architecture, variant):
    model, x = model_of(architecture, variant, dtype=torch.float32), inputs_of(architecture, 5, dtype=torch.float32)
    bits = model.gates(x)
    output, own = model(x, gates=bits), model(x)
    assert_same_bits(output, own)
    for ours, theirs in zip(gradients(model, output), gradients(model, own), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_same_bits(ours, theirs)
    with torch.no_grad():
        for parameter in model.feature.parameters():
            parameter.fill_(torch.nan)
    assert_same_bits(model(x, bits), own)


def test_soft_gates_have_bits_too():
    model, x = model_of("vconv", "DL, permuted"), inputs_of("vconv", 3)
    pre_activations = feature_pre_activations(model, x)
    for gate, layer in zip(model.gates(x).unpack(), model.order, strict=True):
        assert torch.equal(gate, pre_activations[layer] > 0)


def test_a_gate_that_is_off_gives_exactly_zero():
    model = DGN(fc_spec(1, [2], 2, bias=False), "FR-II")
    with torch.no_grad():
        model.feature[0].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.value[0].weight.copy_(torch.tensor([[torch.inf], [3.0]]))
        model.value[2].weight.fill_(1.0)
    assert model(torch.ones(1, 1)).tolist() == [[3.0, 3.0]]
    assert model(torch.full((1, 1), torch.nan)).tolist() == [[0.0, 0.0]]


# --- neural path features and values ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", HARD)
def test_the_output_sums_the_feature_networks_paths_times_the_value_networks(variant):
    """Lists every path, with gates from the feature network's weights and values from the value network's."""
    kind, arguments = VARIANTS[variant]
    spec = fc_spec(3, [4, 4, 4], 1, bias=False)
    if "order" in arguments:
        arguments = arguments | {"order": (1, 2, 0)}
    if variant == "FL":
        arguments = arguments | {"feature": spec.relu_net(5)}
    model = kind(spec, generator=seeded(3), dtype=torch.float64, **arguments)
    x = torch.randn(6, 3, generator=seeded(4), dtype=torch.float64)
    weights = [m.weight.detach().numpy() for m in modules_of(model.value) if isinstance(m, nn.Linear)]
    own = [m.weight.detach().numpy() for m in modules_of(model.feature) if isinstance(m, nn.Linear)]
    gates, h = [], x.numpy()
    for weight in own:
        q = (x.numpy() if model.shallow else h) @ weight.T
        gates.append(q > 0)
        h = q if isinstance(model, DLGN) else np.maximum(q, 0)
    gates = [gates[layer] for layer in model.order]
    assert any(gate.any() and not gate.all() for gate in gates)
    paths = all_paths(weights)
    z = x.numpy() if model.value_input == "x" else np.ones((6, 3))
    expected = features(z, gates, paths) @ values(weights, paths)
    found = model(x).detach().numpy()[:, 0]
    assert np.abs(found - expected).max() <= FLOAT64_SUMS * np.abs(expected).max()


def test_the_output_is_linear_in_the_weights_of_a_value_layer_and_pieces_of_pwc_are_constant():
    model, x = model_of("fc without biases", "FR-II"), inputs_of("fc without biases", 5)
    before = model(x)
    with torch.no_grad():
        # The output is linear in this weight; that of a ReLU network would not be.
        model.value[2].weight.mul_(-2)
    assert torch.equal(model(x), -2 * before)
    constant = model_of("fc without biases", "FR-II, PWC, permuted")
    assert constant.gates(x) == constant.gates(2 * x)  # without biases all points of a ray have the same gates
    assert torch.equal(constant(2 * x), constant(x))
    assert not torch.equal(constant(x)[:1], constant(x)[1:2])


def test_a_circular_gap_network_does_not_notice_rotations():
    model = DGN(conv_spec((2, 5, 4), [4, 4], [6], 3, head="gap", padding_mode="circular"), dtype=torch.float64)
    x = inputs_of("gconv", 4)
    assert_close_in_float64(model(x.roll((2, 1), (2, 3))), model(x))


# --- modes ------------------------------------------------------------------------------------------------------


def trained(net, x, steps=5):
    """Returns the network after some steps of Adam on random labels."""
    labels = torch.randint(3, (len(x),), generator=seeded())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fl_has_the_gates_of_the_trained_network_bit_for_bit(architecture, tmp_path):
    make, _ = ARCHITECTURES[architecture]
    x = inputs_of(architecture, 40, dtype=torch.float32)
    start = DGN(make(), "FR-DI", generator=seeded(1)).value
    net = trained(copy.deepcopy(start), x)
    expected = record_gates(net, x)
    assert expected != record_gates(start, x)
    torch.save(net.state_dict(), tmp_path / "checkpoint.pt")
    checkpoint = torch.load(tmp_path / "checkpoint.pt")
    for feature in (net, checkpoint):
        model = DGN(make(), "FL", feature=feature)
        assert model.gates(x) == expected
        trained(model, x, 2)
        assert model.gates(x) == expected
    again = DGN(net, "FL", feature=model.feature)
    assert again.gates(x) == expected
    own = [again.value.state_dict()[key] for key in again.feature.state_dict() if key.endswith("weight")]
    theirs = [net.state_dict()[key] for key in again.feature.state_dict() if key.endswith("weight")]
    assert not any(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))  # the weights are drawn anew


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_di_has_the_gates_of_the_initial_relu_network(architecture):
    make, _ = ARCHITECTURES[architecture]
    x = inputs_of(architecture, 40, dtype=torch.float32)
    model = DGN(make(), "FR-DI", generator=seeded(1))
    expected = record_gates(model.value, x)
    if architecture != "strided net":
        assert expected == record_gates(make().relu_net(generator=seeded(1)), x)
    assert model.gates(x) == expected
    assert torch.equal(model(x), model.value(x))  # the value network gates itself at this point
    trained(model, x)
    assert model.gates(x) == expected
    assert record_gates(model.value, x) != expected


def test_a_given_network_is_architecture_but_in_di_it_is_the_start():
    net = DGN(ARCHITECTURES["strided net"][0](), generator=seeded(7)).value
    state, x = copy.deepcopy(net.state_dict()), inputs_of("strided net", 9, dtype=torch.float32)
    start = DGN(net, "FR-DI")
    assert start.gates(x) == record_gates(net, x)
    assert_same_bits(start(x), net(x))
    for mode in ("FR-II", "DL"):
        other = DGN(net, mode, generator=seeded(8))
        again = DGN(net, mode, generator=seeded(8))
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), again.parameters(), strict=True))
        for key, weight in other.feature.state_dict().items():
            if key.endswith("weight"):
                assert not torch.equal(weight, state[key])
                assert not torch.equal(weight, other.value.state_dict()[key])
    trained(start, x)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_which_network_learns(variant):
    model, x = model_of("vconv", variant, dtype=torch.float32), inputs_of("vconv", 9, dtype=torch.float32)
    before = copy.deepcopy(model)
    trained(model, x)
    for ours, old in zip(model.value_parameters(), before.value_parameters(), strict=True):
        assert not torch.equal(ours, old)
    learns = model.mode == "DL"
    for ours, old in zip(model.feature_parameters(), before.feature_parameters(), strict=True):
        assert ours.requires_grad == learns
        assert (ours.grad is not None) == learns
        assert torch.equal(ours, old) != learns
    assert sum(1 for _ in model.parameters()) == len([*model.value_parameters(), *model.feature_parameters()])


@pytest.mark.parametrize("architecture", ["fc", "vconv"])
@pytest.mark.parametrize("variant", HARD)
def test_nothing_is_kept_for_a_frozen_feature_network(architecture, variant):
    model = model_of(architecture, variant, dtype=torch.float32)
    x = inputs_of(architecture, 16, dtype=torch.float32).requires_grad_()
    bits = model.gates(x)
    alone, _ = saved_tensors(lambda: model(x, gates=bits))
    saved, output = saved_tensors(lambda: model(x))
    weights = {p.data_ptr() for p in model.feature_parameters()}
    assert not any(t.data_ptr() in weights for t in saved)
    assert sorted(t.shape for t in saved if t.is_floating_point()) == sorted(
        t.shape for t in alone if t.is_floating_point()
    )
    assert all(t.dtype == torch.int32 for t in saved if not t.is_floating_point())
    output.sum().backward()
    assert (x.grad is not None) == (model.value_input == "x")


@pytest.mark.parametrize("architecture", ["fc", "gconv"])
def test_freezing_features(architecture):
    model, x = model_of(architecture, "DL"), inputs_of(architecture, 5)
    soft = model(x)
    model.freeze_features()
    assert model.gate == "soft"
    assert_same_bits(model(x), soft)
    assert not any(p.requires_grad for p in model.feature_parameters())
    assert all(p.requires_grad for p in model.value_parameters())
    assert_same_model(model, x)
    model.freeze_features(hard=True)
    assert model.gate == "hard"
    assert_same_model(model, x)
    assert_same_bits(model(x, gates=model.gates(x)), model(x))


def test_trained_together_it_learns_what_a_value_network_alone_does_not():
    x = torch.randn(300, 6, generator=seeded())
    labels = (x[:, 0] * x[:, 1] > 0).long()
    losses = {}
    for mode in ("FR-II", "DL"):
        model = DGN(fc_spec(6, [16, 16], 2), mode, generator=seeded(1))
        optimizer = torch.optim.Adam(model.parameters(), 3e-2)
        for _ in range(60):
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[mode] = loss.item()
    assert losses["DL"] < 0.2
    assert losses["DL"] < losses["FR-II"]


# --- specs ------------------------------------------------------------------------------------------------------


def test_specs_are_the_papers_networks():
    net = fc_spec(784).relu_net(0)
    assert [m.weight.shape for m in net if isinstance(m, nn.Linear)] == [(128, 784), *[(128, 128)] * 4, (10, 128)]
    assert [type(m) for m in net] == [nn.Linear, nn.ReLU] * 5 + [nn.Linear]
    for head, flat in (("flatten", 128 * 32 * 32), ("gap", 128)):
        net = conv_spec(head=head).relu_net(0, device="meta")
        assert [m.out_channels for m in net if isinstance(m, nn.Conv2d)] == [64, 64, 128, 128]
        assert [m.weight.shape for m in net if isinstance(m, nn.Linear)] == [(256, flat), (256, 256), (10, 256)]
        assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert fc_spec(5, [3]) == fc_spec(5, (3,))
    assert hash(conv_spec()) == hash(conv_spec((3, 32, 32)))


def test_weights_are_glorot_uniform_and_biases_zero_whatever_the_device():
    net = conv_spec((3, 8, 8), [16], [50], 4).relu_net(seed=1)
    for layer in net:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            per_tap = layer.weight[0, 0].numel()
            bound = (6 / (layer.weight.shape[0] + layer.weight.shape[1]) / per_tap) ** 0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.abs().max() > 0.9 * bound
            assert abs(layer.weight.mean()) < 0.2 * bound
            assert not layer.bias.any()
            assert layer.bias.requires_grad
    state = torch.get_rng_state()
    same = conv_spec((3, 8, 8), [16], [50], 4).relu_net(generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


# --- the module -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_pickles_and_state_dicts(variant):
    model, x = model_of("fc", variant), inputs_of("fc", 4)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    loaded = model_of("fc", variant, seed=50)
    assert not torch.equal(loaded(x), model(x))
    loaded.load_state_dict(torch.load(stream))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert_same_bits(other(x), model(x))
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    assert f"mode={model.mode}, gate={model.gate}" in repr(model)


@pytest.mark.parametrize(
    ("architecture", "variant"), [("fc", "DLGN-SF"), ("vconv", "DLGN-SF"), ("vconv", "FR-II"), ("strided net", "DL")]
)
def test_dtype_and_device(architecture, variant):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = model_of(architecture, variant, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(inputs_of(architecture, 3, dtype=dtype)).dtype == dtype
    meta = model_of(architecture, variant, device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    x = inputs_of(architecture, 3).to("meta")
    assert meta(x).shape == (3, 3)
    assert meta.gates(x).device.type == "meta"
    net = DGN(ARCHITECTURES["strided net"][0]().double())
    assert {p.dtype for p in net.parameters()} == {torch.float64}


@pytest.mark.parametrize("variant", ["FR-II", "DL", "DLGN"])
@pytest.mark.parametrize("architecture", ["fc", "vconv"])
def test_fusing_changes_nothing(architecture, variant):
    model, x = model_of(architecture, variant), inputs_of(architecture, 4)
    fused = fuse_relu(model, x)
    assert fused.fuse_report.replaced == ()  # a DGN runs the layers of its networks in pairs, not as modules
    assert_same_bits(fused(x), model(x))
    assert fused.gates(x) == model.gates(x)


@pytest.mark.parametrize("variant", ["FR-II", "DL", "DLGN-SF"])
def test_autocast(variant):
    model, x = model_of("fc", variant, dtype=torch.float32), inputs_of("fc", 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.value_parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", ["FR-II", "DL"])
def test_without_rows(architecture, variant):
    model, x = model_of(architecture, variant), inputs_of(architecture, 0)
    assert model(x).shape == (0, 3)
    assert model.gates(x).n == 0


@pytest.mark.parametrize("variant", ["FR-II", "FR-II, soft", "DL, as released", "DLGN", "DLGN-SF", "DL, permuted"])
def test_compiles_into_one_graph(variant):
    torch._dynamo.reset()
    model = model_of("fc", variant, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = inputs_of("fc", 5, dtype=torch.float32)
    output, expected = compiled(x), model(x)
    assert_same_bits(output, expected)
    for ours, theirs in zip(gradients(model, output), gradients(model, expected), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    if model.gate == "hard":
        assert_same_bits(compiled(x, model.gates(x)), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("variant", ["FR-II", "DL", "DLGN", "DLGN-SF", "DL, permuted"])
def test_many_seeds_as_one_batched_model(variant):
    models = [model_of("fc", variant, seed) for seed in range(3)]
    for model in models:
        model.requires_grad_(True)
    x = inputs_of("fc", 4)
    parameters, _ = stack_module_state(models)
    shared = copy.deepcopy(models[0]).to("meta")

    def loss(parameters, *arguments):
        return functional_call(shared, parameters, (x, *arguments)).square().sum()

    found = vmap(grad(loss))(parameters)
    calls = [found]
    if models[0].gate == "hard":
        bits = [model.gates(x) for model in models]
        words = torch.stack([b.words for b in bits])
        calls.append(vmap(grad(lambda p, w: loss(p, GateBits(w, bits[0].layers))))(parameters, words))
    for made in calls:
        for seed, model in enumerate(models):
            expected = gradients(model, by_hand(model, x))
            for (name, parameter), theirs in zip(model.named_parameters(), expected, strict=True):
                assert_close_in_float64(made[name][seed], torch.zeros_like(parameter) if theirs is None else theirs)
