"""The CUDA kernels of the gram family give the CPU's bits on a GPU. Run it with GATEDOPS_BACKEND=cuda, and on Hopper
again with GATEDOPS_CUDA=sm90x1, which forces the wgmma kernel without clusters, and sm80, the mma.sync kernel:

    GATEDOPS_BACKEND=cuda python -m pytest -x tests/gpu/test_gpu_gram_cuda.py

The first tests have one tile and one stage of gates. If only they fail, a matrix descriptor, the swizzle or a fragment
layout is not what the emulation of tests/cuda/emulation/ assumes.
"""

from __future__ import annotations

import os

import pytest
import torch
from gpu import DEVICE, captured, needs_gpu, not_dry
from strategies import generator
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops import (
    GateBits,
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    npk_diag,
    npk_gram,
    npk_matvec,
)
from gatedops.backends import cuda_library

pytestmark = needs_gpu("cuda")

SHAPES = [(1, 1), (3, 130), (130, 65), (129, 257), (1000, 777)]
WIDTHS = [[33], [64, 1, 2100], [1024, 100, 128]]


def random_bits(n, widths, seed):
    return GateBits.pack([torch.rand(n, w, generator=generator(seed + w)) < 0.5 for w in widths])


def one_gate_each(rows, gate_of_row):
    """Makes rows with one of 1024 gates on."""
    gates = torch.zeros(rows, 1024, dtype=torch.bool)
    gates[torch.arange(rows), gate_of_row] = True
    return GateBits.pack([gates])


@not_dry("the CPU has no such kernels")
def test_a_single_tile_is_made_by_the_kernel_that_is_chosen():
    """Every op must launch it, or the tests of a forced kernel would not test it. float64 uses the mma.sync kernel."""
    chosen = os.environ.get("GATEDOPS_CUDA") or ("sm90" if torch.cuda.get_device_capability()[0] == 9 else "sm80")
    bits, v = random_bits(128, [1024], 0).to(DEVICE), torch.ones(128, 1, device=DEVICE)
    for op in (
        lambda: gate_overlap(bits),
        lambda: npk_gram(None, bits),
        lambda: npk_matvec(None, bits, v),
        lambda: gate_neighbors(bits, 3),
    ):
        npk_gram(None, bits, dtype=torch.float64)
        assert cuda_library.last_gram_kernel() == "sm80"
        op()
        assert cuda_library.last_gram_kernel() == chosen


@pytest.mark.parametrize("step", range(4))
def test_single_tile_one_gate_on_per_row(step):
    """Row i and column j share a gate if their gates are equal, so a wrong place shows as a wrong pattern."""
    rows = torch.arange(128)
    x, y = one_gate_each(128, 256 * step + rows), one_gate_each(128, 256 * step + 127 - rows)
    found = gate_overlap(x.to(DEVICE), y.to(DEVICE)).cpu()
    assert_same_bits(found, gate_overlap(x, y))


def test_single_tile_random():
    x, y = random_bits(128, [1024], 1), random_bits(128, [1024], 2)
    assert_same_bits(gate_overlap(x.to(DEVICE), y.to(DEVICE)).cpu(), gate_overlap(x, y))


@pytest.mark.parametrize("width", [1, 31, 32, 33, 128, 255, 257, 1023, 1025, 5000])
def test_single_tile_any_width(width):
    x, y = random_bits(77, [width], 3), random_bits(101, [width], 4)
    assert_same_bits(gate_overlap(x.to(DEVICE), y.to(DEVICE)).cpu(), gate_overlap(x, y))


@pytest.mark.parametrize(("n", "m"), SHAPES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_lambda_counts_and_agreement(n, m, widths):
    x, y = random_bits(n, widths, 5), random_bits(m, widths, 6)
    on_gpu, y_on_gpu = x.to(DEVICE), y.to(DEVICE)
    for dtype in (torch.float32, torch.float64):
        assert_same_bits(npk_gram(None, on_gpu, dtype=dtype).cpu(), npk_gram(None, x, dtype=dtype))
        found = npk_gram(None, on_gpu, None, y_on_gpu, dtype=dtype).cpu()
        assert_same_bits(found, npk_gram(None, x, None, y, dtype=dtype))
        assert_same_bits(npk_diag(None, on_gpu, dtype=dtype).cpu(), npk_diag(None, x, dtype=dtype))
    assert_same_bits(gate_overlap(on_gpu).cpu(), gate_overlap(x))
    assert_same_bits(gate_agreement(on_gpu, y_on_gpu).cpu(), gate_agreement(x, y))
    assert_same_bits(gate_hamming(on_gpu).cpu(), gate_hamming(x))
    assert_same_bits(gate_hamming(on_gpu, y_on_gpu).cpu(), gate_hamming(x, y))


@not_dry("no Gram of the CPU is in bfloat16")
def test_bfloat16_is_the_rounded_float32():
    bits = random_bits(300, [200, 500], 7)
    first, count = [layer.first_word for layer in bits.layers], [layer.words for layer in bits.layers]
    found = torch.ops.gatedops.npk_gram(
        None, bits.words.to(DEVICE), None, None, None, None, first, first, count, [0.01, 0.01], torch.bfloat16
    )
    expected = npk_gram(None, bits, scale=[0.01, 0.01]).bfloat16()
    assert_same_bits(found.cpu(), expected)


# torch computes the first and the last; the wgmma kernel, if it runs, the others, in one or several pieces of columns.
@pytest.mark.parametrize("columns", [50, 64, 784, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [False, True])
def test_sigma_and_factors(dtype, normalize, columns):
    bits = random_bits(300, [200, 500], 8)
    x = torch.randn(300, columns, generator=generator(9), dtype=dtype)
    found = npk_gram(x.to(DEVICE), bits.to(DEVICE), normalize=normalize, dtype=dtype).cpu()
    same = npk_gram(x, bits, normalize=normalize, dtype=dtype)
    truth = npk_gram(x.double(), bits, normalize=normalize, dtype=torch.float64)
    assert_as_good_as_torch(found, same, truth)
    assert_same_bits(found, found.T.contiguous())


def test_single_tile_of_floats():
    """On sm_90 this is the wgmma kernel's: the inputs are small integers, which TF32 holds."""
    x = torch.randint(-8, 8, (128, 64), generator=generator(1)).float()
    y = torch.randint(-8, 8, (128, 64), generator=generator(2)).float()
    bits = GateBits.pack([torch.ones(128, 1, dtype=torch.bool)])
    assert torch.equal(npk_gram(x.to(DEVICE), bits.to(DEVICE), y.to(DEVICE), bits.to(DEVICE)).cpu(), x @ y.T)


def test_single_tile_of_bytes():
    """Each row of x has one byte, and the columns of y are counted, so a wrong place shows as a wrong pattern."""
    x, y = torch.zeros(128, 128, dtype=torch.uint8), torch.arange(128, dtype=torch.uint8).repeat(128, 1)
    x[torch.arange(128), torch.arange(128)] = 200
    bits = GateBits.pack([torch.ones(128, 1, dtype=torch.bool)])
    assert_same_bits(
        npk_gram(x.to(DEVICE), bits.to(DEVICE), y.to(DEVICE), bits.to(DEVICE)).cpu(), npk_gram(x, bits, y, bits)
    )


# The columns fill less than a step, less than a stage, or several stages, or are more than the kernels multiply.
@pytest.mark.parametrize("columns", [1, 17, 128, 784, 66052])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigma_of_bytes_is_exact(columns, dtype):
    bits, y_bits = random_bits(300, [200, 500], 10), random_bits(75, [200, 500], 11)
    x, y = (torch.randint(0, 256, (n, columns), generator=generator(n), dtype=torch.uint8) for n in (300, 75))
    assert_same_bits(npk_gram(x.to(DEVICE), bits.to(DEVICE), dtype=dtype).cpu(), npk_gram(x, bits, dtype=dtype))
    found = npk_gram(x.to(DEVICE), bits.to(DEVICE), y.to(DEVICE), y_bits.to(DEVICE), dtype=dtype).cpu()
    assert_same_bits(found, npk_gram(x, bits, y, y_bits, dtype=dtype))


@pytest.mark.parametrize("scale", [-0.1, 0.0, 2.0**110, 2.0**-140])
@pytest.mark.filterwarnings("ignore:the largest value of the kernel")
def test_any_scale_has_the_bits_of_the_cpu(scale):
    bits = random_bits(150, [9, 300], 21)
    assert_same_bits(
        npk_gram(None, bits.to(DEVICE), scale=[0.5, scale]).cpu(), npk_gram(None, bits, scale=[0.5, scale])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1, 13])
@pytest.mark.parametrize("inputs", [None, torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 5), (300, 170), (3000, None)])
def test_matvec_is_as_good_as_torch(n, m, inputs, columns, dtype):
    bits, y_bits = random_bits(n, [200, 500], 22), None if m is None else random_bits(m, [200, 500], 23)
    x, y = (
        None if inputs is None or rows is None else torch.rand(rows, 70, generator=generator(rows)).mul(255).to(inputs)
        for rows in (n, m)
    )
    v = torch.randn(n if m is None else m, columns, generator=generator(24), dtype=dtype)
    sides = [None if t is None else t.to(DEVICE) for t in (y, y_bits)]
    on_gpu = (None if x is None else x.to(DEVICE), bits.to(DEVICE), v.to(DEVICE), *sides)
    found = npk_matvec(*on_gpu, dtype=dtype)
    truth = npk_gram(x, bits, y, y_bits, dtype=torch.float64) @ v.double()
    if dtype == torch.float64:
        assert_close_in_float64(found.cpu(), truth)
    else:
        assert_as_good_as_torch(found.cpu(), npk_gram(x, bits, y, y_bits) @ v, truth)
    for _ in range(3):
        assert_same_bits(npk_matvec(*on_gpu, dtype=dtype), found)


@pytest.mark.parametrize("symmetric", [True, False])
def test_matvec_and_gradient(symmetric):
    bits = random_bits(300, [200, 500], 12)
    y_bits = None if symmetric else random_bits(170, [200, 500], 13)
    m = 300 if symmetric else 170
    x = torch.randn(300, 20, generator=generator(14), dtype=torch.float64)
    y = None if symmetric else torch.randn(170, 20, generator=generator(15), dtype=torch.float64)
    v = torch.randn(m, 3, generator=generator(16), dtype=torch.float64)
    results = []
    for device in ("cpu", DEVICE):
        leaf = x.to(device).requires_grad_()
        sides = [None if t is None else t.to(device) for t in (y, y_bits)]
        product = npk_matvec(leaf, bits.to(device), v.to(device), *sides, dtype=torch.float64)
        gram = npk_gram(leaf, bits.to(device), *sides, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(gram.square().sum(), leaf)
        results.append((product.detach().cpu(), gradient.cpu()))
    for ours, truth in zip(results[1], results[0], strict=True):
        assert_close_in_float64(ours, truth)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("k", [1, 11, 32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_neighbors(symmetric, k, dtype):
    bits = random_bits(400, [7], 17)  # Few gates give many ties.
    y_bits = None if symmetric else random_bits(90, [7], 18)
    values, indices = gate_neighbors(bits.to(DEVICE), k, None if symmetric else y_bits.to(DEVICE), dtype=dtype)
    expected_values, expected_indices = gate_neighbors(bits, k, y_bits, dtype=dtype)
    assert_same_bits(values.cpu(), expected_values)
    assert torch.equal(indices.cpu(), expected_indices)


def test_the_same_bits_on_every_run():
    bits = random_bits(2000, [300, 128], 19).to(DEVICE)
    first = npk_gram(None, bits)
    for _ in range(5):
        assert_same_bits(npk_gram(None, bits), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("stride", "first"), [(260, 0), (261, 0), (264, 1)])
def test_whole_tiles_go_out_in_lines_wherever_they_go(dtype, stride, first):
    """Rows of the output begin at multiples of 16 bytes, of the bytes that a lane writes, or of one element alone."""
    bits = random_bits(260, [40, 9], 25)
    wide = torch.full((260, stride), torch.nan, dtype=dtype, device=DEVICE)
    out = wide[:, first : first + 260]
    npk_gram(None, bits.to(DEVICE), dtype=dtype, out=out)
    assert_same_bits(out.cpu(), npk_gram(None, bits, dtype=dtype))
    assert wide[:, :first].isnan().all()
    assert wide[:, first + 260 :].isnan().all()


@pytest.mark.parametrize("rows", ["all the same", "windows"])
def test_rows_that_overlap(rows):
    """These are an expanded tensor, and windows a third of a row apart, whose rows do not follow each other."""
    given = torch.randint(0, 2**31, (9, 24), generator=generator(26)).int()
    pixels = torch.arange(9 * 48).byte().view(9, 48)
    ops, first, count, scale = torch.ops.gatedops, [0, 8], [8, 16], [0.5, 2.0**-6]  # Every sum is exact.

    def overlapping(t):
        return t[:1].expand(5, t.shape[1]) if rows == "all the same" else t.view(-1).as_strided(t.shape, (8, 1))

    def results(x, words):
        n, layers = len(words), (first, first, count)
        v = torch.ones(n, 2, device=words.device)
        yield ops.npk_gram(x, words, None, None, None, None, *layers, scale, torch.float32)
        yield ops.npk_gram(x, words, x, words, None, None, *layers, scale, torch.float32)
        yield ops.npk_diag(words, first, count, scale, torch.float32)
        yield ops.gate_overlap(words, None, *layers, [250, 500], "both")
        yield ops.gate_overlap(words, words, *layers, [250, 500], "agree")
        yield ops.gate_overlap(words, words, *layers, [250, 500], "differ")
        yield ops.npk_matvec(None, words, None, None, v, *layers, scale)
        yield ops.npk_gram_backward(v.new_ones(n, n), words, v, None, *layers, scale)
        yield from ops.gate_neighbors(words, None, *layers, scale, 3, torch.float32)

    found = results(overlapping(pixels.to(DEVICE)), overlapping(given.to(DEVICE)))
    expected = results(overlapping(pixels).contiguous(), overlapping(given).contiguous())
    for ours, cpus in zip(found, expected, strict=True):
        assert_same_bits(ours.cpu(), cpus)


def test_a_graph_counts_new_gates():
    bits, others = random_bits(300, [512, 40], 27).to(DEVICE), random_bits(300, [512, 40], 28)
    out = torch.empty(300, 300, device=DEVICE)
    graph = captured(lambda: npk_gram(None, bits, out=out))
    bits.words.copy_(others.words)
    graph.replay()
    assert_same_bits(out.cpu(), npk_gram(None, others))


@not_dry("the CPU takes words at any place")
def test_misaligned_words_are_refused():
    words = random_bits(10, [300], 20).words.to(DEVICE)
    with pytest.raises(ValueError, match="16-byte boundaries"):
        torch.ops.gatedops.gate_overlap(words[:, 1:], None, [0], [0], [2], [64], "both")
    with pytest.raises(ValueError, match="at most 128 layers"):
        torch.ops.gatedops.gate_overlap(words, None, [0] * 129, [0] * 129, [1] * 129, [32] * 129, "both")
