"""GateCache holds the gates of a data set, and training from them is the same bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from dgns import ARCHITECTURES, HARD, IMPOSSIBLE, inputs_of, model_of, seeded
from hypothesis import given
from hypothesis import strategies as st
from nets import made
from strategies import dense, examples, random_bits
from tolerances import assert_same_bits
from torch.utils.data import DataLoader, TensorDataset

from gatedops import DGN, GateBits, GateCache, fuse_relu, gated_twin, record_gates
from gatedops.nn import fc_spec

CASES = [(a, v) for a in ARCHITECTURES for v in HARD if (a, v) not in IMPOSSIBLE]


def losses(model, x, labels, batches, cache=None, optimizer=torch.optim.Adam):
    """Trains a copy of the model; returns the loss of each step and the parameters at the end."""
    model = copy.deepcopy(model)
    steps = optimizer(model.value_parameters(), 1e-2)
    seen = []
    for rows in batches:
        output = model(x[rows]) if cache is None else model(x[rows], gates=cache[rows])
        loss = F.cross_entropy(output, labels[rows])
        steps.zero_grad()
        loss.backward()
        steps.step()
        seen.append(loss.detach())
    return torch.stack(seen), list(model.parameters())


def assert_same_training(model, x, cache, batch_size, optimizer=torch.optim.Adam):
    labels = torch.randint(3, (len(x),), generator=seeded(1))
    generator = seeded(2)
    batches = [torch.randperm(len(x), generator=generator)[:batch_size] for _ in range(6)]
    found, parameters = losses(model, x, labels, batches, cache, optimizer)
    expected, others = losses(model, x, labels, batches, None, optimizer)
    assert_same_bits(found, expected)
    assert len(found.unique()) > 1
    for ours, theirs in zip(parameters, others, strict=True):
        assert_same_bits(ours.detach(), theirs.detach())


# --- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_losses_are_the_same_bit_for_bit(architecture, variant, tmp_path):
    model, x = model_of(architecture, variant, dtype=torch.float32), inputs_of(architecture, 50, dtype=torch.float32)
    cache = GateCache.build(model, x, 16)
    assert_same_training(model, x, cache, 16)
    assert_same_training(model, x, GateCache.build(model, x, 16, tmp_path / "gates"), 16, torch.optim.SGD)


@pytest.mark.parametrize("batch_size", [1, 32, 100])
def test_of_the_papers_network(batch_size):
    spec = fc_spec(784, outputs=3)
    model = DGN(spec, "FL", feature=spec.relu_net(1), generator=seeded())
    x = torch.rand(330, 784, generator=seeded())
    cache = GateCache.build(model, x, batch_size)
    assert cache.bits.nbytes == 330 * 160  # for all of MNIST it would be 9.6 MB
    assert_same_training(model, x, cache, batch_size)


def test_the_feature_network_never_runs():
    model, x = model_of("vconv", "FL", dtype=torch.float32), inputs_of("vconv", 20, dtype=torch.float32)
    labels, batches = torch.zeros(20, dtype=torch.long), [torch.arange(16)] * 3
    cache = GateCache.build(model, x)
    expected, _ = losses(model, x, labels, batches, cache)
    for module in model.feature:
        module.register_forward_pre_hook(lambda *_: pytest.fail("the feature network runs"))
    with torch.no_grad():
        for parameter in model.feature_parameters():
            parameter.fill_(torch.nan)
    found, _ = losses(model, x, labels, batches, cache)
    assert_same_bits(found, expected)


# --- twins -------------------------------------------------------------------------------------------------------


def trained_twin(net, x, gates_of, batches):
    """Trains a twin of the net for a few steps; returns the losses and the weights at the end."""
    torch.manual_seed(3)
    twin = gated_twin(net, pool=gates_of[1]).train()
    for module in twin.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    cache = GateCache.build(twin, x, 4) if gates_of[0] else None
    if cache is not None:
        for module in twin.feature.modules():
            module.register_forward_pre_hook(lambda *_: pytest.fail("the feature network runs"))
    steps = torch.optim.Adam(twin.value.parameters(), 1e-2)
    seen = []
    for rows in batches:
        output = twin(x[rows]) if cache is None else twin(x[rows], gates=cache[rows])
        loss = output.square().sum()
        steps.zero_grad()
        loss.backward()
        steps.step()
        seen.append(loss.detach())
    return torch.stack(seen), list(twin.value.parameters())


@pytest.mark.parametrize("pool", ["feature", "value"])
@pytest.mark.parametrize("name", ["vgg", "resnet", "transformer", "every form"])
def test_a_twin_trains_the_same_bit_for_bit(name, pool):
    net, x = made(name, 12)
    batches = [torch.randperm(12, generator=seeded(i))[:4] for i in range(4)]
    found, weights = trained_twin(net, x, (True, pool), batches)
    expected, others = trained_twin(net, x, (False, pool), batches)
    assert_same_bits(found, expected)
    assert len(found.unique()) > 1
    for ours, theirs in zip(weights, others, strict=True):
        assert_same_bits(ours.detach(), theirs.detach())


def test_a_twins_gates_are_those_that_are_recorded(tmp_path):
    net, x = made("vgg", 6)
    cache = GateCache.build(gated_twin(net), x, 3, tmp_path / "gates")
    choices = [layer.name for layer in cache.bits.layers if layer.kind == "select"]
    gates = [layer.name for layer in cache.bits.layers if layer.kind == "gate"]
    assert cache.bits.select_layers(gates).compact() == record_gates(net, x, 3)
    assert choices == ["0.3", "0.7"]
    assert gated_twin(net, pool="value").gates(x) == record_gates(net, x)


def test_a_twin_of_a_fused_net_and_of_volumes():
    fused = fuse_relu(torch.nn.Sequential(*(torch.nn.Linear(6, 6), torch.nn.ReLU()) * 2, torch.nn.Linear(6, 2)))
    volumes = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 2), torch.nn.ReLU(), torch.nn.Flatten())
    for net, x in ((fused, torch.randn(5, 6)), (volumes, torch.randn(5, 1, 3, 4, 5))):
        twin = gated_twin(net)
        cache = GateCache.build(twin, x)
        assert_same_bits(twin(x, gates=cache[:]), twin(x))


TWIN_X = torch.randn(3, 2, 8, 8)


def pooled(*layers):
    return torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.ReLU(), *layers)


TWIN_WRONG = {
    "soft gates": ({"gate": "soft"}, (), lambda t: t.gates(TWIN_X), "model: the gates of this twin are soft.*'hard'"),
    "statistics": (
        {"batch_norm": "feature"},
        (),
        lambda t: GateCache.build(t, TWIN_X),
        "model: batch_norm='feature'",
    ),
    "another pool": (
        {},
        (torch.nn.AdaptiveMaxPool2d(2),),
        lambda t: t.gates(TWIN_X),
        r"model: 2 pools \(3, 2, 8, 8\), but bits.* use pool='value'",
    ),
    "other rows": ({}, (), lambda t: t(TWIN_X, gates=t.gates(TWIN_X[:2])), "gates: has 2 rows, the inputs have 3"),
    "a tensor": ({}, (), lambda t: t(TWIN_X, gates=TWIN_X), "gates: got Tensor"),
    "gates of fewer layers": (
        {},
        (torch.nn.ReLU(),),
        lambda t: t(TWIN_X, gates=gated_twin(pooled()).gates(TWIN_X)),
        "value: 2 is call 2 of its kind, the cache has 1",
    ),
    "gates of more layers": (
        {},
        (),
        lambda t: t(TWIN_X, gates=gated_twin(pooled(torch.nn.ReLU())).gates(TWIN_X)),
        "value: calls 1 ReLUs, the cache 2",
    ),
    "gates of another size": (
        {},
        (),
        lambda t: t(TWIN_X, gates=t.gates(TWIN_X[..., 1:])),
        r"value: 1 has shape \(3, 2, 8, 8\), its gate \(3, 2, 8, 7\)",
    ),
    "choices of another window": (
        {},
        (torch.nn.MaxPool2d(2),),
        lambda t: t(TWIN_X, gates=gated_twin(pooled(torch.nn.MaxPool2d(4))).gates(TWIN_X)),
        r"gates: 2 holds choices \(16, 2, 2, 2\), but the max-pool .* needs \(4, 2, 4, 4\)",
    ),
    "choices of other pools": (
        {},
        (torch.nn.AdaptiveMaxPool2d(2),),
        lambda t: t(TWIN_X, gates=gated_twin(pooled(torch.nn.MaxPool2d(4))).gates(TWIN_X)),
        "gates: bits hold no choices of adaptive_max_pool2d",
    ),
    "what it fits": ({}, (), lambda t: GateCache(t.gates(TWIN_X)).require_fits(t), "model: got GatedTwin"),
}


@pytest.mark.parametrize("what", TWIN_WRONG)
def test_what_a_twins_cache_cannot_do_is_refused_by_name(what):
    given, layers, call, message = TWIN_WRONG[what]
    twin = gated_twin(pooled(*layers), **given)
    with pytest.raises((ValueError, TypeError), match=message):
        call(twin)
    assert not torch._C._len_torch_function_stack()
    assert not any(module._forward_hooks for module in twin.modules())


def test_inputs_along_another_axis_are_refused():
    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 4)

        def forward(self, x):
            return F.relu(self.fc(x.transpose(0, 1))).sum(0)

    with pytest.raises(ValueError, match=r"model: relu works on \(5, 2, 4\) for 2 inputs.*batch_first"):
        GateCache.build(gated_twin(Turned()), torch.randn(2, 5, 3))


# --- building ---------------------------------------------------------------------------------------------------


@examples(25)
@given(
    variant=st.sampled_from(HARD),
    architecture=st.sampled_from(["fc", "gconv"]),
    rows=st.sampled_from([1, 2, 15, 16, 17, 33]),
    batch_size=st.sampled_from([1, 2, 16, 40]),
)
def test_it_holds_the_gates_of_every_row(tmp_path, variant, architecture, rows, batch_size):
    model, x = model_of(architecture, variant), inputs_of(architecture, rows)
    expected = model.gates(x)  # in float64 no pre-activation is so close to 0 that rounding could change its gate
    cache = GateCache.build(model, x, batch_size)
    assert cache.bits == expected
    assert len(cache) == rows
    path = tmp_path / "gates"
    assert GateCache.build(model, x, batch_size, path).bits == expected
    assert GateCache.load(path).bits == GateBits.load(path) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["gates"]
    index = torch.randint(rows, (5,), generator=seeded())
    assert GateCache.load(path)[index] == model.gates(x[index])
    assert cache[rows - 1] == expected[rows - 1 :]


def test_batches_of_any_kind():
    model, x = model_of("fc", "FR-II"), inputs_of("fc", 13)
    expected = model.gates(x)
    assert GateCache.build(model, DataLoader(TensorDataset(x, torch.zeros(13)), 4)).bits == expected
    assert GateCache.build(model, [x[:4], x[4:13]]).bits == expected
    assert GateCache.build(model, ((part,) for part in x.split(3))).bits == expected


def test_batches_have_the_same_number_of_rows():
    model, x = model_of("fc", "FR-II"), inputs_of("fc", 13)
    seen = []
    model.gates = lambda inputs: seen.append(len(inputs)) or DGN.gates(model, inputs)
    GateCache.build(model, x, 5)
    assert seen == [5, 5, 5]


def test_given_bits_and_what_it_fits():
    model, x = model_of("fc", "FR-II"), inputs_of("fc", 13)
    cache = GateCache(model.gates(x))
    cache.require_fits(model)
    assert "GateCache: GateBits of 13 inputs: 3 layers, 99 gates" in repr(cache)
    with pytest.raises(ValueError, match=r"layers of \(33\), \(33\), \(33\); this network has \(4, any, any\)"):
        cache.require_fits(model_of("vconv", "FR-II"))


def test_a_cache_moves_and_is_saved_as_its_gates_are(tmp_path):
    cache = GateCache.build(MODEL, X, path=tmp_path / "gates")
    for moved in (cache.to("cpu", copy=True), cache.cpu(), cache.to(torch.device("meta"))):
        assert isinstance(moved, GateCache)
    assert cache.to("cpu", copy=True).bits == cache.bits
    assert cache.to("meta").bits.device.type == "meta"
    with pytest.raises(TypeError, match=r"dtype: got torch.float32, but gates are bits"):
        cache.to(torch.float32)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no CUDA GPU here"):
            cache.cuda()
    torch.save({"gates": cache}, tmp_path / "saved")
    found = torch.load(tmp_path / "saved", weights_only=True)["gates"]
    assert isinstance(found, GateCache)
    assert found.bits == cache.bits


def test_a_bar_when_asked_for(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("gatedops.progress._DELAY", 0.0)
    GateCache.build(model_of("fc", "FR-II"), inputs_of("fc", 3), 1, progress=True)
    assert "caching gates" in capsys.readouterr().err
    GateCache.build(model_of("fc", "FR-II"), inputs_of("fc", 3), 1)
    assert not capsys.readouterr().err


# --- errors -----------------------------------------------------------------------------------------------------

MODEL, X = model_of("fc", "FR-II"), inputs_of("fc", 5)

# Maps what is wrong to (what the message says, the call for a folder).
WRONG = {
    "a model without gates of its own": ("model: got Linear", lambda _: GateCache.build(torch.nn.Linear(7, 3), X)),
    "soft gates": ("model: its gates are soft", lambda _: GateCache.build(model_of("fc", "DL"), X)),
    "no rows": ("data: got shape", lambda _: GateCache.build(MODEL, X[:0])),
    "no batches": ("data: has no batches", lambda _: GateCache.build(MODEL, [])),
    "an empty batch": ("data: batch 1 has shape", lambda _: GateCache.build(MODEL, [X, X[:0]])),
    "batches of labels": ("data: batch 0 is int", lambda _: GateCache.build(MODEL, [3])),
    "a dataset": ("data: got TensorDataset", lambda _: GateCache.build(MODEL, TensorDataset(X))),
    "inputs of another shape": ("x: got shape", lambda _: GateCache.build(MODEL, X[:, 1:])),
    "no batch size": ("batch_size: got 0", lambda _: GateCache.build(MODEL, X, 0)),
    "half a batch": ("batch_size: got 2.5", lambda _: GateCache.build(MODEL, X, 2.5)),
    "a folder": ("path: .* is a folder", lambda at: GateCache.build(MODEL, X, path=at)),
    "no folder": ("path: .* lies in no existing folder", lambda at: GateCache.build(MODEL, X, path=at / "a" / "b")),
    "an open file": ("path: got int", lambda _: GateCache.build(MODEL, X, path=3)),
    "a tensor as bits": ("bits: got Tensor", lambda _: GateCache(X)),
    "gates of other layers": ("gates: has layers", lambda _: MODEL(X, GateCache(random_bits(5, dense(33, 33)))[:])),
    "gates of other rows": ("gates: has 2 rows, x has 5", lambda _: MODEL(X, GateCache(MODEL.gates(X))[:2])),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_argument_is_named_and_nothing_is_written(what, tmp_path):
    message, call = WRONG[what]
    with pytest.raises((ValueError, TypeError), match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "gates"
    before = GateCache.build(MODEL, X, path=path).bits
    for failing in ([X, X[:, 1:]], broken()):
        with pytest.raises((ValueError, KeyboardInterrupt)):
            GateCache.build(MODEL, failing, path=path)
        assert [file.name for file in tmp_path.iterdir()] == ["gates"]
        assert GateCache.load(path).bits == before


def broken():
    yield X
    raise KeyboardInterrupt


def test_files_that_hold_no_gates(tmp_path):
    with pytest.raises(FileNotFoundError):
        GateCache.load(tmp_path / "none")
    path = tmp_path / "gates"
    GateCache.build(MODEL, X, path=path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"gates: .* cut off .*\(.*file not fully covered"):
        GateCache.load(path)
    path.write_bytes(b"gates")
    with pytest.raises(ValueError, match=r"gates: is not a safetensors file.*\(.*header too small"):
        GateCache.load(path)
