"""Packed gates and Grams on an NVIDIA GPU agree with the CPU's bits and the reference."""

from __future__ import annotations

import pytest
import torch
from gpu import COMPILER, DEVICE, OF_THE_COMPILER, captured, needs_gpu, not_dry
from strategies import LAYOUTS, bits_of, dense, generator, masks, pre_activations, random_bits, rows_of
from tolerances import assert_as_good_as_torch, assert_same_bits

from gatedops import (
    GateBits,
    gate_agreement,
    gate_hamming,
    gate_overlap,
    npk_diag,
    npk_gram,
    npk_matvec,
    pack_gates,
    reference,
    unpack_gates,
)

pytestmark = [*needs_gpu("portable", "triton"), *OF_THE_COMPILER]

FLOATS = [torch.float32, torch.float64]
NETS = [dense(257, 64, 1, 1000), [((40, 3, 5), "gate"), ((4, 33, 2, 2), "select"), ((3, 65), "gate")], dense(128)]
SIZES = [(257, 130), (1, 300), (130, 1), (0, 5), (5, 0)]


def sides(n, m, specs, seed=0):
    """Makes the gates of both sides on the CPU."""
    return random_bits(n, specs, seed), random_bits(m, specs, seed + 1)


def inputs(n, m, dtype, width=33):
    return rows_of(n, width, 2, dtype), rows_of(m, width, 3, dtype)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool], ids=str)
@pytest.mark.parametrize("shape", [(300,), (6, 70), (40, 5, 3)], ids=str)
def test_packing_gives_the_cpus_bits(shape, dtype, layout):
    q = pre_activations(9, shape, dtype, seed=1)
    if layout == "channels last" and q.dim() < 3:
        pytest.skip("needs channels")
    bits = pack_gates(LAYOUTS[layout](q.to(DEVICE)))
    cpu = pack_gates(LAYOUTS[layout](q))
    assert_same_bits(bits.words.cpu(), cpu.words)
    for ours, expected in zip(unpack_gates(bits), unpack_gates(cpu), strict=True):
        assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("specs", NETS, ids=["dense", "images and pools", "one layer"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_counts_are_exact(sizes, specs):
    a, b = sides(*sizes, specs)
    for count in (gate_overlap, gate_agreement, gate_hamming):
        assert_same_bits(count(a.to(DEVICE)).cpu(), count(a))
        assert_same_bits(count(a.to(DEVICE), b.to(DEVICE)).cpu(), count(a, b))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("specs", NETS, ids=["dense", "images and pools", "one layer"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lambda_has_the_cpus_bits(sizes, specs, dtype):
    a, b = sides(*sizes, specs)
    symmetric = npk_gram(None, a.to(DEVICE), dtype=dtype)
    assert_same_bits(symmetric.cpu(), npk_gram(None, a, dtype=dtype))
    assert_same_bits(symmetric, symmetric.T.contiguous())
    assert_same_bits(
        npk_gram(None, a.to(DEVICE), None, b.to(DEVICE), dtype=dtype).cpu(), npk_gram(None, a, None, b, dtype=dtype)
    )
    assert_same_bits(npk_diag(None, a.to(DEVICE), dtype=dtype).cpu(), npk_diag(None, a, dtype=dtype))


def test_a_sub_selection_and_other_rows():
    a, b = sides(150, 70, dense(40, 300, 64))
    left, right = a.select_layers([2, 0]), b.select_layers([2, 0])
    found = npk_gram(None, left.to(DEVICE)[10:140], None, right.to(DEVICE))
    assert_same_bits(found.cpu(), npk_gram(None, left[10:140], None, right))


@pytest.mark.parametrize("normalize", [False, True])
def test_uint8_inputs_are_exact(normalize):
    a, b = sides(150, 70, dense(40, 300))
    x, y = inputs(150, 70, torch.uint8, 784)
    found = npk_gram(x.to(DEVICE), a.to(DEVICE), y.to(DEVICE), b.to(DEVICE), normalize=normalize).cpu()
    expected = npk_gram(x, a, y, b, normalize=normalize)
    if normalize:  # The devices may round the last bit of the two float64 roots differently.
        torch.testing.assert_close(found, expected)
    else:
        assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_grams_products_and_gradients_are_as_good_as_torch(symmetric, dtype):
    a, b = sides(257, 130, dense(257, 64))
    x, y = inputs(257, 130, dtype)
    v, weights = rows_of(257 if symmetric else 130, 3, 4, dtype), rows_of(257, 257 if symmetric else 130, 5, dtype)

    def results(library, device, compute):
        left = x.to(device, compute).requires_grad_()
        right = None if symmetric else y.to(device, compute).requires_grad_()
        bits = (a.to(device), None if symmetric else b.to(device))
        gram = library.npk_gram(left, bits[0], right, bits[1], dtype=compute)
        product = library.npk_matvec(left, bits[0], v.to(device, compute), right, bits[1], dtype=compute)
        loss = (gram * weights.to(device, compute)).sum() + product.sin().sum()
        gradients = torch.autograd.grad(loss, [left] if symmetric else [left, right])
        return [t.detach().cpu() for t in (gram, product, *gradients)]

    class Ours:
        npk_gram, npk_matvec = staticmethod(npk_gram), staticmethod(npk_matvec)

    truth = results(reference, "cpu", torch.float64)
    for one, other, exact in zip(results(Ours, DEVICE, dtype), results(reference, DEVICE, dtype), truth, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(one, exact)
        else:
            assert_as_good_as_torch(one, other, exact)


def test_out_is_written_where_it_is():
    bits = random_bits(150, dense(40, 300)).to(DEVICE)
    buffer = torch.full((150, 200), torch.nan, device=DEVICE)
    npk_gram(None, bits, out=buffer[:, :150])
    assert_same_bits(buffer[:, :150].contiguous(), npk_gram(None, bits))
    assert buffer[:, 150:].isnan().all()


def test_many_points_against_rows_of_the_reference():
    specs = dense(1024, 300, 4096)
    gates = masks(8000, specs, seed=2)
    bits = bits_of(gates, specs)
    rows = torch.tensor([0, 1, 127, 128, 4097, 7999])
    found = npk_gram(None, bits.to(DEVICE))
    assert_same_bits(found[rows.to(DEVICE)].cpu(), reference.npk_gram(None, bits[rows], None, bits))
    assert_same_bits(found, found.T.contiguous())


def test_compiled_as_one_graph():
    q = torch.randn(70, 300, generator=generator(1)).to(DEVICE)

    def function(q):
        return npk_gram(None, pack_gates(q))

    assert_same_bits(torch.compile(function, fullgraph=True, backend=COMPILER)(q), function(q))


def test_a_graph_packs_and_counts_new_activations():
    q = torch.randn(300, 512, generator=generator(1)).to(DEVICE)
    out = torch.empty(300, 300, device=DEVICE)

    def step():
        npk_gram(None, pack_gates(q), out=out)

    graph = captured(step)
    q.neg_()
    graph.replay()
    assert_same_bits(out.cpu(), npk_gram(None, GateBits.pack([q.cpu()])))


@not_dry("a CPU has no second device")
def test_gates_elsewhere_are_refused():
    a, b = sides(5, 6, dense(40))
    with pytest.raises(ValueError, match="y_bits"):
        npk_gram(None, a.to(DEVICE), None, b)
