"""Grams and overlaps of more than 2^31 entries."""

from __future__ import annotations

import pytest
import torch
from strategies import dense, random_bits
from tolerances import assert_same_bits

from gatedops import gate_overlap, npk_gram, reference

every_isa = pytest.mark.usefixtures("isa")


@every_isa
@pytest.mark.slow
def test_grams_of_more_than_two_to_the_31_entries_are_right():
    bits, y_bits = random_bits(70_000, dense(32)), random_bits(31_000, dense(32), seed=1)
    gram = npk_gram(None, bits, None, y_bits)
    # 69,273 * 31,000 is just below 2^31.
    sample = torch.tensor([0, 1, 34_999, 69_271, 69_272, 69_273, 69_274, 69_998, 69_999])
    assert_same_bits(gram[sample], reference.npk_gram(None, bits[sample], None, y_bits))
    del gram
    bits = random_bits(46_400, dense(32))
    gram = npk_gram(None, bits)
    sample = torch.tensor([0, 1, 23_000, 46_280, 46_341, 46_399])
    expected = reference.npk_gram(None, bits[sample], None, bits)
    assert_same_bits(gram[sample], expected)
    assert_same_bits(gram[:, sample].T.contiguous(), expected)


@every_isa
@pytest.mark.slow
def test_overlaps_of_more_than_two_to_the_31_entries_are_right():
    bits = random_bits(8_600, dense(32)).select_layers([0] * 30)
    counts = gate_overlap(bits)
    sample = torch.tensor([0, 1, 4_000, 8_598, 8_599])
    expected = reference.gate_overlap(bits[sample].select_layers([0]), bits.select_layers([0]))[0]
    for layer in (0, 28, 29):
        assert_same_bits(counts[layer, sample], expected)
