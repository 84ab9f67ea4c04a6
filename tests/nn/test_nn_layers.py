"""GatedLinear, GatedConv2d and Gate work as torch's layers do, and have the right gates."""

from __future__ import annotations

import copy
import io
import pickle
import socket
import time

import pytest
import torch
from saved_tensors import saved_tensors
from strategies import LAYOUTS, pre_activations
from tolerances import assert_as_good_as_torch, assert_same_bits
from torch import nn

from gatedops import Gate, GateBits, GatedConv2d, GatedLinear, pack_gates, reference
from gatedops.ops.gated_linear_gate import apply_gate, relu_with_gates

PAIRS = {
    "linear": (lambda **o: GatedLinear(5, 40, **o), lambda **o: nn.Linear(5, 40, **o), (6, 5)),
    "linear without bias": (
        lambda **o: GatedLinear(5, 40, False, **o),
        lambda **o: nn.Linear(5, 40, False, **o),
        (6, 5),
    ),
    "linear of tokens": (lambda **o: GatedLinear(5, 40, **o), lambda **o: nn.Linear(5, 40, **o), (2, 3, 5)),
    "conv": (lambda **o: GatedConv2d(3, 33, 3, **o), lambda **o: nn.Conv2d(3, 33, 3, **o), (2, 3, 7, 6)),
    "conv with everything": (
        lambda **o: GatedConv2d(4, 8, (3, 2), 2, "valid", 2, 2, False, "circular", **o),
        lambda **o: nn.Conv2d(4, 8, (3, 2), 2, "valid", 2, 2, False, "circular", **o),
        (2, 4, 9, 9),
    ),
}
SHAPES = [(5, 37), (0, 37), (3, 4, 70), (2, 40, 3, 5), (2, 33, 9, 9), (2, 1, 3, 3), (2, 5, 1, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def made(which: str, **options):
    """Makes our layer and torch's from the same random numbers, and an input."""
    ours, torchs, shape = PAIRS[which]
    layers = []
    for make in (ours, torchs):
        torch.manual_seed(0)
        layers.append(make(**options))
    return *layers, torch.randn(shape, dtype=layers[0].weight.dtype)


# --- drop-in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PAIRS)
def test_parameters_initialisation_and_keys_are_those_of_torch(which):
    ours, torchs, _ = made(which)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for name, value in torchs.state_dict().items():
        assert_same_bits(ours.state_dict()[name], value)
    assert ours.load_state_dict(torchs.state_dict())
    assert repr(ours) == f"Gated{torchs!r}"
    assert isinstance(ours, type(torchs))


@pytest.mark.parametrize("which", PAIRS)
def test_a_call_is_the_layer_of_torch_and_relu(which):
    ours, torchs, x = made(which)
    expected = torch.relu(torchs(x))
    assert_same_bits(ours(x), expected)
    y, bits = ours(x, return_gates=True)
    assert_same_bits(y, expected)
    assert bits == reference.pack_gates(expected if x.dim() != 3 else expected.flatten(0, 1))


@pytest.mark.parametrize("which", PAIRS)
def test_gates_from_outside(which):
    ours, torchs, x = made(which)
    product = torchs(x)
    mask = torch.rand(product.shape) < 0.5
    expected = torch.where(mask, product, 0)
    bits = pack_gates(mask)
    assert_same_bits(ours(x, mask), expected)
    assert_same_bits(ours(x, bits), expected)
    y, returned = ours(x, bits, return_gates=True)
    assert_same_bits(y, expected)
    assert returned is bits
    assert torch.equal(ours(x, mask, return_gates=True)[1].unpack()[0].reshape(mask.shape), mask)
    soft = torch.rand(product.shape)
    assert_same_bits(ours(x, soft), product * soft)


@pytest.mark.parametrize("which", PAIRS)
def test_device_and_dtype_arguments(which):
    ours, torchs, x = made(which, dtype=torch.float64)
    assert_same_bits(ours(x), torch.relu(torchs(x)))
    meta = PAIRS[which][0](device="meta", dtype=torch.bfloat16)
    y, bits = meta(x.to("meta", torch.bfloat16), return_gates=True)
    assert (y.device.type, y.dtype, y.shape) == ("meta", torch.bfloat16, torchs(x).shape)
    assert bits.device.type == "meta"
    assert {p.dtype for p in meta.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("which", PAIRS)
def test_copies_and_pickles(which):
    ours, _, x = made(which)
    stream = io.BytesIO()
    torch.save(ours.state_dict(), stream)
    stream.seek(0)
    loaded = PAIRS[which][0]()
    loaded.load_state_dict(torch.load(stream))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
        assert_same_bits(other(x), ours(x))


@pytest.mark.parametrize("which", PAIRS)
@pytest.mark.parametrize("kind", ["own", "hard", "soft"])
def test_gradients_are_those_of_torch(which, kind):
    def gradients(layer, compute, gated):
        layer = layer.to(compute)
        x = made(which)[2].to(compute).requires_grad_()
        product = (nn.functional.linear(x, layer.weight, layer.bias) if x.dim() < 4 else layer._conv_forward(
            x, layer.weight, layer.bias
        )) if not gated else None  # fmt: skip
        shape = made(which)[1](made(which)[2]).shape
        torch.manual_seed(1)
        gate = {"own": None, "hard": torch.rand(shape) < 0.5, "soft": torch.rand(shape).to(compute)}[kind]
        y = layer(x, gate) if gated else product.relu() if gate is None else product * gate
        y.backward(torch.randn(shape).to(compute))
        return [x.grad, *(p.grad for p in layer.parameters())]

    truth = gradients(made(which)[1], torch.float64, False)
    torchs = gradients(made(which)[1], torch.float32, False)
    for ours, other, exact in zip(gradients(made(which)[0], torch.float32, True), torchs, truth, strict=True):
        assert_as_good_as_torch(ours, other, exact)


# --- Gate -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_recorded_gates_and_values(dtype, shape, layout):
    q = LAYOUTS[layout](pre_activations(shape[0], shape[1:], dtype, seed=0))
    gate = Gate(record=True)
    z = gate(q)
    assert torch.equal(z.isnan(), q.isnan())
    assert_same_bits(z.nan_to_num(), torch.relu(q).nan_to_num())
    assert gate.gates == reference.pack_gates(q)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    expected = torch.where(mask, q, 0)
    for given in (mask, pack_gates(mask), GateBits.pack([~mask, mask]).select_layers([1])):
        found = apply_gate(q, given)
        assert torch.equal(found.isnan(), expected.isnan())
        assert_same_bits(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_activations_keep_their_memory_format(memory_format):
    q = torch.randn(2, 8, 5, 6).contiguous(memory_format=memory_format)
    z, bits = relu_with_gates(q)
    assert z.is_contiguous(memory_format=memory_format)
    assert apply_gate(q, bits).is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4), (2, 3, 2, 2)], ids=str)
def test_derivatives_of_recording_and_of_given_gates(shape):
    q = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    bits = pack_gates(torch.rand(shape) < 0.5)
    soft = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    for function, arguments in (
        (lambda q: relu_with_gates(q)[0], (q,)),
        (lambda q: apply_gate(q, bits), (q,)),
        (apply_gate, (q, soft)),
    ):
        assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, arguments)


def test_a_recording_gate_keeps_one_bit_per_gate():
    q = torch.randn(64, 32, 8, 8, requires_grad=True)
    saved, _ = saved_tensors(lambda: Gate(record=True)(q))
    assert [(t.dtype, t.nbytes) for t in saved] == [(torch.int32, 64 * 64 * 8)]


def test_a_gate_is_a_relu_that_remembers_only_when_told():
    gate, q = Gate(), torch.randn(3, 4, 5, 6, 7)
    assert_same_bits(gate(q), torch.relu(q))
    assert gate.gates is None
    assert repr(gate) == "Gate()"
    assert repr(Gate(record=True)) == "Gate(record=True)"
    assert not gate.state_dict()


def test_one_network_gates_another():
    torch.manual_seed(0)

    def network():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), Gate(record=True), nn.Flatten(), nn.Linear(8 * 36, 20), Gate(record=True)
        )

    features, values, x = network(), network(), torch.randn(4, 3, 8, 8)
    features(x)
    for theirs, own in zip(features, values, strict=True):
        if isinstance(own, Gate):
            own.given = theirs.gates
    found = values(x)
    first = values[0](x) * (features[0](x) > 0)
    second = values[3](first.flatten(1)) * (features[3](torch.relu(features[0](x)).flatten(1)) > 0)
    assert_same_bits(found, second + 0.0)
    assert [m.gates for m in values if isinstance(m, Gate)] == [m.gates for m in features if isinstance(m, Gate)]
    other = copy.deepcopy(values)
    assert_same_bits(other(x), found)


def test_a_given_gate_may_be_soft_and_is_then_not_recorded():
    gate, q = Gate(record=True), torch.randn(3, 40)
    soft = torch.rand(3, 40)
    gate(q)
    assert_same_bits(gate(q, soft), q * soft)
    assert gate.gates is None
    mask = soft > 0.5
    gate.given = soft
    gate(q, mask)
    assert gate.gates == pack_gates(mask)


# --- torch.export, torch.compile, DDP ---------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = GatedConv2d(3, 8, 3), GatedLinear(8 * 36, 20)

    def forward(self, x: torch.Tensor, gate: GateBits | None = None):
        h, conv_gates = self.conv(x, return_gates=True)
        y, gates = self.linear(h.flatten(1), gate, return_gates=True)
        return y, conv_gates, gates


def test_layers_are_exported_with_any_number_of_rows(tmp_path):
    torch.manual_seed(0)
    network, x = Network(), torch.randn(4, 3, 8, 8)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(network, (x,), dynamic_shapes=({0: rows},))
    torch.export.save(program, tmp_path / "network.pt2")
    loaded = torch.export.load(tmp_path / "network.pt2").module()
    for n in (4, 9):
        x = torch.randn(n, 3, 8, 8)
        found, expected = loaded(x), network(x)
        assert_same_bits(found[0], expected[0])
        assert found[1] == expected[1]
        assert found[2] == expected[2]


def test_layers_compile_without_a_break_and_train():
    torch.manual_seed(0)
    network = Network()
    twin = copy.deepcopy(network)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 9):
        x = torch.randn(n, 3, 8, 8)
        for one in (network, compiled):
            one.zero_grad()
            one(x)[0].square().sum().backward()
        for ours, expected in zip(twin.parameters(), network.parameters(), strict=True):
            assert_same_bits(ours.grad, expected.grad)


def test_a_recording_gate_compiles():
    torch._dynamo.reset()
    gate, q = Gate(record=True), torch.randn(3, 40)
    assert_same_bits(torch.compile(gate, fullgraph=True, backend="aot_eager")(q), torch.relu(q))
    assert gate.gates == pack_gates(q)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distributed_data_parallel_trains_the_layers():
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.manual_seed(0)
    network, x = Network(), torch.randn(4, 3, 8, 8)
    expected = copy.deepcopy(network)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", world_size=1, rank=0)
    try:
        parallel = nn.parallel.DistributedDataParallel(network)
        parallel(x)[0].square().sum().backward()
    finally:
        # torch can wait for ever if a process group ends while a thread of gloo drops its last work.
        time.sleep(0.5)
        torch.distributed.destroy_process_group()
    expected(x)[0].square().sum().backward()
    for ours, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert_same_bits(ours.grad, other.grad)
