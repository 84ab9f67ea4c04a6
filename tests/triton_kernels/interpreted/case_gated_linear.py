"""The Triton kernels of gated layers agree with the specification in the interpreter. bfloat16 is left out, because the
interpreter silently gets its products wrong."""

import pytest
import torch
from strategies import special_values
from tolerances import assert_as_good_as_torch, assert_same_bits
from torch.nn.functional import linear

from gatedops import GateBits, reference
from gatedops.triton import gated_linear as layer
from gatedops.triton import gated_linear_backward as backward
from gatedops.triton import gated_linear_gate as gate
from gatedops.triton import gated_linear_pair as pair
from gatedops.triton import gated_linear_tuning as tuning

ops = torch.ops.gatedops
DTYPES = [torch.float32, torch.float16]
SHAPES = [(70, 45, 257), (1, 1, 1), (5, 0, 33), (0, 4, 33)]  # These are rows, inputs and gates.


@pytest.fixture(autouse=True)
def one_tile(monkeypatch):
    """Makes several tiles in each direction, few enough to be quick."""
    monkeypatch.setattr(tuning, "tiles_of", lambda *_: [tuning.Tile(64, 128, 32, 4, 2)])


class Problem:
    """The arguments of a layer, float64 copies of them, gates and cotangents."""

    def __init__(self, shape, dtype, biased=True):
        rows, inputs, width = shape
        draw = torch.Generator().manual_seed(sum(shape))

        def normal(*size):
            return (torch.randn(*size, generator=draw) / max(1, inputs) ** 0.25).to(dtype)

        self.x, self.weight, self.bias = normal(rows, inputs), normal(width, inputs), normal(width)
        self.z, self.w_v = normal(rows, inputs), normal(width, inputs)
        self.gate, self.grad, self.grad_h = normal(rows, width), normal(rows, width), normal(rows, width)
        self.mask = torch.rand(rows, width, generator=draw) < 0.5
        others = torch.rand(rows, 40, generator=draw) < 0.5
        bits = GateBits.pack([others, self.mask])
        self.words, self.first = bits.words, bits.layers[1].first_word
        self.layer = (self.x, self.weight, self.bias if biased else None)
        self.pair = (*self.layer, self.z, self.w_v, self.bias.flip(0) if biased else None)


def double(values):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in values]


def assert_all_as_good(ours, torchs, truth):
    for one, other, exact in zip(ours, torchs, truth, strict=True):
        if one.is_floating_point():
            assert_as_good_as_torch(one, other, exact)
        else:
            assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_and_its_gates(shape, dtype):
    p = Problem(shape, dtype, biased=sum(shape) % 2 == 0)
    product, exact = linear(*p.layer), linear(*double(p.layer))
    y, words = layer.gated_linear_relu(*p.layer)
    assert_as_good_as_torch(y, product.relu(), exact.relu())
    assert_same_bits(words, reference.pack_gates(y > 0).words)
    hard = layer.gated_linear(*p.layer, p.words, p.first)
    assert_as_good_as_torch(hard, torch.where(p.mask, product, 0), torch.where(p.mask, exact, 0))
    soft, kept = layer.gated_linear_soft(*p.layer, p.gate)
    assert_as_good_as_torch(soft, product * p.gate, exact * p.gate.double())
    assert_as_good_as_torch(kept, product, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", [128, 1 << 30], ids=["in parts", "whole"])
def test_gradients_of_a_hard_gate(shape, dtype, part, monkeypatch):
    monkeypatch.setattr(backward, "divided", lambda rows, programs, device: (32, max(1, -(-rows // 32))))
    if part > 128:
        monkeypatch.undo()
    p = Problem(shape, dtype)
    args = (p.grad, p.x, p.weight, p.words, p.first, True)
    truth = ops.gated_linear_backward(*double(args))
    assert_all_as_good(backward.gated_linear_backward(*args), ops.gated_linear_backward(*args), truth)


@pytest.mark.parametrize("asked", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_that_are_not_asked_for_are_empty(asked):
    p = Problem(SHAPES[0], torch.float32)
    x, weight = p.x if asked[1] else None, p.weight if asked[0] else None
    for words in (p.words, None):
        found = backward.gated_linear_backward(p.grad, x, weight, words, p.first, asked[2])
        expected = ops.gated_linear_backward(p.grad, x, weight, words, p.first, asked[2])
        assert [t.shape for t in found] == [t.shape for t in expected]
        assert [t.numel() > 0 for t in found] == list(asked)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_a_soft_gate(shape, dtype):
    p = Problem(shape, dtype)
    args = (p.grad, p.x, p.weight, p.gate, p.grad_h, True)
    truth = ops.gated_linear_soft_backward(*double(args))
    assert_all_as_good(backward.gated_linear_soft_backward(*args), ops.gated_linear_soft_backward(*args), truth)
    without = backward.gated_linear_soft_backward(p.grad, p.x, p.weight, p.gate, None, False)
    assert [t.numel() for t in without[2:]] == [0, 0]


@pytest.mark.parametrize("linear_feature", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pair(shape, dtype, linear_feature):
    p = Problem(shape, dtype, biased=sum(shape) % 2 == 0)
    q, v = linear(*p.pair[:3]), linear(*p.pair[3:])
    h_next, z_next, words = pair.gated_linear_pair(*p.pair, linear_feature)
    exact_q, exact_v = linear(*double(p.pair[:3])), linear(*double(p.pair[3:]))
    assert_as_good_as_torch(h_next, *((t if linear_feature else t.relu()) for t in (q, exact_q)))
    on = h_next > 0  # These are the gates of its own pre-activations, which torch may round to the other side of 0.
    assert_same_bits(words, reference.pack_gates(on).words)
    assert_as_good_as_torch(z_next, torch.where(on, v, 0), torch.where(on, exact_v, 0))


@pytest.mark.parametrize("linear_feature", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_soft_pair_forward_and_backward(shape, dtype, linear_feature):
    p = Problem(shape, dtype)
    args = (*p.pair, 4.0, 0.5, linear_feature)
    ours, torchs, truth = (
        pair.gated_linear_pair_soft(*args), ops.gated_linear_pair_soft(*args), ops.gated_linear_pair_soft(*double(args))
    )  # fmt: skip
    words = ours[2]
    assert_same_bits(words, reference.pack_gates((ours[0] if linear_feature else ours[3]) > 0).words)
    for index in (0, 1, 3, 4):
        assert_as_good_as_torch(ours[index], torchs[index], truth[index])
    q, v = torchs[0] if linear_feature else torchs[3], torchs[4]
    for grad_h, grad_z in ((p.grad_h, p.grad), (None, p.grad), (p.grad_h, None)):
        given = (grad_h, grad_z, q, v, p.x, p.weight, True, p.z, p.w_v, True, 4.0, 0.5, linear_feature)
        names = "gated_linear_pair_soft_backward"
        expected, exact = getattr(ops, names)(*given), getattr(ops, names)(*double(given))
        assert_all_as_good(pair.gated_linear_pair_soft_backward(*given), expected, exact)
    frozen = (None, p.grad, q, None, None, None, False, p.z, p.w_v, True, 4.0, 0.5, linear_feature)
    found = pair.gated_linear_pair_soft_backward(*frozen)
    assert [t.numel() for t in found[:3]] == [0, 0, 0]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("linear_feature", [False, True])
def test_a_pair_into_buffers_writes_these_only(soft, linear_feature):
    p = Problem((37, 20, 300), torch.float32)
    buffer = torch.full((37, 40), -7, dtype=torch.int32)
    h_next, z_next = torch.full((37, 300), torch.nan), torch.full((37, 300), torch.nan)
    pair.gated_linear_pair_out(
        *p.pair, soft, 4.0, 0.5, linear_feature, h_next=h_next, z_next=z_next, gates_out=buffer[:, 8:24]
    )
    if soft:
        expected = pair.gated_linear_pair_soft(*p.pair, 4.0, 0.5, linear_feature)
    else:
        expected = pair.gated_linear_pair(*p.pair, linear_feature)
    for ours, other in zip((h_next, z_next, buffer[:, 8:24]), expected, strict=False):
        assert_same_bits(ours, other)
    assert (buffer[:, :8] == -7).all()
    assert (buffer[:, 24:] == -7).all()


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_to_read_gives_the_same_bits(dtype, precision, monkeypatch):
    for module in (layer, backward, pair):
        monkeypatch.setattr(module, "precision_of", lambda dtype: precision)
    p = Problem((70, 48, 264), dtype)
    args = (p.grad, p.x, p.weight, p.words, p.first, True)
    found = []
    for read in ("any", "aligned", "tma"):
        for module in (layer, backward, pair):
            monkeypatch.setattr(module, "way_to_read", lambda *_, only=read: only)
        y, words = layer.gated_linear_relu(*p.layer)
        hard = layer.gated_linear(*p.layer, p.words, p.first)
        made = pair.gated_linear_pair(*p.pair, False)
        found.append((y, words, hard, *made, *backward.gated_linear_backward(*args)))
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert_same_bits(one, first)


def test_a_way_to_read_is_one_that_the_matrices_allow(monkeypatch):
    rows = torch.zeros(8, 64, dtype=torch.float16)
    assert tuning.way_to_read(rows, rows[:, 8:40], rows[::2]) == "aligned"
    assert tuning.way_to_read(rows, rows[:, :60]) == "any"  # A row ends inside 16 bytes.
    monkeypatch.setattr(tuning, "capability", lambda device: (9, 0))
    assert tuning.way_to_read(rows, rows[:, 8:40], rows[:, :60], rows[::2]) == "tma"
    assert tuning.way_by_pointers(rows) == "aligned"
    for matrix in (rows.T, rows[:, ::2], rows[:, 1:], rows[:0], torch.zeros(8, 33, dtype=torch.float16)):
        assert tuning.way_to_read(rows, matrix) == "any"
    assert tuning.way_to_read(rows[:1].expand(8, 64)) == "any"
    assert tuning.way_to_read(rows.float()) == "aligned"  # Its products run on the ordinary cores.


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy warns of an infinite product.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_pass_as_on_a_cpu(dtype):
    """Products are NaN, infinite, zeros of both signs and the least number. A relu passes NaN on with its gate off, and
    a given gate that is off gives exactly 0."""
    weight = special_values(dtype).repeat(7)[:70].unsqueeze(1).contiguous()
    x = torch.ones(5, 1, dtype=dtype)
    product = linear(x, weight)
    y, words = layer.gated_linear_relu(x, weight, None)
    assert torch.equal(y.isnan(), product.isnan())
    assert torch.equal(y.nan_to_num(), product.relu().nan_to_num())
    assert_same_bits(words, reference.pack_gates(product > 0).words)
    mask = torch.rand(5, 70, generator=torch.Generator().manual_seed(0)) < 0.5
    gated = layer.gated_linear(x, weight, None, reference.pack_gates(mask).words, 0)
    assert_same_bits(gated[~mask], torch.zeros(int((~mask).sum()), dtype=dtype))
    assert torch.equal(gated[mask].isnan(), product[mask].isnan())
    h_next, z_next, words = pair.gated_linear_pair(x, weight, None, x, weight.flip(0).contiguous(), None, False)
    assert torch.equal(h_next.isnan(), product.isnan())
    assert_same_bits(z_next[~(product > 0)], torch.zeros(int((~(product > 0)).sum()), dtype=dtype))
    assert_same_bits(words, reference.pack_gates(product > 0).words)
    off = torch.zeros(5, 8, dtype=torch.int32)
    _, _, db = backward.gated_linear_backward(product, x, weight, off, 0, True)
    assert_same_bits(db, torch.zeros(70, dtype=dtype))


def transposed(t):
    return t.T.contiguous().T


def every_other(t):
    return torch.stack([t, -t], -1)[..., 0]


@pytest.mark.parametrize("memory", [transposed, every_other, lambda t: t[:1].expand(t.shape)])
def test_arguments_of_any_strides(memory):
    p = Problem((40, 33, 70), torch.float32)
    x, weight, grad = memory(p.x), memory(p.weight), memory(p.grad)
    assert_same_bits(
        layer.gated_linear(x, weight, p.bias, p.words, p.first),
        layer.gated_linear(x.contiguous(), weight.contiguous(), p.bias, p.words, p.first),
    )
    found = backward.gated_linear_backward(grad, x, weight, p.words, p.first, True)
    copies = [t.contiguous() for t in (grad, x, weight)]
    for ours, other in zip(found, backward.gated_linear_backward(*copies, p.words, p.first, True), strict=True):
        assert_same_bits(ours, other)


def test_a_bias_of_any_stride():
    p = Problem((40, 33, 70), torch.float32)
    biased = every_other(p.bias[None])[0]
    assert_same_bits(
        layer.gated_linear_relu(p.x, p.weight, biased)[0], layer.gated_linear_relu(p.x, p.weight, p.bias)[0]
    )
    ours = pair.gated_linear_pair(p.x, p.weight, biased, p.z, p.w_v, biased, False)
    for found, expected in zip(
        ours, pair.gated_linear_pair(p.x, p.weight, p.bias, p.z, p.w_v, p.bias, False), strict=True
    ):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("leading", [(), (3, 5), (2, 0)])
def test_leading_dimensions_are_rows(leading):
    p = Problem((15, 20, 70), torch.float32)
    rows = torch.Size(leading).numel()
    x, grad = p.x[:rows].view(*leading, 20), p.grad[:rows].view(*leading, 70)
    words = p.words[:rows]
    y = layer.gated_linear(x, p.weight, p.bias, words, p.first)
    assert y.shape == (*leading, 70)
    dx, dw, db = backward.gated_linear_backward(grad, x, p.weight, words, p.first, True)
    expected = ops.gated_linear_backward(grad, x, p.weight, words, p.first, True)
    assert [t.shape for t in (dx, dw, db)] == [t.shape for t in expected]
    h_next, z_next, made = pair.gated_linear_pair(x, p.weight, None, x, p.w_v, None, False)
    assert h_next.shape == z_next.shape == y.shape
    assert made.shape == (rows, 8)


def test_float64_is_torchs_product_and_a_pass():
    p = Problem((9, 20, 70), torch.float64)
    y, words = layer.gated_linear_relu(*p.layer)
    expected = ops.gated_linear_relu(*p.layer)
    assert_same_bits(y, expected[0])
    assert_same_bits(words, expected[1])
    args = (*p.layer, p.words, p.first)
    assert_same_bits(layer.gated_linear(*args), ops.gated_linear(*args))
    for ours, other in zip(pair.gated_linear_pair(*p.pair, False), ops.gated_linear_pair(*p.pair, False), strict=True):
        assert_same_bits(ours, other)
    soft = (*p.pair, 4.0, 1.1, False)
    ours, truth = pair.gated_linear_pair_soft(*soft), ops.gated_linear_pair_soft(*soft)
    for one, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(one, exact)
    given = (p.grad_h, p.grad, truth[3], truth[4], p.x, p.weight, True, p.z, p.w_v, True, 4.0, 1.1, False)
    for one, exact in zip(
        pair.gated_linear_pair_soft_backward(*given), ops.gated_linear_pair_soft_backward(*given), strict=True
    ):
        torch.testing.assert_close(one, exact)


@pytest.mark.parametrize("shape", [(5, 1, 300), (0, 1, 40), (3, 6, 70), (2, 9, 64), (2, 40, 20), (3, 5, 48)], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_activations_of_any_shape(shape, turned, dtype):
    q = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    q.view(-1)[3::11] = torch.nan
    if turned:  # In NCHW, positions are contiguous and channels apart.
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    ours, expected = gate.gate_relu(q), ops.gate_relu(q)
    assert_same_bits(ours[1], expected[1])
    assert_same_bits(ours[0].nan_to_num(), expected[0].nan_to_num())
    assert torch.equal(ours[0].isnan(), q.isnan())
    assert ours[0].stride() == expected[0].stride()
    off = ops.pack_gates(torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    words = torch.cat([torch.full_like(off, -1), off], 1)
    chosen, kept = gate.gate_select(q, words, off.shape[1]), ops.gate_select(q, words, off.shape[1])
    assert_same_bits(chosen.nan_to_num(), kept.nan_to_num())
    assert torch.equal(chosen.isnan(), kept.isnan())
    assert chosen.stride() == kept.stride()
