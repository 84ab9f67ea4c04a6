"""gate_overlap, npk_gram and npk_diag give the right values and bits (docs/math.md, sections 2 and 3)."""

from __future__ import annotations

import numpy as np
import paths
import pytest
import torch
from gram_problems import FLOATS, SHAPE
from hypothesis import given
from hypothesis import strategies as st
from instruction_sets import every_set
from paths import PATH_NETS
from strategies import (
    bits_of,
    dense,
    densities,
    examples,
    generator,
    masks,
    nets,
    random_bits,
    rows,
    rows_of,
    seeds,
)
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops import GateBits, gate_overlap, npk_diag, npk_gram, reference

every_isa = pytest.mark.usefixtures("isa")


def lambda_rule(counts: torch.Tensor, scales: list[float], dtype: torch.dtype) -> torch.Tensor:
    """Computes docs/math.md, section 3, in numpy: each operation is rounded to dtype, and layers come in order."""
    number = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    factors = [count.numpy().astype(number) * number(s) for count, s in zip(counts, scales, strict=True)]
    product = factors[0]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for factor in factors[1:]:
            product = product * factor
    assert product.dtype == number
    return torch.from_numpy(product)


def wide(x: torch.Tensor | None, bits: GateBits, y: torch.Tensor | None, y_bits: GateBits) -> np.ndarray:
    """Computes the Gram in numpy's long double (64-bit significand)."""
    gram = np.ones((bits.n, y_bits.n), dtype=np.longdouble)
    if x is not None:
        gram = x.double().numpy().astype(np.longdouble) @ y.double().numpy().astype(np.longdouble).T
    for count, width in zip(reference.gate_overlap(bits, y_bits).numpy(), bits.widths, strict=True):
        gram = gram * (count.astype(np.longdouble) / np.longdouble(width))
    return gram


def wide_truth(x, bits, y=None, y_bits=None, *, normalize=False) -> torch.Tensor:
    """Returns the Gram computed in long double, rounded to float64."""
    y, y_bits = (x, bits) if y_bits is None else (y, y_bits)
    gram = wide(x, bits, y, y_bits)
    if normalize:
        rows, columns = wide(x, bits, x, bits).diagonal(), wide(y, y_bits, y, y_bits).diagonal()
        norms = np.sqrt(rows[:, None] * columns[None, :])
        gram = np.where(norms == 0, 0, gram / np.where(norms == 0, 1, norms))
    return torch.from_numpy(gram.astype(np.float64))


def assert_gram_is_good(ours, x, bits, y=None, y_bits=None, *, normalize=False):
    """Checks our Gram by the rule of two baselines."""
    baseline = reference.npk_gram(x, bits, y, y_bits, normalize=normalize, dtype=ours.dtype)
    assert_as_good_as_torch(ours, baseline, wide_truth(x, bits, y, y_bits, normalize=normalize))


# --- against the listing of all paths -----------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_gram_of_integer_inputs_is_exactly_that_of_all_listed_paths(d_in, widths, dtype):
    rng = np.random.default_rng(d_in)
    weights = paths.random_net(rng, d_in, widths, integers=True)
    every = paths.all_paths(weights)
    x, y = rng.integers(-9, 10, (33, d_in)), rng.integers(-9, 10, (18, d_in))
    (gates, _), (y_gates, _) = paths.forward(weights, x), paths.forward(weights, y)
    phi, psi = paths.features(x, gates, every), paths.features(y, y_gates, every)
    bits = GateBits.pack([torch.from_numpy(gate) for gate in gates])
    y_bits = GateBits.pack([torch.from_numpy(gate) for gate in y_gates])
    x, y = torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
    gram = npk_gram(x, bits, scale="none", dtype=dtype)
    assert_same_bits(gram.long(), torch.from_numpy(phi @ phi.T))
    gram = npk_gram(x, bits, y, y_bits, scale="none", dtype=dtype)
    assert_same_bits(gram.long(), torch.from_numpy(phi @ psi.T))
    diagonal = npk_diag(x, bits, scale="none", dtype=dtype)
    assert_same_bits(diagonal.long(), torch.from_numpy((phi * phi).sum(1)))


@every_isa
@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_gram_of_real_inputs_is_that_of_all_listed_paths(d_in, widths):
    rng = np.random.default_rng(d_in)
    weights = paths.random_net(rng, d_in, widths, integers=False)
    x = rng.standard_normal((9, d_in))
    gates, output = paths.forward(weights, x)
    every = paths.all_paths(weights)
    phi = paths.features(x, gates, every)
    assert_close_in_float64(torch.from_numpy(phi @ paths.values(weights, every)), torch.from_numpy(output))
    bits = GateBits.pack([torch.from_numpy(gate) for gate in gates])
    gram = npk_gram(torch.from_numpy(x), bits, scale="none", dtype=torch.float64)
    assert_close_in_float64(gram, torch.from_numpy(phi @ phi.T))


# --- counts and Lambda, bit for bit -------------------------------------------------------------------------


@examples(25)
@given(rows, rows, nets, seeds, densities)
def test_overlaps_are_exact_counts(n, m, specs, seed, density):
    a, b = random_bits(n, specs, seed, density), random_bits(m, specs, seed + 1, density)
    expected, symmetric = reference.gate_overlap(a, b), reference.gate_overlap(a)
    for _ in every_set():
        assert_same_bits(gate_overlap(a, b), expected)
        assert_same_bits(gate_overlap(a), symmetric)


@examples(25)
@given(rows, rows, nets, seeds, densities, st.sampled_from(FLOATS), st.sampled_from(["width", "none", "floats"]))
def test_lambda_is_bit_for_bit_the_sequential_product(n, m, specs, seed, density, dtype, scale):
    a, b = random_bits(n, specs, seed, density), random_bits(m, specs, seed + 1, density)
    factors = {
        "width": [1 / width for width in a.widths],
        "none": [1.0] * len(specs),
        "floats": (torch.randn(len(specs), generator=generator(seed)) * 3).tolist(),
    }[scale]
    given_scale = factors if scale == "floats" else scale
    expected = lambda_rule(reference.gate_overlap(a, b), factors, dtype)
    symmetric = lambda_rule(reference.gate_overlap(a), factors, dtype)
    for _ in every_set():
        assert_same_bits(npk_gram(None, a, None, b, scale=given_scale, dtype=dtype), expected)
        assert_same_bits(npk_gram(None, a, scale=given_scale, dtype=dtype), symmetric)
        assert_same_bits(npk_diag(None, a, scale=given_scale, dtype=dtype), symmetric.diagonal().contiguous())


@pytest.mark.parametrize("width", [16_383, 16_384, 16_385, 16_416, 40_000])
def test_layers_wider_than_any_block_are_counted_whole(width):
    specs = dense(40, width, 33)
    a, b = random_bits(37, specs), random_bits(19, specs, seed=1)
    counts, symmetric, scales = reference.gate_overlap(a, b), reference.gate_overlap(a), [1 / w for w in a.widths]
    for _ in every_set():
        assert_same_bits(gate_overlap(a, b), counts)
        for dtype in FLOATS:
            assert_same_bits(npk_gram(None, a, dtype=dtype), lambda_rule(symmetric, scales, dtype))
            assert_same_bits(npk_gram(None, a, None, b, dtype=dtype), lambda_rule(counts, scales, dtype))


@every_isa
def test_many_layers_are_multiplied_in_order():
    specs = dense(*([7, 250, 31, 64, 513] * 12))
    a, b = random_bits(20, specs, density=0.97), random_bits(9, specs, seed=1, density=0.97)
    scales = [1 / w for w in a.widths]
    for dtype in FLOATS:
        expected = lambda_rule(reference.gate_overlap(a, b), scales, dtype)
        assert expected.count_nonzero() > 100
        assert_same_bits(npk_gram(None, a, None, b, dtype=dtype), expected)


@pytest.mark.parametrize("n", [600, 2047, 2048, 2049, 2305])
def test_lambda_of_many_tiles_is_bit_for_bit_the_sequential_product(n):
    bits = random_bits(n, dense(33, 65), seed=n)
    expected = lambda_rule(reference.gate_overlap(bits), [1 / 33, 1 / 65], torch.float32)
    for _ in every_set():
        assert_same_bits(npk_gram(None, bits), expected)
        assert_same_bits(npk_gram(None, bits[:300], None, bits), expected[:300])
        assert_same_bits(npk_gram(None, bits, None, bits[:300]), expected[:, :300])


@pytest.mark.parametrize("n", [1456, 1500, 2064])
@pytest.mark.parametrize("specs", [dense(9), dense(700, 33, 300)], ids=["few gates", "many gates"])
def test_large_outputs_are_written_whole_wherever_their_rows_begin(n, specs):
    """Outputs of more than 8 MiB are written past the caches, in whole vectors if the rows allow it."""
    bits = random_bits(n, specs, seed=n)
    counts, scales = reference.gate_overlap(bits), [1 / w for w in bits.widths]
    grams = [lambda_rule(counts, scales, dtype) for dtype in FLOATS]
    for _ in every_set():
        assert_same_bits(gate_overlap(bits), counts)
        for dtype, expected in zip(FLOATS, grams, strict=True):
            for first, columns in ((0, n), (0, n + 16), (16, n + 16), (1, n + 1), (0, n + 3)):
                whole = torch.full((n, columns), -1, dtype=dtype)
                npk_gram(None, bits, dtype=dtype, out=whole[:, first : first + n])
                assert_same_bits(whole[:, first : first + n].contiguous(), expected)
                assert (whole[:, :first] == -1).all()
                assert (whole[:, first + n :] == -1).all()
            assert_same_bits(npk_gram(None, bits, None, bits[:1450], dtype=dtype), expected[:, :1450].contiguous())
            assert_same_bits(npk_gram(None, bits[:1450], None, bits, dtype=dtype), expected[:1450])


@every_isa
@pytest.mark.parametrize("dtype", FLOATS)
def test_where_rows_begin_changes_no_bit_of_a_large_gram(dtype):
    n = 1463
    bits, x = random_bits(n, dense(100, 33)), rows_of(n, 9)
    for normalize in (False, True):
        aligned, ragged = torch.empty(n, 1472, dtype=dtype)[:, :n], torch.empty(n, n + 2, dtype=dtype)[:, 1:-1]
        for out in (aligned, ragged):
            npk_gram(x, bits, dtype=dtype, normalize=normalize, out=out)
        assert_same_bits(ragged.contiguous(), aligned.contiguous())
        assert_same_bits(ragged.T.contiguous(), ragged.contiguous())
        some = slice(1400, None)
        baseline = reference.npk_gram(x[some], bits[some], x, bits, dtype=dtype, normalize=normalize)
        wide = reference.npk_gram(x[some], bits[some], x, bits, dtype=torch.float64, normalize=normalize)
        if dtype == torch.float32:
            assert_as_good_as_torch(ragged[some].contiguous(), baseline, wide)


@every_isa
def test_counts_beyond_the_significand_of_float32_are_exact():
    width = 2**24 + 9
    words = torch.full((2, 524_296), -1, dtype=torch.int32)
    words[:, 524_288] = 2**9 - 1
    words[:, 524_289:] = 0
    bits = GateBits(words, (reference.words_from_bool([torch.zeros(0, width, dtype=torch.bool)])[1]))
    counts = torch.full((1, 2, 2), width, dtype=torch.int32)
    assert_same_bits(gate_overlap(bits), counts)
    for dtype in FLOATS:
        assert_same_bits(npk_gram(None, bits, dtype=dtype), lambda_rule(counts, [1 / width], dtype))


@every_isa
def test_rows_of_words_may_be_far_apart_and_in_any_order():
    a, b = random_bits(80, SHAPE), random_bits(60, SHAPE, seed=1)
    for rows_a, rows_b in [(slice(3, None, 2), slice(None, 50)), (torch.arange(70, 0, -3), slice(1, 2))]:
        part, other = a[rows_a], b[rows_b]
        assert_same_bits(gate_overlap(part, other), reference.gate_overlap(part, other))
        assert_same_bits(npk_gram(None, part), reference.npk_gram(None, part))
    wide = torch.full((80, a.words.shape[1] + 16), -1, dtype=torch.int32)
    wide[:, 8:-8] = a.words
    # This is aligned to 4 bytes only.
    shifted = torch.cat([wide.new_zeros(1), a.words.flatten()])[1:].view(a.words.shape)
    for words in (wide[:, 8:-8], shifted):
        same = GateBits(words, a.layers)
        assert_same_bits(gate_overlap(same, b), reference.gate_overlap(a, b))
        assert_same_bits(gate_overlap(b, same), reference.gate_overlap(b, a))
        assert_same_bits(npk_gram(None, same), reference.npk_gram(None, a))
        assert_same_bits(npk_diag(None, same), reference.npk_diag(None, a))


@every_isa
def test_layers_of_counts_the_chosen_layers_only():
    a, b = random_bits(20, SHAPE), random_bits(30, SHAPE, seed=1)
    every = gate_overlap(a, b)
    for chosen in ([0], [3], [1, 2], [3, 0], [2, 2]):
        assert_same_bits(gate_overlap(a.select_layers(chosen), b.select_layers(chosen)), every[chosen])
        expected = lambda_rule(every[chosen], [1 / a.widths[layer] for layer in chosen], torch.float32)
        assert_same_bits(npk_gram(None, a.select_layers(chosen), None, b.select_layers(chosen)), expected)


@every_isa
def test_the_two_sides_may_keep_a_layer_at_different_words():
    specs = dense(100, 257)
    gates, others = masks(17, specs), masks(23, specs, seed=1)
    a = bits_of(gates, specs)
    b = bits_of([masks(23, dense(500))[0], *others], dense(500, *a.widths)).select_layers([1, 2])
    b = GateBits(
        b.words,
        tuple(type(r)(s.name, r.shape, r.kind, r.first_word) for r, s in zip(b.layers, a.layers, strict=True)),
    )
    assert [r.first_word for r in a.layers] != [r.first_word for r in b.layers]
    expected = reference.gate_overlap(a, bits_of(others, specs))
    assert_same_bits(gate_overlap(a, b), expected)
    assert_same_bits(gate_overlap(b, a), expected.transpose(1, 2).contiguous())
    assert_same_bits(npk_gram(None, a, None, b), lambda_rule(expected, [1 / 100, 1 / 257], torch.float32))


# --- Sigma times Lambda -------------------------------------------------------------------------------------


@examples(25)
@given(rows, rows, st.sampled_from([0, 1, 2, 5, 64, 130]), nets, seeds, st.sampled_from(FLOATS))
def test_gram_is_as_good_as_torch(n, m, d, specs, seed, dtype):
    bits, y_bits = random_bits(n, specs, seed), random_bits(m, specs, seed + 1)
    x, y = rows_of(n, d, seed, dtype), rows_of(m, d, seed + 1, dtype)
    baseline, truth = reference.npk_gram(x, bits, y, y_bits, dtype=dtype), wide_truth(x, bits, y, y_bits)
    square, square_truth = reference.npk_gram(x, bits, dtype=dtype), wide_truth(x, bits)
    diagonal = reference.npk_diag(x, bits, dtype=dtype)
    for _ in every_set():
        assert_as_good_as_torch(npk_gram(x, bits, y, y_bits, dtype=dtype), baseline, truth)
        symmetric = npk_gram(x, bits, dtype=dtype)
        assert_as_good_as_torch(symmetric, square, square_truth)
        assert_same_bits(symmetric, symmetric.T)
        assert_as_good_as_torch(npk_diag(x, bits, dtype=dtype), diagonal, square_truth.diagonal())


@pytest.mark.parametrize("d", [784, 3072])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_x_of_any_float_dtype_is_converted_to_the_result_dtype(x_dtype, dtype, d):
    bits, y_bits = random_bits(60, SHAPE), random_bits(50, SHAPE, seed=1)
    x, y = rows_of(60, d, dtype=x_dtype), rows_of(50, d, 1, x_dtype)
    converted, y_converted = x.to(dtype), y.to(dtype)
    square, square_truth = reference.npk_gram(converted, bits, dtype=dtype), wide_truth(converted, bits)
    both = (converted, bits, y_converted, y_bits)
    baseline, truth = reference.npk_gram(*both, dtype=dtype), wide_truth(*both)
    diagonal = reference.npk_diag(x, bits, dtype=dtype)
    for _ in every_set():
        assert_as_good_as_torch(npk_gram(x, bits, dtype=dtype), square, square_truth)
        assert_as_good_as_torch(npk_gram(x, bits, y, y_bits, dtype=dtype), baseline, truth)
        assert_as_good_as_torch(npk_diag(x, bits, dtype=dtype), diagonal, square_truth.diagonal())


@every_isa
@pytest.mark.parametrize("layout", ["transposed", "every other column", "offset", "expanded", "rows backwards"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_x_may_have_any_strides(x_dtype, layout):
    bits = random_bits(40, SHAPE)
    x = rows_of(40, 30, dtype=x_dtype)
    strided = {
        "transposed": lambda: x.T.contiguous().T,
        "every other column": lambda: torch.stack([x, x + 1], -1)[..., 0],
        "offset": lambda: torch.cat([x.new_ones(1), x.flatten()])[1:].view(40, 30),
        "expanded": lambda: x[:1].expand(40, 30),
        "rows backwards": lambda: torch.cat([x, x])[::2],
    }[layout]()
    plain = strided.contiguous().clone()
    if x_dtype == torch.uint8:
        assert_same_bits(npk_gram(strided, bits), reference.npk_gram(plain, bits))
    else:
        assert_gram_is_good(npk_gram(strided, bits), plain, bits)


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_y_equal_to_x_gives_the_values_of_the_symmetric_gram(dtype):
    bits, x = random_bits(300, SHAPE), rows_of(300, 20, dtype=dtype)
    assert_same_bits(npk_gram(None, bits, dtype=dtype), npk_gram(None, bits, None, bits, dtype=dtype))
    both = npk_gram(x, bits, x, bits, dtype=dtype)
    assert_gram_is_good(both, x, bits)
    assert_as_good_as_torch(npk_gram(x, bits, dtype=dtype), both, wide_truth(x, bits))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("d", [0, 1, 7, 64, 1023, 1025, 2100, 4097, 9000])
def test_uint8_inputs_are_multiplied_exactly_and_rounded_once(d, dtype):
    bits, y_bits = random_bits(150, dense(3)), random_bits(17, dense(3), seed=1)
    x, y = rows_of(150, d, dtype=torch.uint8), rows_of(17, d, 1, torch.uint8)
    square, rectangle = (
        (x.long() @ right.long().T).to(dtype) * reference.gate_overlap(bits, others)[0].to(dtype)
        for right, others in ((x, None), (y, y_bits))
    )
    for _ in every_set():
        assert_same_bits(npk_gram(x, bits, scale="none", dtype=dtype), square)
        assert_same_bits(npk_gram(x, bits, y, y_bits, scale="none", dtype=dtype), rectangle)
        assert_same_bits(npk_diag(x, bits, scale="none", dtype=dtype), square.diagonal().contiguous())


@every_isa
@pytest.mark.parametrize("d", [3, 100])
def test_uint8_inputs_lie_anywhere_in_memory(d):
    bits, y_bits = random_bits(150, dense(3)), random_bits(17, dense(3), seed=1)
    x, y = rows_of(150, d, dtype=torch.uint8), rows_of(17, d, 1, torch.uint8)
    expected = npk_gram(x, bits, y, y_bits)
    for layout in (lambda t: t.T.contiguous().T, lambda t: t.repeat_interleave(3, 1)[:, ::3]):
        assert_same_bits(npk_gram(layout(x), bits, layout(y), y_bits), expected)


@every_isa
@pytest.mark.parametrize("value", [0, 1, 127, 128, 254, 255])
def test_uint8_sums_beyond_32_bits_are_exact(value):
    d = 70_001  # 255^2 * d exceeds 2^32.
    x = torch.full((3, d), value, dtype=torch.uint8)
    x[1, ::2], x[2, :100] = 255, 1
    bits = bits_of([torch.ones(3, 1, dtype=torch.bool)], dense(1))
    sigma = x.long() @ x.long().T
    assert_same_bits(npk_gram(x, bits, dtype=torch.float64), sigma.double())
    assert_same_bits(npk_gram(x, bits), sigma.float())
    assert_same_bits(npk_gram(x, bits, x, bits), sigma.float())
    assert_same_bits(npk_diag(x, bits), sigma.diagonal().float())


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", [None, torch.float32, torch.float64, torch.uint8], ids=str)
def test_normalized_gram_has_ones_on_its_diagonal_and_zeros_for_empty_rows(x_dtype, dtype):
    bits, y_bits = random_bits(200, SHAPE), random_bits(40, SHAPE, seed=1)
    bits.words[7, :16] = 0  # No gate of layer 0 is on.
    x = None if x_dtype is None else rows_of(200, 12, dtype=x_dtype)
    y = None if x_dtype is None else rows_of(40, 12, 1, x_dtype)
    if x is not None:
        x[11] = 0
    gram = npk_gram(x, bits, normalize=True, dtype=dtype)
    assert_gram_is_good(gram, x, bits, normalize=True)
    assert_same_bits(gram, gram.T)
    empty = reference.npk_diag(x, bits, dtype=dtype) == 0
    assert empty[7]
    assert x is None or empty[11]
    assert empty.sum() < 150
    assert (gram[empty] == 0).all()
    assert (gram[:, empty] == 0).all()
    ours = npk_gram(x, bits, y, y_bits, normalize=True, dtype=dtype)
    assert_gram_is_good(ours, x, bits, y, y_bits, normalize=True)


# --- the same bits ------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("x_dtype", [None, torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_threads_and_repetition_do_not_change_a_bit(x_dtype, dtype):
    bits, y_bits = random_bits(700, dense(100, 33)), random_bits(130, dense(100, 33), seed=1)
    x = None if x_dtype is None else rows_of(700, 100, dtype=x_dtype)
    y = None if x_dtype is None else rows_of(130, 100, 1, x_dtype)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            symmetric = npk_gram(x, bits, dtype=dtype)
            found.append(
                (
                    symmetric,
                    npk_gram(x, bits, y, y_bits, dtype=dtype),
                    npk_gram(x, bits, normalize=True, dtype=dtype),
                    npk_diag(x, bits, dtype=dtype),
                    gate_overlap(bits),
                    gate_overlap(bits, y_bits),
                )
            )
            assert_same_bits(symmetric, symmetric.T)
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert_same_bits(other, first)


# --- where results go ---------------------------------------------------------------------------------------


def frames(n: int, m: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Yields (whole, out) pairs: out (n, m) is a window of whole, which is filled with -7."""
    wholes = [torch.full(shape, -7, dtype=dtype) for shape in [(n, m), (n + 2, m + 3), (2 * n, m + 16)]]
    windows = [wholes[0], wholes[1][1:-1, 1:-2], wholes[2][1::2, 8 : m + 8]]
    flat = torch.full((n * m + 1,), -7, dtype=dtype)  # Its rows have no alignment.
    return [*zip(wholes, windows, strict=True), (flat, flat[1:].view(n, m))]


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("n", "m"), [(37, 37), (300, 19), (5, 290), (270, None), (0, 4), (4, 0)])
def test_out_receives_the_gram_and_nothing_beside_it_changes(n, m, dtype):
    bits, x = random_bits(n, SHAPE), rows_of(n, 6)
    y_bits, y = (None, None) if m is None else (random_bits(m, SHAPE, seed=1), rows_of(m, 6, 1))
    for left, right in [(x, y), (None, None)]:
        expected = npk_gram(left, bits, right, y_bits, dtype=dtype)
        for whole, out in frames(n, n if m is None else m, dtype):
            returned = npk_gram(left, bits, right, y_bits, dtype=dtype, out=out)
            assert returned is out
            assert_same_bits(out, expected)
            out.fill_(-7)
            assert (whole == -7).all()


@every_isa
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (0, None)])
def test_no_rows_give_an_empty_result(n, m):
    bits, x = random_bits(n, SHAPE), rows_of(n, 3)
    y_bits, y = (None, None) if m is None else (random_bits(m, SHAPE), rows_of(m, 3))
    columns = 0 if m is None else m
    assert npk_gram(x, bits, y, y_bits).shape == (n, columns)
    assert npk_gram(None, bits, None, y_bits, normalize=True).shape == (n, columns)
    assert gate_overlap(bits, y_bits).shape == (4, n, columns)
    assert npk_diag(x, bits).shape == (n,)


@every_isa
def test_x_without_columns_gives_zeros():
    bits = random_bits(5, SHAPE)
    assert_same_bits(npk_gram(torch.zeros(5, 0), bits), torch.zeros(5, 5))
    assert_same_bits(npk_diag(torch.zeros(5, 0), bits), torch.zeros(5))
    assert_same_bits(npk_gram(torch.zeros(5, 0), bits, normalize=True), torch.zeros(5, 5))
