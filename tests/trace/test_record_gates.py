"""record_gates gives the gates of a network's pre-activations, and leaves the network as it was."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from memory import needs_proc, peak_mib
from nets import INPUTS, EveryForm, ResNet, made, pre_activations
from strategies import examples, seeds
from tolerances import assert_same_bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gatedops import GateBits, record_gates

BATCH = 4


def expected_gates(name: str, net: nn.Module, x: Tensor) -> list[Tensor]:
    """The gates, computed from the pre-activations of the same batches."""
    parts = [pre_activations(name, net, rows) for rows in x.split(BATCH)]
    return [torch.cat(layer) > 0 for layer in zip(*parts, strict=True)]


def assert_gates(bits: GateBits, expected: list[Tensor]) -> None:
    for found, gates in zip(bits.unpack(), expected, strict=True):
        assert_same_bits(found, gates)


# --- gates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
def test_gates_are_those_of_the_pre_activations(name):
    net, x = made(name, 10)
    expected = expected_gates(name, net, x)
    bits = record_gates(net, x, BATCH)
    assert bits.n == 10
    assert_gates(bits, expected)
    assert bits == GateBits.pack(expected, names=[layer.name for layer in bits.layers])


@pytest.mark.parametrize("make", [EveryForm, ResNet])
def test_names_are_those_of_the_modules(make):
    name = {EveryForm: "every form", ResNet: "resnet"}[make]
    net, x = made(name, 3)
    bits = record_gates(net, x)
    assert tuple(layer.name for layer in bits.layers) == make.names
    assert [layer.shape for layer in bits.layers] == [tuple(q.shape[1:]) for q in pre_activations(name, net, x)]
    assert {layer.kind for layer in bits.layers} == {"gate"}


def test_names_of_other_networks():
    names = {name: [layer.name for layer in record_gates(*made(name, 2)).layers] for name in INPUTS}
    assert names["mlp"] == ["1", "3"]
    assert names["vgg"] == ["0.2", "0.6", "1.2"]
    assert names["transformer"] == ["encoder.layers.0.relu", "encoder.layers.1.relu"]
    assert [layer.name for layer in record_gates(nn.ReLU(), torch.randn(2, 3)).layers] == ["relu"]


def test_on_means_greater_than_zero():
    q = torch.tensor([[0.0, -0.0, float("nan"), 1e-45, -1e-45, float("inf"), float("-inf"), 1.0]])
    assert record_gates(nn.ReLU(), q).unpack()[0].tolist() == [[False, False, False, True, False, True, False, True]]


def test_one_number_for_each_input_is_a_layer_of_one_gate():
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x.sum(1))

    bits = record_gates(Norm(), torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
    assert bits.layers[0].shape == (1,)
    assert bits.unpack()[0].tolist() == [[True], [False]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    net, x = made("mlp", 6)
    net, x = net.to(dtype), x.to(dtype)
    assert_gates(record_gates(net, x, BATCH), expected_gates("mlp", net, x))


def test_autocast_holds_inside():
    net, x = made("mlp", 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert_gates(record_gates(net, x, BATCH), expected_gates("mlp", net, x))


def test_aten_calls_of_an_exported_program_are_seen():
    net, x = made("mlp", BATCH)
    exported = torch.export.export(net, (x,), strict=False).module(check_guards=False)
    assert_gates(record_gates(exported, x, BATCH), expected_gates("mlp", net, x))


@pytest.mark.parametrize("name", ["every form", "vgg"])
def test_a_compiled_network_is_recorded_as_it_was_written(name):
    net, x = made(name, BATCH)
    compiled = torch.compile(net, backend="eager")
    before = record_gates(net, x)
    assert record_gates(compiled, x) == before
    compiled(x)  # this call compiles the code
    assert record_gates(compiled, x) == before


def test_the_fast_path_of_a_transformer_layer_is_seen_too():
    net, x = made("transformer", BATCH)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        fast = net(x)
    assert_gates(record_gates(net, x, BATCH), expected_gates("transformer", net, x))
    with torch.no_grad():
        assert_same_bits(net(x), fast)


def test_other_activations_beside_a_relu_are_named_in_one_warning():
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.LeakyReLU())
    with pytest.warns(UserWarning, match="have no gates") as caught:
        bits = record_gates(net, torch.randn(9, 3), batch_size=2)
    assert len(caught) == 1
    assert "GELU (1), Tanh (4), LeakyReLU (5)" in str(caught[0].message)
    assert bits.widths == (4,)


# --- data ---------------------------------------------------------------------------------------------------


def batches_of(x: Tensor) -> Iterator[Tensor]:
    yield from x.split(BATCH)


@pytest.mark.parametrize(
    "data",
    [
        lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=BATCH),
        lambda x: DataLoader(x, batch_size=BATCH),
        lambda x: list(x.split(BATCH)),
        lambda x: [(rows, "label", None) for rows in x.split(BATCH)],
        batches_of,
    ],
    ids=["loader of pairs", "loader", "list", "tuples", "generator"],
)
def test_batches_from_anywhere_give_the_same_bits(data, tmp_path):
    net, x = made("vgg", 10)
    expected = record_gates(net, x, BATCH, max_pool=True)
    assert record_gates(net, data(x), max_pool=True) == expected
    assert record_gates(net, data(x), out=tmp_path / "gates", max_pool=True) == expected


def test_a_batch_size_that_does_not_divide_or_exceeds_the_rows():
    net, x = made("mlp", 10)
    assert [record_gates(net, x, size).n for size in (1, 3, 10, 11)] == [10] * 4


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["every form", "vgg"])
def test_a_file_is_what_save_writes(name, tmp_path):
    safetensors = importlib.import_module("safetensors.torch")
    net, x = made(name, 10)
    expected = record_gates(net, x, BATCH)
    mapped = record_gates(net, x, BATCH, out=tmp_path / "gates")
    assert mapped == expected
    assert [path.name for path in tmp_path.iterdir()] == ["gates"]
    for mmap in (False, True):
        assert GateBits.load(tmp_path / "gates", mmap=mmap) == expected
    assert_same_bits(safetensors.load_file(tmp_path / "gates")["words"], expected.words)
    assert mapped.words.data_ptr() % 64 == 0


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    net, x = made("mlp", 8)
    path = str(tmp_path / "gates")
    first = record_gates(net, x[:3], out=path)
    with pytest.raises(ValueError, match="shapes cannot be multiplied"):
        record_gates(net, [x, x[:, :2]], out=path)
    assert [file.name for file in tmp_path.iterdir()] == ["gates"]
    assert GateBits.load(path) == first
    assert record_gates(net, x, out=path).n == 8
    assert GateBits.load(path).n == 8


@needs_proc
@pytest.mark.parametrize("to_file", [False, True])
def test_no_more_than_a_batch_of_pre_activations_is_in_memory(to_file, tmp_path):
    out = str(tmp_path / "gates") if to_file else None
    setup = (
        "import os\nfrom gatedops import record_gates\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4096), torch.nn.ReLU())\n"
        "def call(n):\n"
        "    x = torch.ones(1, 4).expand(n, 4)\n"
        f"    return record_gates(net, x, 256, out={out!r}).n\n"
    )
    # The pre-activations take 256 MiB in all and 4 MiB in a batch; the bits take 8 MiB.
    assert peak_mib(setup, "call(n)", sizes=(1024, 16384)) < 32


# --- what recording leaves as it was ------------------------------------------------------------------------


def hooks_of(net: nn.Module) -> list[int]:
    return [
        len(getattr(module, kind))
        for module in net.modules()
        for kind in vars(module)
        if "hooks" in kind and getattr(module, kind) is not None
    ]


@pytest.mark.parametrize("name", INPUTS)
def test_the_network_gives_the_same_bits_while_it_is_recorded(name):
    class Keep(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.outputs = net, []

        def forward(self, x: Tensor) -> Tensor:
            self.outputs.append(self.net(x))
            return self.outputs[-1]

    net, x = made(name, BATCH)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            plain = net(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    keep = Keep(net)
    record_gates(keep, x, max_pool=True)
    assert_same_bits(keep.outputs[-1], plain)


@pytest.mark.parametrize("name", INPUTS)
def test_everything_is_left_as_it_was(name):
    net, x = made(name, 6)
    net.train()
    next(net.children()).eval()
    modes = [module.training for module in net.modules()]
    state, hooks, inputs = copy.deepcopy(net.state_dict()), hooks_of(net), x.clone()
    random = torch.random.get_rng_state()
    record_gates(net, x, BATCH)
    assert [module.training for module in net.modules()] == modes
    assert hooks_of(net) == hooks
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.equal(x, inputs)
    assert not torch._C._len_torch_function_stack()


class Fails(nn.Module):
    """Raises in its second call, after a ReLU, in the middle of a network."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.first, self.error, self.calls = nn.Linear(6, 4), error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = F.relu(self.first(x))
        if self.calls == 2:
            raise self.error
        return x


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), KeyboardInterrupt(), StopIteration()])
@pytest.mark.parametrize("to_file", [False, True])
def test_everything_is_left_as_it_was_when_the_model_raises(error, to_file, tmp_path):
    net = nn.Sequential(Fails(error), nn.ReLU()).train()
    hooks = hooks_of(net)
    with pytest.raises(type(error)) as raised:
        record_gates(net, torch.randn(9, 6), 3, out=tmp_path / "gates" if to_file else None)
    assert raised.value is error
    assert all(module.training for module in net.modules())
    assert hooks_of(net) == hooks
    assert not torch._C._len_torch_function_stack()
    assert torch.is_grad_enabled()
    assert list(tmp_path.iterdir()) == []
    assert record_gates(net, torch.randn(2, 6)).n == 2


def test_a_module_that_catches_errors_inside_keeps_its_names():
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.risky, self.act = Fails(ValueError()), nn.ReLU()
            self.risky.calls = 1

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.risky(x)
            except ValueError:
                return F.relu(self.act(x) - 0.5)

    bits = record_gates(Careful(), torch.randn(3, 6))
    assert [layer.name for layer in bits.layers] == ["risky.relu", "act", "relu"]


def test_the_users_own_hooks_stay():
    net, x = made("mlp", 3)
    calls = []
    handle = net[1].register_forward_hook(lambda *_: calls.append(1))
    record_gates(net, x)
    assert calls
    calls.clear()
    net(x)
    assert len(calls) == 1
    handle.remove()


# --- max-pool choices ---------------------------------------------------------------------------------------


def select_by_loops(z: Tensor, pool: nn.MaxPool2d, gated: bool) -> Tensor:
    """Computes the masks (n, K, C, H', W') window by window: the first of the largest inputs, if its gate is on."""
    kernel, stride, padding, dilation = (
        (v, v) if isinstance(v, int) else v for v in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    n, channels, height, width = z.shape
    rows, columns = pool(z).shape[-2:]
    masks = torch.zeros(n, kernel[0] * kernel[1], channels, rows, columns, dtype=torch.bool)
    for image in range(n):
        for c in range(channels):
            for i in range(rows):
                for j in range(columns):
                    best, chosen = float("-inf"), None
                    for u in range(kernel[0] * kernel[1]):
                        y = i * stride[0] - padding[0] + u // kernel[1] * dilation[0]
                        x = j * stride[1] - padding[1] + u % kernel[1] * dilation[1]
                        if 0 <= y < height and 0 <= x < width and z[image, c, y, x] > best:
                            best, chosen = z[image, c, y, x].item(), u
                    masks[image, chosen, c, i, j] = best > 0 or not gated
    return masks


pools = st.builds(
    lambda kernel, stride, padding, dilation, ceil: nn.MaxPool2d(
        kernel, stride, tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True)), dilation, ceil_mode=ceil
    ),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.booleans(),
)


@examples(30)
@given(pools, st.booleans(), seeds)
def test_choices_are_those_of_every_window(pool, gated, seed):
    generator = torch.Generator().manual_seed(seed)
    # With few different values, some windows have several largest inputs, and some have none that is on.
    z = torch.randint(-3, 3, (2, 3, 7, 6), generator=generator).float()
    z[0, 0, 0, 0] = -1
    net = nn.Sequential(nn.ReLU(), pool) if gated else nn.Sequential(pool, nn.ReLU())
    bits = record_gates(net, z, max_pool=True)
    index = 1 if gated else 0
    layer = bits.layers[index]
    assert (layer.name, layer.kind) == (str(index), "select")
    assert_same_bits(bits.unpack()[index], select_by_loops(z.relu() if gated else z, pool, gated))
    assert_same_bits(bits.unpack()[1 - index], (z if gated else pool(z)) > 0)


def test_every_form_of_max_pool_is_seen():
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            z = F.relu(x)
            same = (
                self.pool(z),
                F.max_pool2d(z, 2),
                F.max_pool2d(input=z, kernel_size=(2, 2), stride=None),
                F.max_pool2d(z, [2], return_indices=True)[0],
                torch.max_pool2d(z, 2, []),
                torch.max_pool2d(z, (2, 2), stride=2),
            )
            return sum(same)

    bits = record_gates(Pools(), torch.randn(3, 2, 4, 6), max_pool=True)
    assert [layer.name for layer in bits.layers] == [
        "relu",
        "pool",
        *["max_pool2d"],
        *(f"max_pool2d#{k}" for k in range(2, 6)),
    ]
    selects = bits.unpack()[1:]
    assert all(torch.equal(selects[0], other) for other in selects)
    assert [layer.kind for layer in record_gates(Pools(), torch.randn(3, 2, 4, 6)).layers] == ["gate"]


# --- progress -----------------------------------------------------------------------------------------------


def test_the_bar_appears_when_asked_for_only(capsys):
    net, x = made("mlp", 4)
    for progress in (None, False):
        record_gates(net, x, 1, progress=progress)
        assert capsys.readouterr().err == ""
    pytest.importorskip("tqdm")
    import gatedops.progress as module

    delay, module._DELAY = module._DELAY, 0.0
    try:
        record_gates(net, x, 1, progress=True)
        assert "recording gates" in capsys.readouterr().err
    finally:
        module._DELAY = delay


def test_without_tqdm_only_a_bar_that_is_asked_for_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    net, x = made("mlp", 4)
    assert record_gates(net, x).n == 4
    with pytest.raises(ModuleNotFoundError, match="tqdm, which is not installed: pip install tqdm"):
        record_gates(net, x, progress=True)


def test_recording_itself_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in INPUTS:
            record_gates(*made(name, 2))
