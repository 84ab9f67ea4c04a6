"""The reference is right: its packing agrees with a listing of bits, and its Grams with a listing of all paths."""

from __future__ import annotations

import numpy as np
import paths
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import PATH_NETS
from strategies import bits_of, dense, densities, examples, layer_specs, masks, random_bits, rows_of, seeds
from tolerances import assert_close_in_float64, assert_same_bits

from gatedops import reference


def position_and_channel(shape: tuple[int, ...], kind: str, index: tuple[int, ...]) -> tuple[int, int]:
    """Returns where docs/math.md, section 6, puts the gate with this index."""
    if kind == "select":
        (masks_per_position, _, _, width), (u, channel, row, column) = shape, index
        return (row * width + column) * masks_per_position + u, channel
    if len(shape) == 3:
        channel, row, column = index
        return row * shape[2] + column, channel
    return (index[0], index[1]) if len(shape) == 2 else (0, index[0])


@pytest.mark.parametrize(
    ("shape", "kind", "channels", "positions"),
    [
        ((1,), "gate", 1, 1),
        ((257,), "gate", 257, 1),
        ((1, 70), "gate", 70, 1),
        ((3, 64), "gate", 64, 3),
        ((5, 65), "gate", 65, 5),
        ((33, 2, 3), "gate", 33, 6),
        ((4, 3, 2, 2), "select", 3, 16),
        ((1, 5, 1, 1), "select", 5, 1),
    ],
)
def test_words_follow_the_layout_bit_by_bit(shape, kind, channels, positions):
    before, this = dense(300)[0], (shape, kind)
    gates = masks(3, [before, this], seed=1)
    words, layers = reference.words_from_bool(gates, ["gate", kind])
    assert layers[1].first_word == 16, "300 gates fill 10 words, the next multiple of 8 is 16"
    expected = np.zeros((3, words.shape[1] * 32), dtype=bool)
    expected[:, :300] = gates[0].numpy()
    stride = 64 * -(-channels // 64)
    for row, *index in gates[1].nonzero().tolist():
        position, channel = position_and_channel(shape, kind, tuple(index))
        expected[row, 16 * 32 + position * stride + channel] = True
    listed = np.packbits(expected, axis=1, bitorder="little").view("<i4")
    assert_same_bits(words, torch.from_numpy(listed.copy()))
    used = -(-channels // 32) if positions == 1 else positions * stride // 32
    assert words.shape == (3, 16 + 8 * -(-used // 8)), "a row ends on a multiple of 8 words"


@examples(60)
@given(st.lists(layer_specs, min_size=1, max_size=3), st.integers(0, 3), seeds, densities)
def test_unpacking_inverts_packing(specs, n, seed, density):
    gates = masks(n, specs, seed, density)
    for found, given_gates in zip(reference.unpack_gates(bits_of(gates, specs)), gates, strict=True):
        assert_same_bits(found, given_gates)


@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_output_is_features_times_values(d_in, widths):
    rng = np.random.default_rng(d_in)
    weights = paths.random_net(rng, d_in, widths, integers=True)
    x = rng.integers(-4, 5, (6, d_in))
    gates, output = paths.forward(weights, x)
    every = paths.all_paths(weights)
    assert len(every) == d_in * np.prod(widths) <= 250
    assert (paths.features(x, gates, every) @ paths.values(weights, every) == output).all()


@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_gram_of_integer_inputs_is_the_gram_of_the_listed_features(d_in, widths):
    rng = np.random.default_rng(10 + d_in)
    x = rng.integers(-9, 10, (8, d_in))
    weights = paths.random_net(rng, d_in, widths, integers=True)
    gates, _ = paths.forward(weights, x)
    phi = paths.features(x, gates, paths.all_paths(weights))
    bits = bits_of([torch.from_numpy(g) for g in gates], dense(*widths))
    gram = reference.npk_gram(torch.from_numpy(x).double(), bits, scale="none", dtype=torch.float64)
    assert_same_bits(gram.long(), torch.from_numpy(phi @ phi.T))


@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_gram_of_two_sets_of_real_inputs_is_the_gram_of_the_listed_features(d_in, widths):
    rng = np.random.default_rng(20 + d_in)
    weights = paths.random_net(rng, d_in, widths, integers=False)
    every = paths.all_paths(weights)
    sides = []
    for n in (7, 5):
        x = rng.standard_normal((n, d_in))
        gates, _ = paths.forward(weights, x)
        bits = bits_of([torch.from_numpy(g) for g in gates], dense(*widths))
        sides.append((torch.from_numpy(x), bits, paths.features(x, gates, every)))
    (x, bits, phi), (y, y_bits, psi) = sides
    gram = reference.npk_gram(x, bits, y, y_bits, scale="none", dtype=torch.float64)
    assert_close_in_float64(gram, torch.from_numpy(phi @ psi.T))
    v = torch.from_numpy(rng.standard_normal((5, 2)))
    product = reference.npk_matvec(x, bits, v, y, y_bits, scale="none", dtype=torch.float64)
    assert_close_in_float64(product, torch.from_numpy(phi @ (psi.T @ v.numpy())))


def test_uint8_inputs_are_multiplied_in_integers():
    x = rows_of(4, 40_000, dtype=torch.uint8)
    bits = bits_of([torch.ones(4, 1, dtype=torch.bool)], dense(1))
    exact = x.long() @ x.long().T
    assert exact.max() > 2**24
    assert_same_bits(reference.npk_gram(x, bits, dtype=torch.float64), exact.double())
    assert_same_bits(reference.npk_gram(x, bits), exact.float())
    assert_same_bits(reference.npk_diag(x, bits), exact.diag().float())


def test_normalized_gram_is_the_cosine_of_the_features():
    bits = random_bits(6, dense(40, 50))
    bits.words[2, :8] = 0  # No gate of the first layer is on, so K_ii = 0.
    x = rows_of(6, 5, dtype=torch.float64)
    gram = reference.npk_gram(x, bits, dtype=torch.float64)
    diagonal = gram.diag()
    assert diagonal[2] == 0
    assert_close_in_float64(reference.npk_diag(x, bits, dtype=torch.float64), diagonal)
    expected = (gram / (diagonal[:, None] * diagonal[None, :]).sqrt()).nan_to_num(0)
    assert_close_in_float64(reference.npk_gram(x, bits, normalize=True, dtype=torch.float64), expected)


@pytest.mark.parametrize(("dtype", "layers"), [(torch.float32, 15), (torch.float64, 127), (torch.bfloat16, 15)])
def test_scale_none_refuses_widths_beyond_the_dtype(dtype, layers):
    fits, exceeds = random_bits(1, dense(*[256] * layers)), random_bits(1, dense(*[256] * (layers + 1)))
    assert reference.npk_gram(None, fits, scale="none", dtype=dtype).isfinite().all()
    with pytest.raises(ValueError, match="scale"):
        reference.npk_gram(None, exceeds, scale="none", dtype=dtype)
