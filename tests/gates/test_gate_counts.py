"""gate_counts counts in how many rows each bit is set, with every instruction set, as counting the bits does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import needs_proc, peak_mib
from packing_problems import MIXED
from strategies import bits_of, densities, examples, generator, masks, nets, random_bits, rows, seeds
from tolerances import assert_same_bits
from torch import Tensor
from torch.library import opcheck
from torch_threads import threads

from gatedops import GateBits, reference
from gatedops.ops.gate_counts import gate_counts, on_per_input

every_isa = pytest.mark.usefixtures("isa")
count_bits = torch.ops.gatedops.gate_counts

# These sizes lie around vectors (2, 8, 16 words) and the words of one kernel call (256).
ROW_WORDS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, 255, 256, 257, 300]


def random_words(n: int, row_words: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**31), 2**31, (n, row_words), generator=generator(seed), dtype=torch.int32)


def counted_by_numpy(words: Tensor) -> Tensor:
    as_bytes = np.ascontiguousarray(words.numpy()).view(np.uint8)
    return torch.from_numpy(np.unpackbits(as_bytes, axis=1, bitorder="little").sum(0, dtype=np.int64))


@every_isa
@examples(30)
@given(rows, st.sampled_from(ROW_WORDS), seeds)
def test_every_bit_is_counted(n, row_words, seed):
    words = random_words(n, row_words, seed)
    found = count_bits(words)
    assert_same_bits(found, counted_by_numpy(words) if row_words else torch.zeros(0, dtype=torch.int64))


@every_isa
@pytest.mark.parametrize("n", [4095, 4096, 32_767, 32_768, 32_769, 70_001])
def test_carries_of_many_rows_are_kept(n):
    ones = torch.full((1, 9), -1, dtype=torch.int32).expand(n, 9)
    assert (count_bits(ones) == n).all()
    words = random_words(n, 3)
    assert_same_bits(count_bits(words), counted_by_numpy(words))


@every_isa
@pytest.mark.parametrize("view", [lambda w: w[::3], lambda w: w[5:], lambda w: w[:, 7:30], lambda w: w[10:11, 3:4]])
def test_rows_of_any_stride_are_counted(view):
    words = view(random_words(100, 41))
    assert_same_bits(count_bits(words), counted_by_numpy(words))


@every_isa
def test_threads_and_repetition_do_not_change_a_count():
    words = random_words(50_000, 41)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append(count_bits(words))
    for other in found:
        assert_same_bits(other, counted_by_numpy(words))


@every_isa
@examples(20)
@given(rows, nets, seeds, densities)
def test_gates_are_counted_in_their_shapes_and_padding_is_not(n, specs, seed, density):
    gates = masks(n, specs, seed, density)
    found = gate_counts(bits_of(gates, specs))
    for counts, layer, expected in zip(found, gates, reference.gate_counts(bits_of(gates, specs)), strict=True):
        assert_same_bits(counts, torch.from_numpy(np.asarray(layer.numpy().sum(0, dtype=np.int64))))
        assert_same_bits(counts, expected)


@every_isa
@pytest.mark.parametrize("chosen", [[0], [3], [2, 1], [1, 1], [-1, 0]], ids=str)
def test_a_selection_of_layers_is_counted_as_among_all(chosen):
    bits = random_bits(50, MIXED)
    every = gate_counts(bits)
    for counts, place in zip(gate_counts(bits.select_layers(chosen)), chosen, strict=True):
        assert_same_bits(counts, every[place])


@every_isa
def test_bits_beyond_the_channels_of_a_position_are_not_counted():
    """Somebody may have filled the words by hand, with padding that is not 0."""
    bits = random_bits(5, MIXED)
    full = GateBits(torch.full_like(bits.words, -1), bits.layers)
    for counts, layer in zip(gate_counts(full), bits.layers, strict=True):
        assert_same_bits(counts, torch.full(layer.shape, 5))


@every_isa
@examples(10)
@given(rows, nets, seeds, densities)
def test_gates_on_for_each_input_are_counted(n, specs, seed, density):
    gates = masks(n, specs, seed, density)
    expected = torch.stack([layer.flatten(1).sum(1, dtype=torch.int32) for layer in gates])
    assert_same_bits(on_per_input(bits_of(gates, specs)), expected)


@needs_proc
@pytest.mark.cpu_kernels
def test_counting_needs_no_memory_of_the_size_of_the_words():
    # 30,000 rows of 16 words are 1.8 MiB, their gates as bytes 14.6 MiB.
    setup = "from gatedops.ops.gate_counts import gate_counts\nbits = random_bits(30_000, dense(512))"
    assert peak_mib(setup, "gate_counts(bits[:n])", sizes=(300, 30_000)) < 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (torch.zeros(3, dtype=torch.int32), "shape"),
        (torch.zeros(3, 8, dtype=torch.int64), "int32"),
        (torch.zeros(8, 3, dtype=torch.int32).T, "contiguous"),
    ],
)
def test_the_raw_op_refuses_other_words(words, what):
    with pytest.raises(ValueError, match=rf"words.*{what}"):
        count_bits(words)


@pytest.mark.parametrize("count", [gate_counts, on_per_input])
def test_a_tensor_is_no_gatebits(count):
    with pytest.raises(TypeError, match="bits: got Tensor, needs a GateBits"):
        count(torch.zeros(3, 8, dtype=torch.int32))


@pytest.mark.parametrize("n", [0, 5])
def test_the_op_passes_opcheck(n):
    opcheck(count_bits, (random_words(n, 9),))


def test_a_compiled_function_gives_the_same_counts():
    bits = random_bits(40, MIXED)
    torch._dynamo.reset()
    found = torch.compile(gate_counts, fullgraph=True, backend="aot_eager")(bits)
    for counts, expected in zip(found, gate_counts(bits), strict=True):
        assert_same_bits(counts, expected)


def test_shapes_are_known_without_data():
    bits = random_bits(4, MIXED)
    found = gate_counts(GateBits(bits.words.to("meta"), bits.layers))
    assert [tuple(counts.shape) for counts in found] == [layer.shape for layer in bits.layers]
    assert {counts.dtype for counts in found} == {torch.int64}
