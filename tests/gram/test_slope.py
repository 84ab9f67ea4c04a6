"""slope= weighs gates that are off in npk_gram, npk_diag, npk_matvec and gate_neighbors (docs/math.md, section 2)."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import paths
import pytest
import torch
from gram_problems import FLOATS, SHAPE
from hypothesis import given
from hypothesis import strategies as st
from paths import PATH_NETS
from strategies import dense, dense_nets, densities, examples, random_bits, rows, rows_of, seeds
from tolerances import FLOAT32_KERNEL, assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch_threads import threads

from gatedops import (
    GateBits,
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    npk_diag,
    npk_gram,
    npk_matvec,
    reference,
)

every_isa = pytest.mark.usefixtures("isa")
SLOPES = [0.01, -1.0, 0.5, 3.0, -0.3]
# Layers with two slopes stand beside others, in front of them and behind them.
MIXED = [0.01, 0.0, -2.0, 0.5]
BITS = random_bits(5, dense(6, 9))
OPS = torch.ops.gatedops


def gammas(bits: GateBits, slopes: list[float]) -> list[Tensor]:
    """Returns the weights (n, w_l) of each layer's gates: 1 where a gate is on, and the slope where it is off."""
    gates = [mask.flatten(1).double() for mask in reference.unpack_gates(bits)]
    return [gate + slope * (1 - gate) for gate, slope in zip(gates, slopes, strict=True)]


def brute_force(bits: GateBits, y_bits: GateBits | None, slopes: list[float], scale: list[float]) -> Tensor:
    """Computes Lambda from the weights themselves, in float64."""
    left = gammas(bits, slopes)
    right = left if y_bits is None else gammas(y_bits, slopes)
    gram = torch.ones((), dtype=torch.float64)
    for gamma, y_gamma, s in zip(left, right, scale, strict=True):
        gram = gram * (gamma @ y_gamma.T * s)
    return gram


def weighed_features(x: np.ndarray, gates: list[np.ndarray], slopes: list[float], every: list) -> np.ndarray:
    """Computes the features (n, P): a path's input times 1 for each gate on it that is on, and the slope for others."""
    phi = np.zeros((len(x), len(every)))
    for index, (node, *units) in enumerate(every):
        phi[:, index] = x[:, node]
        for gate, slope, unit in zip(gates, slopes, units, strict=True):
            phi[:, index] *= np.where(gate[:, unit], 1.0, slope)
    return phi


# --- values -------------------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("slope", [-1.0, [0.5, 0.0, -0.25, 2.0, -1.0]], ids=str)
@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_integers_and_dyadic_slopes_give_exactly_what_all_listed_paths_give(d_in, widths, slope):
    rng = np.random.default_rng(d_in)
    weights = paths.random_net(rng, d_in, widths, integers=True)
    every = paths.all_paths(weights)
    slopes = slope[: len(widths)] if isinstance(slope, list) else [slope] * len(widths)
    x, y = (rng.integers(-9, 10, (n, d_in)) for n in (33, 18))
    sides = []
    for inputs in (x, y):
        gates, _ = paths.forward(weights, inputs)
        phi = torch.from_numpy(weighed_features(inputs, gates, slopes, every))
        sides.append((torch.from_numpy(inputs).double(), GateBits.pack([torch.from_numpy(g) for g in gates]), phi))
    (x, bits, phi), (y, y_bits, psi) = sides
    options = {"scale": "none", "slope": slopes, "dtype": torch.float64}
    assert torch.equal(npk_gram(x, bits, **options), phi @ phi.T)
    assert torch.equal(npk_gram(x, bits, y, y_bits, **options), phi @ psi.T)
    assert torch.equal(npk_diag(x, bits, **options), (phi * phi).sum(1))
    v = torch.from_numpy(rng.integers(-4, 5, (18, 3))).double()
    assert torch.equal(npk_matvec(x, bits, v, y, y_bits, **options), phi @ (psi.T @ v))


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_slope_of_abs_counts_agreement_less_difference(dtype):
    bits, y_bits = random_bits(200, dense(1000)), random_bits(150, dense(1000), seed=1)
    counts = (gate_agreement(bits, y_bits) - gate_hamming(bits, y_bits))[0]
    assert (counts < 0).any()
    found = npk_gram(None, bits, None, y_bits, scale="none", slope=-1, dtype=dtype)
    assert_same_bits(found, counts.to(dtype))


@every_isa
@examples(10)
@given(rows, rows, dense_nets, seeds, densities, st.sampled_from(FLOATS), st.data())
def test_lambda_is_bit_for_bit_the_reference_and_near_brute_force(n, m, specs, seed, density, dtype, data):
    a, b = random_bits(n, specs, seed, density), random_bits(m, specs, seed + 1, density)
    slopes = data.draw(st.lists(st.sampled_from([0.0, *SLOPES]), min_size=len(specs), max_size=len(specs)), "slopes")
    options = {"slope": slopes, "dtype": dtype}
    for y_bits in (None, b):
        found = npk_gram(None, a, None, y_bits, **options)
        assert_same_bits(found, reference.npk_gram(None, a, None, y_bits, **options))
        if found.numel():
            exact = brute_force(a, y_bits, slopes, [1 / w for w in a.widths])
            largest = math.prod(max(1.0, slope**2) for slope in slopes)
            assert (found.double() - exact).abs().max() <= 8 * len(specs) * torch.finfo(dtype).eps * largest
    diagonal = npk_gram(None, a, **options).diagonal().contiguous()
    assert_same_bits(npk_diag(None, a, **options), diagonal)


# The second Gram has more than 8 MiB, so it is written past the caches, tile by tile because its rows are ragged.
LARGE = {
    "many gates": (random_bits(600, SHAPE), MIXED),
    "ragged rows": (random_bits(1501, dense(33, 65)), [0.01, 0.0]),
}


@cache
def expected_of(what: str) -> Tensor:
    bits, slope = LARGE[what]
    return reference.npk_gram(None, bits, slope=slope)


@every_isa
@pytest.mark.parametrize("what", LARGE)
def test_lambda_over_many_tiles_is_bit_for_bit_the_reference(what):
    (bits, slope), expected = LARGE[what], expected_of(what)
    found = npk_gram(None, bits, slope=slope)
    assert_same_bits(found, expected)
    assert_same_bits(found, found.T.contiguous())
    assert_same_bits(npk_gram(None, bits[:300], None, bits, slope=slope), expected[:300])


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("slope", [0.01, [0.0, -1.0, 0.5]], ids=str)
def test_layers_wider_than_any_block_are_weighed_whole(slope, dtype):
    specs = dense(40, 16_500, 33)
    a, b = random_bits(37, specs), random_bits(19, specs, seed=1)
    for y_bits in (None, b):
        expected = reference.npk_gram(None, a, None, y_bits, slope=slope, dtype=dtype)
        assert_same_bits(npk_gram(None, a, None, y_bits, slope=slope, dtype=dtype), expected)


@every_isa
def test_positions_and_padding_are_counted_as_gates_are():
    specs = [((33, 2, 3), "gate"), ((3, 65), "gate"), ((31,), "gate")]
    bits = random_bits(40, specs, density=0.4)
    found = npk_gram(None, bits, slope=-0.5, dtype=torch.float64)
    assert_close_in_float64(found, brute_force(bits, None, [-0.5] * 3, [1 / w for w in bits.widths]))
    assert_same_bits(npk_gram(None, bits.select_layers([2, 0]), slope=[0.5, 0]), reference.npk_gram(
        None, bits.select_layers([2, 0]), slope=[0.5, 0]))  # fmt: skip


@every_isa
def test_the_two_sides_may_keep_a_layer_at_different_words():
    specs = dense(500, 100, 257)
    a, b = random_bits(17, specs[1:]), random_bits(23, specs, seed=1).select_layers([1, 2])
    named = [type(r)(s.name, r.shape, r.kind, r.first_word) for r, s in zip(b.layers, a.layers, strict=True)]
    b = GateBits(b.words, tuple(named))
    assert_same_bits(npk_gram(None, a, None, b, slope=0.2), reference.npk_gram(None, a, None, b, slope=0.2))


@every_isa
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64, torch.uint8, torch.bfloat16], ids=str)
def test_sigma_multiplies_what_the_slopes_give(x_dtype):
    bits, y_bits = random_bits(150, SHAPE), random_bits(70, SHAPE, seed=1)
    x, y = rows_of(150, 20, dtype=x_dtype), rows_of(70, 20, 1, x_dtype)
    for args in ((x, bits), (x, bits, y, y_bits)):
        truth = reference.npk_gram(*args, slope=MIXED, dtype=torch.float64)
        assert_as_good_as_torch(npk_gram(*args, slope=MIXED), reference.npk_gram(*args, slope=MIXED), truth)
        assert_close_in_float64(npk_gram(*args, slope=MIXED, dtype=torch.float64), truth)
    out = torch.full((150, 150), -7.0)
    assert npk_gram(x, bits, slope=MIXED, out=out) is out
    assert_same_bits(out, npk_gram(x, bits, slope=MIXED))
    truth = reference.npk_diag(x, bits, slope=MIXED, dtype=torch.float64)
    assert_as_good_as_torch(npk_diag(x, bits, slope=MIXED), reference.npk_diag(x, bits, slope=MIXED), truth)


@every_isa
@pytest.mark.parametrize("columns", [2, 25])  # Up to 24 are multiplied block by block, more by torch.
def test_matvec_is_as_good_as_torch(columns):
    bits, y_bits = random_bits(300, SHAPE), random_bits(170, SHAPE, seed=1)
    x, y = rows_of(300, 9), rows_of(170, 9, 1)
    for v, *args in ((rows_of(300, columns, 2), x, bits), (rows_of(170, columns, 3), x, bits, y, y_bits)):
        for slope in (-0.5, MIXED):
            truth = reference.npk_gram(*args, slope=slope, dtype=torch.float64) @ v.double()
            left, side, *right = args
            baseline = reference.npk_matvec(left, side, v, *right, slope=slope)
            assert_as_good_as_torch(npk_matvec(left, side, v, *right, slope=slope), baseline, truth)
            double = npk_matvec(left, side, v.double(), *right, slope=slope, dtype=torch.float64)
            assert_close_in_float64(double, truth)


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("slope", [0.5, -1.0, [0.0, -0.3]], ids=str)
def test_neighbors_are_those_of_a_stable_sort(slope, dtype):
    bits, y_bits = random_bits(300, dense(7, 40)), random_bits(130, dense(7, 40), seed=1)
    for k, right in ((9, None), (130, y_bits)):
        values, indices = gate_neighbors(bits, k, right, slope=slope, dtype=dtype)
        expected, places = reference.gate_neighbors(bits, k, right, slope=slope, dtype=dtype)
        assert_same_bits(values, expected)
        assert_same_bits(indices, places)


def test_the_neighbors_of_abs_are_the_nearest_by_hamming_distance():
    bits = random_bits(60, dense(40))
    _, indices = gate_neighbors(bits, 59, slope=-1)
    distances = gate_hamming(bits)[0].gather(1, indices)
    assert (distances[:, :-1] <= distances[:, 1:]).all()


# --- slope 0, and the same bits -------------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("zero", [0, 0.0, -0.0, [0, 0, 0, 0], np.zeros(4), torch.zeros(4), torch.tensor(0.0)], ids=repr)
def test_slope_0_is_no_slope(zero):
    bits, x = random_bits(100, SHAPE), rows_of(100, 5)
    assert_same_bits(npk_gram(x, bits, slope=zero), npk_gram(x, bits))
    assert_same_bits(npk_diag(x, bits, slope=zero), npk_diag(x, bits))
    assert_same_bits(npk_matvec(x, bits, x, slope=zero), npk_matvec(x, bits, x))
    assert_same_bits(gate_neighbors(bits, 5, slope=zero)[1], gate_neighbors(bits, 5)[1])


@pytest.mark.parametrize(
    "slope", [[0.5, -2], (0.5, -2), np.array([0.5, -2]), torch.tensor([0.5, -2]), [Fraction(1, 2), np.float32(-2)]]
)
def test_slopes_may_be_any_numbers(slope):
    assert_same_bits(npk_gram(None, BITS, slope=slope), npk_gram(None, BITS, slope=[0.5, -2.0]))


@every_isa
def test_threads_change_no_bit():
    bits, y_bits, x = random_bits(700, dense(100, 33)), random_bits(130, dense(100, 33), seed=1), rows_of(700, 9)
    found = []
    for count in (1, 3):
        with threads(count):
            found.append((
                npk_gram(None, bits, slope=[0.1, -1]),
                npk_gram(None, bits, None, y_bits, slope=[0, 0.1]),
                npk_matvec(x, bits, x, slope=0.01),
                *gate_neighbors(bits, 9, slope=0.01),
            ))  # fmt: skip
    for first, other in zip(*found, strict=True):
        assert_same_bits(other, first)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (0, None)])
def test_no_rows_give_an_empty_result(n, m):
    bits, y_bits = random_bits(n, SHAPE), None if m is None else random_bits(m, SHAPE)
    for normalize in (False, True):
        gram = npk_gram(None, bits, None, y_bits, slope=0.5, normalize=normalize)
        assert gram.shape == (n, 0 if m is None else m)
    assert npk_diag(None, bits, slope=0.5).shape == (n,)


# --- normalize, and the range ---------------------------------------------------------------------------------------


def exact_cosines(bits: GateBits, slopes: list[float]) -> Tensor:
    """Computes the normalized Gram from exact fractions; the square root alone is rounded."""
    counts = reference.gate_overlap(bits).tolist()
    grams = []
    for layer, width, slope in zip(counts, bits.widths, slopes, strict=True):
        a, on = Fraction(slope), [layer[i][i] for i in range(bits.n)]
        grams.append(
            [
                [
                    both + a * (on[i] + on[j] - 2 * both) + a * a * (width - on[i] - on[j] + both)
                    for j, both in enumerate(row)
                ]
                for i, row in enumerate(layer)
            ]
        )
    found = torch.zeros(bits.n, bits.n, dtype=torch.float64)
    for i in range(bits.n):
        for j in range(bits.n):
            cosine = 1.0
            for gram in grams:
                norm = gram[i][i] * gram[j][j]
                cosine *= math.copysign(math.sqrt(gram[i][j] ** 2 / norm), gram[i][j]) if norm else 0.0
            found[i, j] = cosine
    return found


@every_isa
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("depth", "slope"),
    [(3, 0.01), (3, -1.0), (40, 0.01), (40, 0.5), (40, -0.5), (40, 30.0), (60, 1.0), (3, [0.0, 0.01, -7.0])],
    ids=str,
)
def test_a_normalized_gram_of_any_depth_is_that_of_exact_numbers(depth, slope, dtype):
    bits = random_bits(5, dense(*[256] * depth), density=0.3)
    bits.words[2] = 0  # With two slopes, a row whose gates are all off is not 0.
    slopes = slope if isinstance(slope, list) else [slope] * depth
    found, expected = npk_gram(None, bits, slope=slope, normalize=True, dtype=dtype), exact_cosines(bits, slopes)
    limit = FLOAT32_KERNEL if dtype == torch.float32 else 1e-12
    assert (found.double() - expected).abs().max() <= limit
    assert (expected.diagonal()[[0, 1, 3, 4]] - 1).abs().max() < 1e-12
    assert_same_bits(found, found.T.contiguous())


@every_isa
def test_normalized_grams_of_inputs_and_of_two_sides():
    bits, y_bits = random_bits(60, SHAPE), random_bits(40, SHAPE, seed=1)
    x, y = rows_of(60, 9), rows_of(40, 9, 1)
    for args in ((x, bits), (x, bits, y, y_bits), (None, bits, None, y_bits)):
        truth = reference.npk_gram(*args, slope=MIXED, normalize=True, dtype=torch.float64)
        assert_close_in_float64(npk_gram(*args, slope=MIXED, normalize=True, dtype=torch.float64), truth)
        assert (npk_gram(*args, slope=MIXED, normalize=True) - truth).abs().max() < FLOAT32_KERNEL


def test_a_kernel_that_leaves_the_range_is_reported():
    bits = random_bits(4, dense(*[100] * 30))
    with pytest.raises(ValueError, match=r"scale: the kernel overflows torch.float32.*; use scale='width'"):
        npk_gram(None, bits, slope=100, scale=[1.0] * 30)
    with pytest.raises(
        ValueError, match=r"scale: 'none' overflows .* the widths \[4, .*\] and the squares of the slopes"
    ):
        npk_gram(None, random_bits(4, dense(*[4] * 60)), slope=3, scale="none")
    assert npk_gram(None, bits, slope=100, dtype=torch.float64).isfinite().all()
    none = random_bits(3, dense(*[100] * 30), density=0.0)
    with pytest.warns(UserWarning, match="the largest value of the kernel is around 1e-120, below what torch.float32"):
        npk_gram(None, none, slope=1e-2)
    npk_gram(None, none, slope=0.5)


# --- errors ---------------------------------------------------------------------------------------------------------

POOLED = random_bits(4, [((9,), "gate"), ((4, 5, 1, 2), "select")])
BAD = {
    "too few": ([0.5], ValueError, r"slope: got 1 numbers, needs one for each of 2 layers"),
    "too many": ([0.5] * 3, ValueError, r"slope: got 3 numbers, needs one for each of 2 layers"),
    "none": ([], ValueError, r"slope: got 0 numbers, needs one for each of 2 layers"),
    "NaN": (math.nan, ValueError, r"slope: got \[nan, nan\], needs finite numbers"),
    "infinity": ([0.1, -math.inf], ValueError, r"slope: got \[0.1, -inf\], needs finite numbers"),
    "a bool": (True, TypeError, r"slope: got True, needs a number or one number per layer"),
    "bools": ([True, False], TypeError, r"slope: got \[True, False\], needs a number or one number per layer"),
    "a tensor of bools": (torch.tensor([True, False]), TypeError, r"slope: got tensor.*, needs a number or one"),
    "a string": ("leaky", TypeError, r"slope: got 'leaky', needs a number or one number per layer"),
    "nothing": (None, TypeError, r"slope: got None, needs a number or one number per layer"),
    "complex": (1j, TypeError, r"slope: got 1j, needs a number or one number per layer"),
    "too large": (1e19, ValueError, r"slope: got 1e\+19 for layer 0 .* leaves the range of torch.float32; use a slope"),
    "too small": ([0, 1e-20], ValueError, r"slope: got 1e-20 for layer 1 .*; use a slope nearer to 1, or 0, or dtype="),
}  # fmt: skip
CALLS = {
    "npk_gram": lambda slope: npk_gram(None, BITS, slope=slope),
    "npk_gram normalized": lambda slope: npk_gram(None, BITS, slope=slope, normalize=True),
    "npk_diag": lambda slope: npk_diag(None, BITS, slope=slope),
    "npk_matvec": lambda slope: npk_matvec(None, BITS, rows_of(5, 1), slope=slope),
    "gate_neighbors": lambda slope: gate_neighbors(BITS, 2, slope=slope),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("function", CALLS)
def test_a_bad_slope_is_named(function, what):
    slope, error, message = BAD[what]
    with pytest.raises(error, match=f"^{message}"):
        CALLS[function](slope)


def test_the_choices_of_a_max_pool_have_no_second_slope():
    message = r"^slope: got 0.5 for layer 1 \(.*\), which holds the choices of a max-pool.* with 0 for this one$"
    with pytest.raises(ValueError, match=message):
        npk_gram(None, POOLED, slope=0.5)
    assert_same_bits(npk_gram(None, POOLED, slope=[0.5, 0]), reference.npk_gram(None, POOLED, slope=[0.5, 0]))
    assert_same_bits(npk_gram(None, POOLED, slope=0), npk_gram(None, POOLED))


@pytest.mark.parametrize("slopes", [([0.5], [6]), ([0.5, 0.5], [6]), ([0.5, 0.5], []), ([], [6, 9])], ids=str)
def test_the_raw_ops_refuse_slopes_of_other_layers(slopes):
    layers, words = ([0, 8], [0, 8], [1, 1], [0.5, 0.25]), BITS.words
    calls = (
        lambda: OPS.npk_gram(None, words, None, None, None, None, *layers, torch.float32, *slopes),
        lambda: OPS.npk_gram_out(None, words, None, None, None, None, *layers, *slopes, out=torch.zeros(5, 5)),
        lambda: OPS.npk_matvec(None, words, None, None, torch.zeros(5, 1), *layers, *slopes),
        lambda: OPS.npk_gram_backward(torch.zeros(5, 5), words, torch.zeros(5, 1), None, *layers, *slopes),
        lambda: OPS.npk_diag(words, *layers[1:], torch.float32, *slopes),
        lambda: OPS.gate_neighbors(words, None, *layers, 2, torch.float32, *slopes),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^(slope|widths): "):
            call()


def test_raw_slopes_of_0_are_those_of_a_relu():
    expected = npk_gram(None, BITS)
    found = OPS.npk_gram(
        None,
        BITS.words,
        None,
        None,
        None,
        None,
        [0, 8],
        [0, 8],
        [1, 1],
        [1 / 6, 1 / 9],
        torch.float32,
        [0.0, 0.0],
        [6, 9],
    )
    assert_same_bits(found, expected)
    assert (gate_overlap(BITS) > 0).any()
