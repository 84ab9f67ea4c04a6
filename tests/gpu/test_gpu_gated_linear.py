"""Gated layers on an NVIDIA GPU: tests the reference, the CPU's bits, derivatives, compilation, graphs, determinism."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from gated_layers import GATES, IDS, KINDS, gate_of, pair_problem, problem
from gpu import COMPILER, DEVICE, DRY, OF_THE_COMPILER, captured, needs_gpu, not_dry, on_gpu, only_on
from saved_tensors import saved_tensors
from strategies import generator, special_values
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch.nn.functional import linear

from gatedops import Gate, GateBits, GatedLinear, gated_linear, gated_linear_pair, npk_gram, reference
from gatedops.backends.choice import backend_of

pytestmark = [
    *needs_gpu("portable", "triton"),
    *OF_THE_COMPILER,
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores.*:UserWarning"),
]

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES, torch.float64]
# These are leading, inputs and gates: whole tiles, parts of tiles, aligned, not aligned, and empty layers.
SHAPES = [((33,), 20, 70), ((1,), 1, 1), ((600,), 150, 257), ((3, 5), 64, 256), ((1024,), 512, 768), ((0,), 4, 33),
          ((4,), 0, 33)]  # fmt: skip


@pytest.fixture(autouse=True)
def first_tiles(monkeypatch):
    """Uses one tile for each kernel, because timing all of them would compile four times as much."""
    if DRY or backend_of("cuda", "gated_linear") != "triton":
        return
    from gatedops.triton import gated_linear_tuning as tuning

    monkeypatch.setattr(tuning, "fitting", lambda tiles, *_: tiles[:1])


@contextmanager
def float32_products(precision):
    """Sets torch.set_float32_matmul_precision inside a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def assert_as_good(ours, torchs, truth):
    if ours.dtype == torch.float64:
        assert_close_in_float64(ours, truth)
    else:
        assert_as_good_as_torch(ours, torchs, truth)


def integers(*shape, dtype, seed, most=2):
    """Makes small whole numbers, whose products and sums are exact in every dtype and order."""
    return torch.randint(-most, most + 1, shape, generator=generator(seed)).to(dtype)


def integer_layer(rows, inputs, width, dtype, seed=0):
    x, weight = (
        integers(rows, inputs, dtype=dtype, seed=seed),
        integers(width, inputs, dtype=dtype, seed=seed + 1, most=1),
    )
    return x, weight, integers(width, dtype=dtype, seed=seed + 2)


# --- values and gates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", GATES)
def test_a_layer_is_as_good_as_torch(kind, shape, dtype):
    x, weight, bias = on_gpu(*problem(*shape, dtype))
    leading, _, width = shape
    (gate,) = on_gpu(gate_of(kind, leading, width, dtype))
    product, exact = linear(x, weight, bias), linear(x.double(), weight.double(), bias.double())
    y = gated_linear(x, weight, bias, gate)
    assert y.shape == product.shape
    if kind == "own":
        y, bits = gated_linear(x, weight, bias, return_gates=True)
        assert bits == reference.pack_gates((y > 0).reshape(-1, width))
        assert_as_good(y, product.relu(), exact.relu())
    elif kind == "hard":
        assert_same_bits(gated_linear(x, weight, bias, GateBits.pack([gate.reshape(-1, width)])), y)
        assert_as_good(y, torch.where(gate, product, 0), torch.where(gate, exact, 0))
    else:
        assert_as_good(y, product * gate, exact * gate.double())


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", [(33,), (3, 5), (600,), (0,)], ids=str)
def test_a_pair_is_as_good_as_torch(leading, dtype, kind):
    arguments = on_gpu(*pair_problem(leading, (40, 24), 257, dtype))
    h_next, z_next, bits = gated_linear_pair(*arguments, **kind, gain=0.5)
    q, v = linear(*arguments[:3]), linear(*arguments[3:])
    exact_q, exact_v = linear(*[t.double() for t in arguments[:3]]), linear(*[t.double() for t in arguments[3:]])
    linear_feature = kind["feature"] == "linear"
    assert_as_good(h_next, *((t if linear_feature else t.relu()) for t in (q, exact_q)))
    on = h_next > 0
    assert bits == reference.pack_gates(on.reshape(-1, 257))
    if kind["gate"] == "hard":
        assert_as_good(z_next, torch.where(on, v, 0), torch.where(on, exact_v, 0))
    else:
        assert_as_good(z_next, *(b * 0.5 * torch.sigmoid(4 * a) for a, b in ((q, v), (exact_q, exact_v))))


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 7, 33), (70, 64, 257), (300, 48, 512)], ids=str)
def test_whole_numbers_give_the_cpus_bits(shape, dtype, precision):
    """This holds for forward, backward and gates, hard and own, single and pair."""
    rows, inputs, width = shape
    layer = integer_layer(rows, inputs, width, dtype)
    value = integer_layer(rows, inputs, width, dtype, seed=5)
    mask = torch.rand(rows, width, generator=generator(9)) < 0.5
    cotangents = [integers(rows, width, dtype=dtype, seed=seed, most=1) for seed in (11, 12)]

    def results(device):
        a, b, gate, c, d = (t.to(device) for t in (layer[0], value[0], mask, *cotangents))
        weights = [t.detach().to(device).requires_grad_() for t in (*layer[1:], *value[1:])]
        leaves = [a.clone().requires_grad_(), b.clone().requires_grad_(), *weights]
        own, bits = gated_linear(leaves[0], *weights[:2], return_gates=True)
        hard = gated_linear(leaves[0], *weights[:2], gate)
        h, z, made = gated_linear_pair(leaves[0], *weights[:2], leaves[1], *weights[2:])
        torch.autograd.backward([own, hard, h, z], [c, d, d, c])
        return [t.detach().cpu() for t in (own, bits.words, hard, h, z, made.words)], [t.grad.cpu() for t in leaves]

    with float32_products(precision):
        (ours, ours_grads), (cpus, cpus_grads) = results(DEVICE), results("cpu")
    for one, other in zip(ours, cpus, strict=True):
        assert_same_bits(one, other)
    if dtype in (torch.float32, torch.float64):  # Sums over rows exceed the whole numbers that half precision holds.
        for one, other in zip(ours_grads, cpus_grads, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_pass_as_on_a_cpu(dtype):
    weight = special_values(dtype).repeat(7)[:70].unsqueeze(1).contiguous()
    x = torch.ones(5, 1, dtype=dtype)
    cpu = gated_linear(x, weight, return_gates=True)
    y, bits = gated_linear(*on_gpu(x, weight), return_gates=True)
    assert torch.equal(y.cpu().isnan(), cpu[0].isnan())
    assert torch.equal(y.cpu().nan_to_num(), cpu[0].nan_to_num())
    assert_same_bits(bits.words.cpu(), cpu[1].words)
    off = torch.zeros(5, 70, dtype=torch.bool, device=DEVICE)
    assert_same_bits(gated_linear(*on_gpu(x, weight), None, off).cpu(), torch.zeros(5, 70, dtype=dtype))
    h_next, z_next, _ = gated_linear_pair(*on_gpu(x, weight), None, *on_gpu(x, weight.flip(0).contiguous()), None)
    on = h_next > 0
    assert_same_bits(z_next[~on], torch.zeros_like(z_next[~on]))
    assert torch.equal(h_next.cpu().isnan(), cpu[0].isnan())


@pytest.mark.parametrize("memory", ["transposed", "every other", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_arguments_of_any_strides(dtype, memory):
    def of(t):
        if memory == "transposed":
            return t.T.contiguous().T
        return (
            torch.stack([t, -t], -1)[..., 0] if memory == "every other" else torch.cat([t, t], 1)[:, 1 : 1 + t.shape[1]]
        )

    x, weight, bias = on_gpu(*problem((130,), 64, 256, dtype))
    found = []
    for a, w in ((of(x), of(weight)), (of(x).contiguous(), of(weight).contiguous())):
        a, w = a.detach().requires_grad_(), w.detach().requires_grad_()
        y = gated_linear(a, w, bias)
        y.sum().backward()
        found.append((y.detach(), a.grad.contiguous(), w.grad.contiguous()))
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


@not_dry("it asks for 24 GiB of GPU memory")
def test_more_elements_than_an_int32_counts():
    rows, width = (1 << 31) // 1024 + 300, 1024
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.randn(rows, 16, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.randn(width, 16, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    y, bits = gated_linear(x, weight, return_gates=True)
    last = slice(rows - 200, rows)
    expected = linear(x[last], weight).relu()
    assert_as_good_as_torch(
        y[last].detach(), expected.detach(), linear(x[last].double(), weight.double()).relu().detach()
    )
    assert torch.equal(bits[last].unpack()[0], y[last] > 0)
    cotangent = torch.zeros_like(y)
    cotangent[-1] = 1
    (gradient,) = torch.autograd.grad(y, weight, cotangent)
    assert torch.equal(gradient, (y[-1] > 0).unsqueeze(1) * x[-1])


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("shape", [((530,), 40, 70), ((5000,), 256, 128), ((3, 50), 64, 512)], ids=str)
def test_gradients_are_as_good_as_torch(shape, dtype, kind):
    leading, inputs, width = shape
    (gate,) = on_gpu(gate_of(kind, leading, width, dtype))
    arguments = on_gpu(*problem(leading, inputs, width, dtype))
    (cotangent,) = on_gpu(problem(leading, width, 1, dtype, seed=3)[0])
    if kind == "own":  # The product decides it, and its sign depends on the dtype, so all use one mask.
        gate = gated_linear(*arguments) > 0

    def gradients(function, compute):
        leaves = [t.detach().to(compute).requires_grad_() for t in arguments]
        given = gate
        if kind == "soft":
            given = gate.detach().to(compute, copy=True).requires_grad_()  # Each call adds to a gradient of its own.
        y = function(*leaves, None if kind == "own" and function is gated_linear else given)
        y.backward(cotangent.to(compute))
        return [t.grad for t in (*leaves, *([given] if kind == "soft" else []))]

    ours, torchs = gradients(gated_linear, dtype), gradients(reference.gated_linear, dtype)
    for one, other, exact in zip(ours, torchs, gradients(reference.gated_linear, torch.float64), strict=True):
        assert_as_good_as_torch(one, other, exact)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_a_pair_are_as_good_as_torch(dtype, kind):
    arguments = on_gpu(*pair_problem((530,), (40, 24), 70, dtype))
    mask = gated_linear_pair(*arguments)[2].unpack()[0]
    cotangents = [torch.randn(530, 70, generator=generator(seed)).to(DEVICE, dtype) for seed in (5, 6)]

    def masked(h, w_f, b_f, z, w_v, b_v, **_):
        q, v = linear(h, w_f, b_f), linear(z, w_v, b_v)
        h_next = torch.where(mask, q, 0) if kind["feature"] == "relu" else q
        return h_next, torch.where(mask, v, 0) if kind["gate"] == "hard" else v * torch.sigmoid(4 * q)

    def gradients(function, compute):
        leaves = [t.detach().to(compute).requires_grad_() for t in arguments]
        h, z, *_ = function(*leaves, **kind)
        torch.autograd.backward([h, z], [c.to(compute) for c in cotangents])
        return [t.grad for t in leaves]

    torchs, truth = gradients(masked, dtype), gradients(masked, torch.float64)
    for one, other, exact in zip(gradients(gated_linear_pair, dtype), torchs, truth, strict=True):
        assert_as_good_as_torch(one, other, exact)


@pytest.mark.parametrize("kind", GATES)
def test_derivatives_are_right(kind):
    x, weight, bias = (t.requires_grad_() for t in on_gpu(*problem((2, 3), 4, 5, torch.float64)))
    (gate,) = on_gpu(gate_of(kind, (2, 3), 5, torch.float64))

    def layer(*given):
        return gated_linear(*given, gate)

    assert torch.autograd.gradcheck(layer, (x, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (x, weight, bias))


def test_a_hard_gate_keeps_the_inputs_and_one_bit_per_gate():
    x, weight, bias = (t.requires_grad_() for t in on_gpu(*problem((1000,), 64, 512, torch.bfloat16)))
    for gate in (None, torch.ones(1000, 512, dtype=torch.bool, device=DEVICE)):
        saved, _ = saved_tensors(lambda given=gate: gated_linear(x, weight, bias, given))
        words = [t for t in saved if t is not x and t is not weight]
        assert [(t.dtype, t.nbytes) for t in words] == [(torch.int32, 1000 * 512 // 8)]


# --- torch around it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_as_one_graph_with_the_same_bits(dtype):
    arguments = on_gpu(*pair_problem((64,), (32, 32), 96, dtype))

    def net(h, w_f, b_f, z, w_v, b_v):
        h_next, z_next, _ = gated_linear_pair(h, w_f, b_f, z, w_v, b_v)
        return gated_linear(h_next, w_f.new_ones(8, 96)).sum() + (2 * z_next).sum()

    compiled = torch.compile(net, fullgraph=True, backend=COMPILER)
    found = []
    for function in (net, compiled):
        leaves = [t.detach().requires_grad_() for t in arguments]
        function(*leaves).backward()
        found.append([t.grad for t in leaves])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("name", ["gated_linear", "gated_linear_relu", "gated_linear_pair", "gate_relu"])
def test_ops_are_what_torch_expects_of_ops(name):
    x, weight, bias = on_gpu(*problem((33,), 20, 70))
    words = gated_linear(x, weight, bias, return_gates=True)[1].words
    arguments = {
        "gated_linear": (x, weight, bias, words, 0),
        "gated_linear_relu": (x, weight, bias),
        "gated_linear_pair": (x, weight, bias, x, weight, None, False),
        "gate_relu": (x.unsqueeze(1),),
    }[name]
    torch.library.opcheck(getattr(torch.ops.gatedops, name).default, arguments)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_graph_of_forward_and_backward_replays_on_new_inputs(kind):
    arguments = [t.requires_grad_() for t in on_gpu(*pair_problem((256,), (64, 64), 128, torch.bfloat16))]
    fresh = on_gpu(*pair_problem((256,), (64, 64), 128, torch.bfloat16, seed=8))
    results: dict[str, torch.Tensor] = {}

    def step():
        for t in arguments:
            t.grad = None
        h, z, bits = gated_linear_pair(*arguments, **kind)
        (h.sum() + (2 * z).sum()).backward()
        results.update(h=h, z=z, words=bits.words, **{str(i): t.grad for i, t in enumerate(arguments)})

    graph = captured(step)
    with torch.no_grad():
        for t, new in zip(arguments, fresh, strict=True):
            t.copy_(new)
    graph.replay()
    replayed = {name: t.detach().clone() for name, t in results.items()}
    step()
    for name, eager in results.items():
        assert_same_bits(replayed[name], eager.detach())


@only_on("triton", "a CUDA graph is captured before its kernels are timed")
def test_a_graph_of_what_never_ran_before_needs_no_timing():
    from gatedops.triton import gated_linear_tuning as tuning

    x, weight, bias = on_gpu(*problem((96,), 64, 128, torch.bfloat16))
    gated_linear(x, weight, bias)  # This compiles the kernel.
    tuning._fastest.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = gated_linear(x, weight, bias)
    graph.replay()
    assert_same_bits(y, gated_linear(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_inputs_same_bits(dtype):
    found = []
    for _ in range(3):
        arguments = [t.requires_grad_() for t in on_gpu(*pair_problem((5000,), (256, 128), 384, dtype))]
        h, z, bits = gated_linear_pair(*arguments)
        torch.autograd.backward([h, z], [torch.ones_like(h), torch.ones_like(z)])
        found.append([h.detach(), z.detach(), bits.words, *(t.grad for t in arguments)])
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert_same_bits(one, first)


@only_on("triton", "tiles are those of its kernels")
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tile_and_way_to_read_gives_the_same_bits(dtype, precision, monkeypatch):
    from gatedops.triton import gated_linear as forward
    from gatedops.triton import gated_linear_backward as backward
    from gatedops.triton import gated_linear_pair as pair
    from gatedops.triton import gated_linear_tuning as tuning

    arguments = on_gpu(*pair_problem((2000,), (256, 128), 384, dtype))
    found = []

    def run():
        monkeypatch.setattr(tuning, "_fastest", {})
        leaves = [t.detach().requires_grad_() for t in arguments]
        h, z, bits = gated_linear_pair(*leaves)
        torch.autograd.backward([h, z], [torch.ones_like(h), torch.ones_like(z)])
        found.append([h.detach(), z.detach(), bits.words, *(t.grad for t in leaves)])

    with float32_products(precision):
        for read in ("aligned", "any"):
            for module in (forward, backward, pair):
                monkeypatch.setattr(module, "way_to_read", lambda *_, only=read: only)
            run()
        for module in (forward, backward, pair):
            monkeypatch.setattr(module, "way_to_read", tuning.way_to_read)
        read = tuning.way_to_read(*arguments[:2])
        for tile in tuning.tiles_of("pair", dtype, tuning.precision_of(dtype), tuning.capability(DEVICE), read):
            monkeypatch.setattr(tuning, "tiles_of", lambda *_, only=tile: [only])
            run()
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert_same_bits(one, first)


@only_on("triton", "its tiles are timed")
def test_a_tile_is_chosen_once_for_batches_of_about_the_same_size(monkeypatch):
    from gatedops.triton import gated_linear_tuning as tuning

    timed = []
    monkeypatch.undo()
    monkeypatch.setattr(tuning, "_fastest", {})
    monkeypatch.setattr(
        tuning, "_timed", lambda tiles, launch, real=tuning._timed: timed.append(tiles) or real(tiles, launch)
    )
    for rows in (2000, 2048, 1025):
        x, weight, bias = on_gpu(*problem((rows,), 256, 512, torch.bfloat16))
        gated_linear(x, weight, bias)
    assert len(timed) == 1
    assert len(timed[0]) > 1
    assert set(tuning._fastest.values()) <= set(timed[0])


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_follows_torchs_precision(precision):
    x, weight, bias = on_gpu(*problem((600,), 500, 257))
    with float32_products(precision):
        exact = linear(x.double(), weight.double(), bias.double()).relu()
        assert_as_good_as_torch(gated_linear(x, weight, bias), linear(x, weight, bias).relu(), exact)


def test_autocast_runs_in_its_dtype():
    arguments = on_gpu(*pair_problem((33,), (20, 12), 70))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        h_next, z_next, _ = gated_linear_pair(*arguments)
        y = gated_linear(*arguments[:3])
    assert {h_next.dtype, z_next.dtype, y.dtype} == {torch.bfloat16}


# --- layers, buffers, errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 300), (3, 6, 70), (2, 9, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_on_activations_of_any_shape(shape, dtype):
    q = torch.randn(shape, generator=generator(0)).to(dtype)
    for memory in (torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])):
        cpu, there = (t.clone(memory_format=memory).requires_grad_() for t in (q, q.to(DEVICE)))
        gate, ours_gate = Gate(record=True), Gate(record=True)
        z, ours = gate(cpu), ours_gate(there)
        assert_same_bits(ours.detach().cpu(), z.detach())
        assert_same_bits(ours_gate.gates.words.cpu(), gate.gates.words)
        ours.sum().backward()
        assert torch.equal(there.grad.cpu(), (q > 0).to(dtype))
        assert ours.stride() == z.stride()


def test_a_layer_moved_to_the_gpu_is_linear_and_relu():
    layer = GatedLinear(64, 96, device=DEVICE, dtype=torch.bfloat16)
    plain = torch.nn.Linear(64, 96, device=DEVICE, dtype=torch.bfloat16)
    plain.load_state_dict(copy.deepcopy(layer.state_dict()))
    x = torch.randn(130, 64, device=DEVICE, dtype=torch.bfloat16)
    exact = linear(x.double(), plain.weight.double(), plain.bias.double()).relu()
    assert_as_good_as_torch(layer(x).detach(), plain(x).relu().detach(), exact.detach())


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_gates_written_into_a_buffer_are_ready_for_the_gram(kind):
    arguments = on_gpu(*pair_problem((37,), (20, 12), 300))
    words = torch.full((37, 40), -7, dtype=torch.int32, device=DEVICE)
    with torch.no_grad():
        expected = gated_linear_pair(*arguments, **kind)
        found = gated_linear_pair(*arguments, **kind, gates_out=words[:, 8:24])
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert_same_bits(one, other)
    assert found[2] == expected[2]
    assert (words[:, :8] == -7).all()
    assert (words[:, 24:] == -7).all()
    assert_same_bits(npk_gram(None, found[2]).cpu(), npk_gram(None, found[2].to("cpu")))


@not_dry("a CPU has no second device")
def test_a_gate_elsewhere_is_refused():
    x, weight, bias = on_gpu(*problem())
    with pytest.raises(ValueError, match="gate: is on cpu, x is on cuda"):
        gated_linear(x, weight, bias, torch.ones(33, 70, dtype=torch.bool))
