"""The CUDA kernels of the gram family give the bits of the CPU kernels when their own source runs on the CPU.

Threads run in random orders and copies arrive at random moments, so a missing barrier or wait shows. This cannot show
whether the GPU's instructions do what the emulation does; tests/gpu/test_gpu_gram_cuda.py does that.
"""

from __future__ import annotations

import ctypes
import shutil

import emulated
import pytest
import torch
from strategies import generator
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops import GateBits, gate_agreement, gate_hamming, gate_neighbors, gate_overlap, npk_gram

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: apt install g++")

SOURCES = {"sm80": "gram_sm80.cpp", "sm90": "gram_sm90.cpp", "sm90x1": "gram_sm90.cpp"}
KERNELS = tuple(SOURCES)  # sm90x1 is wgmma without clusters.
WGMMA = ("sm90", "sm90x1")
NETS = [(1, 1, [1]), (3, 130, [33]), (130, 65, [64, 1, 2100]), (129, 257, [1024, 100])]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulated")
    built = {source: emulated.compiled(source, folder) for source in set(SOURCES.values())}
    return {name: built[source] for name, source in SOURCES.items()}


@pytest.fixture(scope="module")
def kernels(libraries):
    return {name: getattr(library, f"emulate_gram_{name}") for name, library in libraries.items()}


def random_bits(n, widths, seed):
    return GateBits.pack([torch.rand(n, w, generator=generator(seed + w)) < 0.5 for w in widths])


def layout(bits):
    return [layer.first_word for layer in bits.layers], [layer.words for layer in bits.layers]


def run(kernel, bits, y_bits, out, scale=None, **options):
    first, count = layout(bits)
    y_words = None if y_bits is None else y_bits.words
    scale = [1 / w for w in bits.widths] if scale is None else scale
    emulated.run_gram(kernel, bits.words, y_words, first, first, count, scale, out, **options)


def unwritten(*shape, dtype):
    return torch.full(shape, -1 if dtype == torch.int32 else float("nan"), dtype=dtype)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "m", "widths"), NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_has_the_bits_of_the_cpu(kernels, name, n, m, widths, dtype):
    if name != "sm80" and dtype == torch.float64:
        pytest.skip("float64 is the mma.sync kernel's")
    bits, y_bits = random_bits(n, widths, 0), random_bits(m, widths, 1)
    out = unwritten(n, n, dtype=dtype)
    run(kernels[name], bits, None, out, seed=n)
    assert_same_bits(out, npk_gram(None, bits, dtype=dtype))
    out = unwritten(n, m, dtype=dtype)
    run(kernels[name], bits, y_bits, out, seed=m)
    assert_same_bits(out, npk_gram(None, bits, None, y_bits, dtype=dtype))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "m", "widths"), NETS[1:3])
def test_counts(kernels, name, n, m, widths):
    bits, y_bits = random_bits(n, widths, 2), random_bits(m, widths, 3)
    out = unwritten(len(widths), n, n, dtype=torch.int32)
    run(kernels[name], bits, None, out)
    assert_same_bits(out, gate_overlap(bits))
    on = [torch.stack([layer.sum(1) for layer in b.unpack()]).int() for b in (bits, y_bits)]
    for differ, expected in ((False, gate_agreement(bits, y_bits)), (True, gate_hamming(bits, y_bits))):
        out = unwritten(len(widths), n, m, dtype=torch.int32)
        run(kernels[name], bits, y_bits, out, gates=widths, on=on, differ=differ)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_sigma_comes_from_the_lower_half_alone(kernels, name):
    """The upper half of the output is NaN, which a kernel that reads it would spread."""
    bits = random_bits(131, [40, 300], 4)
    given = torch.randn(131, 131, generator=generator(5))
    out = torch.where(torch.ones(131, 131).tril().bool(), given, float("nan"))
    run(kernels[name], bits, None, out, times=True)
    lower = (given * npk_gram(None, bits)).tril()
    assert_same_bits(out, lower + lower.tril(-1).T)


@pytest.mark.parametrize("name", KERNELS)
def test_factors_scale_rows_and_columns(kernels, name):
    bits, y_bits = random_bits(66, [40, 300], 6), random_bits(35, [40, 300], 7)
    factor = torch.rand(66, generator=generator(8), dtype=torch.float64)
    y_factor = torch.rand(35, generator=generator(9), dtype=torch.float64)
    out = unwritten(66, 35, dtype=torch.float32)
    run(kernels[name], bits, y_bits, out, factor=factor, y_factor=y_factor)
    expected = npk_gram(None, bits, None, y_bits).double() * (factor[:, None] * y_factor)
    assert_same_bits(out, expected.float())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("scale", [1.0, 1 / 3, -0.1, 0.0, -0.0, 2.0**110, 2.0**-120, 2.0**-140])
@pytest.mark.filterwarnings("ignore:the largest value of the kernel")
def test_any_scale_has_the_bits_of_the_cpu(kernels, name, scale):
    """Some counts are 0, whose sign a negative scale turns."""
    bits = random_bits(20, [9, 300], 23)
    out = unwritten(20, 20, dtype=torch.float32)
    run(kernels[name], bits, None, out, scale=[0.5, scale])
    expected = npk_gram(None, bits, scale=[0.5, scale])
    assert (expected == 0).any()
    assert_same_bits(out, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_the_rounded_float32(kernels, name):
    bits = random_bits(70, [40, 300], 10)
    out = unwritten(70, 70, dtype=torch.bfloat16)
    run(kernels[name], bits, None, out)
    assert_same_bits(out, npk_gram(None, bits).bfloat16())


# Rows of the output begin at multiples of 16 bytes, of the bytes that a lane writes, or of one element alone.
PLACES = {"whole lines": (260, 0), "a row too long by one": (261, 0), "a first column": (264, 1)}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_whole_tiles_go_out_in_lines_wherever_they_go(kernels, name, dtype, place):
    """There are whole tiles on, below and above the diagonal, and cut off tiles. Nothing beside them is written."""
    if name != "sm80" and dtype == torch.float64:
        pytest.skip("float64 is the mma.sync kernel's")
    stride, first = PLACES[place]
    bits, y_bits = random_bits(260, [40, 9], 32), random_bits(132, [40, 9], 33)
    for right, m in ((None, 260), (y_bits, 132)):
        if dtype == torch.int32:
            expected = gate_overlap(bits, right)
        else:
            product = torch.float64 if dtype == torch.float64 else torch.float32
            expected = npk_gram(None, bits, None, right, dtype=product).to(dtype)[None]
        wide = unwritten(len(expected), 260, stride, dtype=dtype)
        out = wide[..., first : first + m]
        run(kernels[name], bits, right, out if dtype == torch.int32 else out[0])
        assert_same_bits(out.contiguous(), expected)
        rest = torch.cat([wide[..., :first], wide[..., first + m :]], -1)
        assert_same_bits(rest, unwritten(*rest.shape, dtype=dtype))


@pytest.mark.parametrize("name", KERNELS)
def test_whole_tiles_with_factors_or_of_measures_are_right_on_both_sides(kernels, name):
    """Each value that changes on the way out is changed once, and its mirror image has the changed value."""
    bits, factor = random_bits(260, [40, 9], 36), torch.rand(260, generator=generator(37), dtype=torch.float64)
    out = unwritten(260, 260, dtype=torch.float32)
    run(kernels[name], bits, None, out, factor=factor)
    assert_same_bits(out, (npk_gram(None, bits).double() * (factor[:, None] * factor)).float())
    on = torch.stack([layer.sum(1) for layer in bits.unpack()]).int()
    for differ, expected in ((False, gate_agreement(bits)), (True, gate_hamming(bits))):
        counts = unwritten(2, 260, 260, dtype=torch.int32)
        run(kernels[name], bits, None, counts, gates=[40, 9], on=(on, on), differ=differ)
        assert_same_bits(counts, expected)


@pytest.mark.parametrize("name", KERNELS)
def test_whole_tiles_of_sigma_are_mirrored_in_lines(kernels, name):
    bits, x = random_bits(260, [40, 9], 34), torch.randn(260, 3, generator=generator(35))
    out = x @ x.T
    lower = out * npk_gram(None, bits)
    run(kernels[name], bits, None, out, times=True)
    assert_same_bits(out, torch.where(torch.ones(260, 260).tril().bool(), lower, lower.T))


@pytest.mark.parametrize("name", KERNELS)
def test_layers_may_lie_anywhere_and_be_cut_off(kernels, name):
    """One layer has 3 words, and the 4th is not its own. y has other first words, and the rows are parts of a wider
    output."""
    words = torch.randint(-(2**31), 2**31, (20, 48), generator=generator(11), dtype=torch.int64).int()
    first, y_first, count = [4, 12], [40, 0], [3, 35]
    wide = unwritten(20, 30, dtype=torch.float32)
    emulated.run_gram(kernels[name], words, words, first, y_first, count, [1.0, 0.5], wide[:, :20])
    expected = torch.ops.gatedops.npk_gram(
        None, words, None, words, None, None, first, y_first, count, [1.0, 0.5], torch.float32
    )
    assert_same_bits(wide[:, :20], expected)
    assert wide[:, 20:].isnan().all()


@pytest.mark.parametrize("name", KERNELS)
def test_offsets_beyond_32_bits(kernels, name, tmp_path):
    """Rows of gates and of the output are so far apart that the third begins behind 2^32 elements, in files with
    holes."""
    stride = 2**31 + 16
    bits = random_bits(3, [300], 26)
    apart = torch.from_file(str(tmp_path / "words"), shared=True, size=2 * stride + 64, dtype=torch.int32)
    words = apart.as_strided(bits.words.shape, (stride, 1)).copy_(bits.words)
    out = torch.from_file(str(tmp_path / "out"), shared=True, size=2 * stride + 64).as_strided((3, 3), (stride, 1))
    first, count = layout(bits)
    emulated.run_gram(kernels[name], words, None, first, first, count, [1 / 300], out)
    assert_same_bits(out.clone(memory_format=torch.contiguous_format), npk_gram(None, bits))


@pytest.mark.parametrize("name", KERNELS)
def test_any_number_of_blocks_and_any_order_of_threads(kernels, name):
    bits = random_bits(257, [65], 12)
    expected = npk_gram(None, bits)
    for blocks in (1, 2, 7):
        out = unwritten(257, 257, dtype=torch.float32)
        run(kernels[name], bits, None, out, blocks=blocks, seed=blocks)
        assert_same_bits(out, expected)


@pytest.mark.parametrize("name", WGMMA)
@pytest.mark.parametrize("seed", range(4))
def test_a_block_does_more_units_than_it_holds_at_a_time(kernels, name, seed):
    """A block's ring holds eight units. With a single layer in one stage, the producer runs ahead as far as it can."""
    bits = random_bits(700, [65], 29)
    out = unwritten(700, 700, dtype=torch.float32)
    run(kernels[name], bits, None, out, blocks=1, seed=seed)
    assert_same_bits(out, npk_gram(None, bits))


@pytest.mark.parametrize("name", KERNELS)
def test_a_product_over_no_layers_is_one(kernels, name):
    """Its units have no stage, so only the ring of units keeps the roles together."""
    words = torch.zeros(700, 8, dtype=torch.int32)
    out = unwritten(700, 700, dtype=torch.float32)
    emulated.run_gram(kernels[name], words, None, [], [], [], [], out, blocks=1)
    assert_same_bits(out, torch.ones(700, 700))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 16, 129, 784])
def test_sigma_of_bytes_is_exact_and_rounded_once(kernels, name, dtype, columns):
    if name != "sm80" and dtype == torch.float64:
        pytest.skip("float64 is the mma.sync kernel's")
    n, m, widths = 131, 70, [40, 300]
    bits, y_bits = random_bits(n, widths, 13), random_bits(m, widths, 14)
    x, y = (random_bytes(rows, columns, 15) for rows in (n, m))
    product = torch.float64 if dtype == torch.float64 else torch.float32
    out = unwritten(n, n, dtype=dtype)
    run(kernels[name], bits, None, out, sigma=(x, None))
    assert_same_bits(out, npk_gram(x, bits, dtype=product).to(dtype))
    out = unwritten(n, m, dtype=dtype)
    run(kernels[name], bits, y_bits, out, sigma=(x, y))
    assert_same_bits(out, npk_gram(x, bits, y, y_bits, dtype=product).to(dtype))


def test_sigma_is_exact_up_to_its_last_column(libraries):
    """Sums are more than 2^31, up to the largest that 32 bits hold."""
    largest = libraries["sm80"].max_sigma_columns()
    assert largest * 255**2 < 2**32 <= (largest + 1) * 255**2
    libraries["sm80"].sigma_of_largest_bytes.restype = ctypes.c_float
    for columns in (1, 784, 2**31 // 255**2 + 1, largest):
        found = libraries["sm80"].sigma_of_largest_bytes(columns)
        assert found == float(torch.tensor(columns * 255**2).float())


@pytest.mark.parametrize("name", WGMMA)
@pytest.mark.parametrize("columns", [64, 130, 784])
@pytest.mark.parametrize("make", [torch.rand, torch.randn], ids=["positive", "normal"])
def test_sigma_of_floats_is_as_good_as_torch(kernels, name, columns, make):
    """The emulated tensor cores truncate their sums, which is the worst that is known of them."""
    n, m, widths = 131, 70, [40, 300]
    bits, y_bits = random_bits(n, widths, 27), random_bits(m, widths, 28)
    x, y = (make(rows, columns, generator=generator(rows)) for rows in (n, m))
    out = unwritten(n, n, dtype=torch.float32)
    run(kernels[name], bits, None, out, sigma=(x, None))
    plain, exact = (npk_gram(None, bits, dtype=d) * (x.to(d) @ x.to(d).T) for d in (torch.float32, torch.float64))
    assert_as_good_as_torch(out, plain, exact)
    assert_same_bits(out, out.T.contiguous())
    out = unwritten(n, m, dtype=torch.float32)
    run(kernels[name], bits, y_bits, out, sigma=(x, y))
    left, right = (x, bits), (y, y_bits)
    plain, exact = (
        npk_gram(None, left[1], None, right[1], dtype=d) * (left[0].to(d) @ right[0].to(d).T)
        for d in (torch.float32, torch.float64)
    )
    assert_as_good_as_torch(out, plain, exact)


def random_bytes(rows, columns, seed):
    return torch.randint(0, 256, (rows, columns), generator=generator(seed + rows), dtype=torch.uint8)


# n, m, columns of v, columns of x (None for Lambda alone), and bytes of partial products, which make one band, several
# bands, or one for each row of tiles.
MATVECS = [(1, 1, 1, 0, 1 << 27), (130, 300, 13, 0, 1), (300, 35, 2, 40, 1 << 17), (260, 129, 5, 0, 1 << 15)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "columns", "inputs", "workspace"), MATVECS)
def test_a_matvec_is_as_good_as_torch(kernels, name, dtype, n, m, columns, inputs, workspace):
    if name != "sm80" and dtype == torch.float64:
        pytest.skip("float64 is the mma.sync kernel's")
    bits, y_bits = random_bits(n, [40, 300], 17), random_bits(m, [40, 300], 18)
    x, y = (random_bytes(rows, inputs, 19) if inputs else None for rows in (n, m))
    for right, y_right, rows in ((None, None, n), (y_bits, y, m)):
        v = torch.randn(rows, columns, generator=generator(20), dtype=dtype)
        out = unwritten(n, columns, dtype=dtype)
        run(kernels[name], bits, right, out, v=v, sigma=(x, y_right) if inputs else None, workspace=workspace)
        exact = npk_gram(x, bits, y_right, right, dtype=torch.float64) @ v.double()
        if dtype == torch.float64:
            assert_close_in_float64(out, exact)
        else:
            assert_as_good_as_torch(out, npk_gram(x, bits, y_right, right) @ v, exact)


@pytest.mark.parametrize("name", WGMMA)
def test_a_matvec_with_sigma_of_floats(kernels, name):
    bits, y_bits = random_bits(140, [40], 29), random_bits(130, [40], 30)
    x, y = (torch.rand(rows, 70, generator=generator(rows)) for rows in (140, 130))
    for right, y_right, rows in ((None, None, 140), (y_bits, y, 130)):
        v = torch.randn(rows, 3, generator=generator(31))
        out = unwritten(140, 3, dtype=torch.float32)
        run(kernels[name], bits, right, out, v=v, sigma=(x, y_right))
        exact = npk_gram(x.double(), bits, None if y_right is None else y.double(), right, dtype=torch.float64)
        assert_as_good_as_torch(out, npk_gram(x, bits, y_right, right) @ v, exact @ v.double())


@pytest.mark.parametrize("name", KERNELS)
def test_a_matvec_has_the_same_bits_for_any_blocks_and_any_order_of_threads(kernels, name):
    bits = random_bits(270, [65], 21)
    v = torch.randn(270, 2, generator=generator(22))
    found = []
    for blocks, seed in ((1, 0), (3, 1), (8, 2)):
        out = unwritten(270, 2, dtype=torch.float32)
        run(kernels[name], bits, None, out, v=v, workspace=1 << 15, blocks=blocks, seed=seed)
        found.append(out)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "k"), [(2, 1, 1), (130, 20, 3), (34, 270, 32)])
def test_neighbors(kernels, name, dtype, n, m, k):
    """There are few gates, so many values tie, and the first columns of equal values are found."""
    if name != "sm80" and dtype == torch.float64:
        pytest.skip("float64 is the mma.sync kernel's")
    bits, y_bits = random_bits(n, [5, 4], 24), random_bits(m, [5, 4], 25)
    for right in (None, y_bits) if k < n else (y_bits,):
        values, indices = unwritten(n, k, dtype=dtype), torch.full((n, k), -1)
        run(kernels[name], bits, right, values, indices=indices)
        expected, columns = gate_neighbors(bits, k, right, dtype=dtype)
        assert_same_bits(values, expected)
        assert torch.equal(indices, columns)
