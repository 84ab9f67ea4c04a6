"""gate_agreement and gate_hamming give exact counts, and gate_neighbors the neighbours that a stable sort of the Gram
finds."""

from __future__ import annotations

import pytest
import torch
from gram_problems import FLOATS, SHAPE
from hypothesis import given
from hypothesis import strategies as st
from instruction_sets import every_set
from memory import WORKSPACE_MIB, needs_proc, peak_mib
from strategies import bits_of, dense, densities, examples, generator, masks, nets, random_bits, rows, seeds
from tolerances import assert_same_bits
from torch.library import opcheck
from torch_threads import threads

from gatedops import GateBits, gate_agreement, gate_hamming, gate_neighbors, gate_overlap, reference

every_isa = pytest.mark.usefixtures("isa")

BITS, Y_BITS = random_bits(6, dense(40, 33)), random_bits(4, dense(40, 33), seed=1)
OPS = torch.ops.gatedops
LAYERS = ([0, 8], [0, 8], [2, 2])


def assert_same_neighbors(found, expected) -> None:
    assert_same_bits(found[1], expected[1])
    assert_same_bits(found[0], expected[0])


def assert_neighbors(*arguments, **options) -> None:
    """Checks the neighbours under every instruction set."""
    expected = reference.gate_neighbors(*arguments, **options)
    for _ in every_set():
        assert_same_neighbors(gate_neighbors(*arguments, **options), expected)


# --- gate_agreement, gate_hamming ---------------------------------------------------------------------------

MEASURES = {
    "agreement": (gate_agreement, reference.gate_agreement),
    "hamming": (gate_hamming, reference.gate_hamming),
}
every_measure = pytest.mark.parametrize("measure", MEASURES)


def assert_counts_of(measure: str, a: GateBits, b: GateBits) -> None:
    """Checks the counts under every instruction set."""
    count, reference_count = MEASURES[measure]
    expected = reference_count(a, b), reference_count(a)
    for _ in every_set():
        assert_same_bits(count(a, b), expected[0])
        assert_same_bits(count(a), expected[1])


@every_isa
def test_agreement_counts_gates_that_are_both_on_or_both_off():
    a = GateBits.pack([torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)])
    b = GateBits.pack([torch.tensor([[1, 0, 1, 0, 1]], dtype=torch.bool)])
    assert gate_agreement(a, b).tolist() == [[[3], [2]]]
    assert gate_agreement(a).tolist() == [[[5, 2], [2, 5]]]


@every_isa
def test_hamming_counts_gates_that_are_on_for_one_alone():
    a = GateBits.pack([torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)])
    b = GateBits.pack([torch.tensor([[1, 0, 1, 0, 1]], dtype=torch.bool)])
    assert gate_hamming(a, b).tolist() == [[[2], [3]]]
    assert gate_hamming(a).tolist() == [[[0, 3], [3, 0]]]


@every_measure
@examples(40)
@given(rows, rows, nets, seeds, densities)
def test_measures_are_exact_counts(measure, n, m, specs, seed, density):
    assert_counts_of(measure, random_bits(n, specs, seed, density), random_bits(m, specs, seed + 1, density))


@every_measure
@pytest.mark.parametrize("width", [16_383, 16_385, 40_000])
def test_measures_of_layers_wider_than_any_block_are_whole(measure, width):
    specs = dense(40, width, 33)
    assert_counts_of(measure, random_bits(37, specs), random_bits(19, specs, seed=1))


@every_isa
@every_measure
def test_measures_of_more_gates_than_float32_counts_are_exact(measure):
    """The layer has 2^24 + 40 gates, and float32 holds no odd number above 2^24."""
    width = 2**24 + 40
    gates = torch.zeros(3, width, dtype=torch.bool)
    gates[1, : width - 5] = True
    gates[2, :3] = True
    bits = GateBits.pack([gates])
    differ = torch.tensor([[0, width - 5, 3], [width - 5, 0, width - 8], [3, width - 8, 0]], dtype=torch.int32)
    assert_same_bits(MEASURES[measure][0](bits)[0], width - differ if measure == "agreement" else differ)


@every_measure
@pytest.mark.parametrize("n", [600, 2049])
def test_measures_over_many_tiles_are_exact_and_symmetric(measure, n):
    bits = random_bits(n, dense(33, 65), seed=n)
    count, reference_count = MEASURES[measure]
    expected = reference_count(bits)
    assert_same_bits(expected, expected.mT.contiguous())
    for _ in every_set():
        assert_same_bits(count(bits), expected)


@every_isa
def test_agreement_and_hamming_are_counts_of_unpacked_gates():
    a, b = masks(20, SHAPE), masks(30, SHAPE, seed=1)
    differ = torch.stack([(p[:, None] != q[None]).sum(-1) for p, q in zip(a, b, strict=True)])
    widths = torch.tensor([257, 64, 1, 1000])[:, None, None]
    a_bits, b_bits = bits_of(a, SHAPE), bits_of(b, SHAPE)
    assert_same_bits(gate_agreement(a_bits, b_bits), (widths - differ).int())
    assert_same_bits(gate_hamming(a_bits, b_bits), differ.int())


@every_isa
def test_padding_between_positions_and_behind_layers_neither_agrees_nor_differs():
    specs = [((33, 2, 3), "gate"), ((3, 65), "gate"), ((4, 5, 2, 2), "select"), ((31,), "gate")]
    bits = random_bits(5, specs, density=0.0)
    assert (gate_agreement(bits) == torch.tensor(bits.widths)[:, None, None]).all()
    assert (gate_hamming(bits) == 0).all()
    assert (gate_hamming(bits, random_bits(4, specs, density=1.0)) == torch.tensor(bits.widths)[:, None, None]).all()


@every_isa
@every_measure
def test_a_selection_of_layers_measures_as_it_does_among_all(measure):
    a, b = random_bits(20, SHAPE), random_bits(30, SHAPE, seed=1)
    count = MEASURES[measure][0]
    every = count(a, b)
    for chosen in ([0], [3], [1, 2], [3, 0], [2, 2]):
        assert_same_bits(count(a.select_layers(chosen), b.select_layers(chosen)), every[chosen])


# --- gate_neighbors -----------------------------------------------------------------------------------------


@every_isa
def test_neighbors_of_four_rows():
    gates = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1]], dtype=torch.bool)
    bits = GateBits.pack([gates])
    values, indices = gate_neighbors(bits, 2, scale="none")
    assert values.tolist() == [[2, 1], [2, 2], [2, 1], [2, 2]]
    assert indices.tolist() == [[1, 3], [0, 3], [3, 1], [1, 2]]  # In row 1, 0 and 3 tie, and 0 comes first.
    values, indices = gate_neighbors(bits[:1], 3, bits, scale="none")
    assert values.tolist() == [[2, 2, 1]]
    assert indices.tolist() == [[0, 1, 3]]


@examples(40)
@given(rows, rows, nets, seeds, densities, st.sampled_from(FLOATS), st.data())
def test_neighbors_are_those_of_a_stable_sort(n, m, specs, seed, density, dtype, data):
    bits, y_bits = random_bits(n, specs, seed, density), random_bits(m, specs, seed + 1, density)
    if m > 0:
        k = data.draw(st.integers(1, m), label="k")
        assert_neighbors(bits, k, y_bits, dtype=dtype)
    if n > 1:
        k = data.draw(st.integers(1, n - 1), label="k of the rows themselves")
        assert_neighbors(bits, k, dtype=dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("n", [600, 2047, 2048, 2305])
def test_neighbors_over_many_tiles_are_those_of_a_stable_sort(n, dtype):
    # There are few gates, so that many rows tie at the k-th place.
    bits = random_bits(n, dense(5, 9), seed=n)
    for k in (1, 7, n - 1):
        assert_neighbors(bits, k, dtype=dtype)
    assert_neighbors(bits[:300], 12, bits, dtype=dtype)


@every_isa
@pytest.mark.parametrize("scale", ["width", "none", [0.25, 3.0], [-1.0, 2.0], [-2.0, -3.0], [0.0, 1.0]], ids=str)
def test_every_scale_orders_neighbors_by_lambda(scale):
    bits = random_bits(200, dense(40, 9))
    expected = reference.gate_neighbors(bits, 30, scale=scale)
    assert_same_neighbors(gate_neighbors(bits, 30, scale=scale), expected)


@every_isa
@pytest.mark.parametrize("k", [1, 7, 40, 299])
def test_values_that_overflow_are_ordered_as_torch_sorts_them(k):
    """Infinite first layers times empty second ones are NaN, which counts as the largest value."""
    bits = random_bits(300, dense(64, 2), density=0.4)
    expected = reference.gate_neighbors(bits, k, scale=[1e38, 1.0])
    assert expected[0][:, 0].isnan().any()
    assert_same_neighbors(gate_neighbors(bits, k, scale=[1e38, 1.0]), expected)


@every_isa
def test_equal_rows_are_neighbors_of_each_other_by_index():
    bits = random_bits(1, dense(100))[torch.zeros(300, dtype=torch.int64)]
    values, indices = gate_neighbors(bits, 4)
    assert (values == values[0, 0]).all()
    assert indices[0].tolist() == [1, 2, 3, 4]
    assert indices[2].tolist() == [0, 1, 3, 4]
    assert indices[299].tolist() == [0, 1, 2, 3]


@every_isa
def test_neighbors_in_a_selection_of_layers_are_those_of_its_own():
    bits = random_bits(300, SHAPE)
    part = bits.select_layers([3, 1])
    alone = GateBits.pack([bits.unpack()[3], bits.unpack()[1]])
    assert_same_neighbors(gate_neighbors(part, 5), gate_neighbors(alone, 5))


@every_isa
def test_no_rows_have_no_neighbors():
    for bits, y_bits in [(BITS[:0], None), (BITS[:0], Y_BITS), (BITS[:0], Y_BITS[:0])]:
        values, indices = gate_neighbors(bits, 3, y_bits)
        assert values.shape == indices.shape == (0, 3)


@every_isa
def test_the_gram_is_what_neighbors_are_taken_from():
    bits = random_bits(130, SHAPE)
    values, indices = gate_neighbors(bits, 129)
    gram = reference.npk_gram(None, bits)
    assert_same_bits(values, gram.gather(1, indices))
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert (indices != torch.arange(130)[:, None]).all()


@every_isa
def test_random_scales_and_densities_keep_the_order():
    made = generator(5)
    for _ in range(10):
        bits = random_bits(64, dense(7, 3), seed=int(torch.randint(1000, (1,), generator=made)))
        scale = torch.randn(2, generator=made).tolist()
        expected = reference.gate_neighbors(bits, 63, scale=scale, dtype=torch.float64)
        assert_same_neighbors(gate_neighbors(bits, 63, scale=scale, dtype=torch.float64), expected)


# --- the same bits ------------------------------------------------------------------------------------------


@every_isa
def test_threads_and_repetition_do_not_change_a_bit():
    bits, y_bits = random_bits(700, dense(9, 33)), random_bits(430, dense(9, 33), seed=1)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append(
                (
                    gate_agreement(bits),
                    gate_agreement(bits, y_bits),
                    gate_hamming(bits),
                    gate_hamming(bits, y_bits),
                    *gate_neighbors(bits, 20),
                    *gate_neighbors(bits, 20, y_bits),
                )
            )
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert_same_bits(other, first)


@needs_proc
@pytest.mark.parametrize(
    "call", ["gate_neighbors(bits[:n], 10)", "gate_neighbors(bits[:n], 10, bits[:n])"], ids=["symmetric", "both"]
)
def test_neighbors_need_no_gram_in_memory(call):
    # n^2 float32 numbers are 137 MiB, and 382 MiB for the portable ops; the heaps and the result are n x 10 pairs.
    n = 6_000 if WORKSPACE_MIB < 137 else 10_000
    setup = f"from gatedops import gate_neighbors\nbits = random_bits({n}, dense(32))"
    assert peak_mib(setup, call, sizes=(300, n)) < WORKSPACE_MIB


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = {
    "agreement of a tensor": ("a", lambda: gate_agreement(BITS.words)),
    "agreement with a tensor": ("b", lambda: gate_agreement(BITS, Y_BITS.words)),
    "agreement with other widths": ("b", lambda: gate_agreement(BITS, random_bits(4, dense(40, 34)))),
    "Hamming distances of a tensor": ("a", lambda: gate_hamming(BITS.words)),
    "Hamming distances from a tensor": ("b", lambda: gate_hamming(BITS, Y_BITS.words)),
    "Hamming distances with other widths": ("b", lambda: gate_hamming(BITS, random_bits(4, dense(40, 34)))),
    "neighbors of a tensor": ("bits", lambda: gate_neighbors(BITS.words, 2)),
    "neighbors among a tensor": ("y_bits", lambda: gate_neighbors(BITS, 2, Y_BITS.words)),
    "neighbors with other widths": ("y_bits", lambda: gate_neighbors(BITS, 2, random_bits(4, dense(40, 34)))),
    "no neighbors": ("k", lambda: gate_neighbors(BITS, 0)),
    "a negative number of neighbors": ("k", lambda: gate_neighbors(BITS, -1, Y_BITS)),
    "itself as a neighbor": ("k", lambda: gate_neighbors(BITS, 6)),
    "more neighbors than rows": ("k", lambda: gate_neighbors(BITS, 5, Y_BITS)),
    "neighbors of a single row": ("k", lambda: gate_neighbors(BITS[:1], 1)),
    "neighbors among no rows": ("k", lambda: gate_neighbors(BITS, 1, Y_BITS[:0])),
    "half a neighbor": ("k", lambda: gate_neighbors(BITS, 0.5)),
    "True neighbors": ("k", lambda: gate_neighbors(BITS, True)),
    "an unknown scale": ("scale", lambda: gate_neighbors(BITS, 2, scale="depth")),
    "a scale that is not a number": ("scale", lambda: gate_neighbors(BITS, 2, scale=[1.0, float("nan")])),
    "an integer dtype": ("dtype", lambda: gate_neighbors(BITS, 2, dtype=torch.int32)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named(what):
    argument, call = ERRORS[what]
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        call()


def test_the_raw_ops_refuse_what_would_leave_a_tensor():
    for widths in ([], [40], [40, 33, 1]):
        with pytest.raises(ValueError, match="widths"):
            OPS.gate_overlap(BITS.words, None, *LAYERS, widths, "both")
    for measure in ("", "xor", "Agree"):
        with pytest.raises(ValueError, match=rf"measure: got '{measure}', needs 'both', 'agree' or 'differ'"):
            OPS.gate_overlap(BITS.words, None, *LAYERS, [40, 33], measure)
    for k in (0, 6, 2**62):
        with pytest.raises(ValueError, match="k"):
            OPS.gate_neighbors(BITS.words, None, *LAYERS, [1.0, 1.0], k, torch.float32)


# --- torch.compile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y_words", [None, Y_BITS.words], ids=["symmetric", "rectangular"])
def test_ops_pass_opcheck(y_words):
    for measure in ("both", "agree", "differ"):
        opcheck(OPS.gate_overlap, (BITS.words, y_words, *LAYERS, [40, 33], measure))
    opcheck(OPS.gate_neighbors, (BITS.words, y_words, *LAYERS, [0.5, 0.25], 3, torch.float32))


def test_compiled_functions_give_the_same_bits():
    def both(bits, y_bits):
        return gate_agreement(bits), gate_hamming(bits, y_bits), gate_overlap(bits), *gate_neighbors(bits, 2, y_bits)

    torch._dynamo.reset()
    found = torch.compile(both, fullgraph=True, backend="aot_eager")(BITS, Y_BITS)
    for one, expected in zip(found, both(BITS, Y_BITS), strict=True):
        assert_same_bits(one, expected)


def test_shapes_are_known_without_data():
    meta = [GateBits(bits.words.to("meta"), bits.layers) for bits in (BITS, Y_BITS)]
    assert gate_agreement(*meta).shape == gate_hamming(*meta).shape == (2, 6, 4)
    values, indices = gate_neighbors(meta[0], 3, meta[1], dtype=torch.float64)
    assert values.shape == indices.shape == (6, 3)
    assert (values.dtype, indices.dtype) == (torch.float64, torch.int64)
