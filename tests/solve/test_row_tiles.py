"""Products and sums of tall matrices in tiles, against plain ones, with the same bits for any number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import random_targets
from tolerances import assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops.solve.row_tiles import dots, gram, times, to_tiles, transposed_times


def results(a, b, small):
    tiles = to_tiles(a)
    return [times(tiles, small).view(-1, small.shape[1])[: len(a)], transposed_times(tiles, to_tiles(b)), gram(tiles)]


@settings(max_examples=15)
@given(
    n=st.integers(1, 900),
    r=st.integers(1, 300),
    c=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@pytest.mark.usefixtures("one_thread")
def test_products(n, r, c, dtype):
    a, b, small = random_targets(n, r).to(dtype), random_targets(n, c, 1), random_targets(r, c, 2)
    wide = a.double()
    for ours, expected in zip(results(a, b, small), [wide @ small, wide.T @ b, wide.T @ wide], strict=True):
        assert_close_in_float64(ours, expected)
    assert_close_in_float64(dots(wide[:, :c], b[:, :r]), (wide[:, :c] * b[:, :r]).sum(0))


@pytest.mark.parametrize("columns", [1, 10])
def test_bits_do_not_depend_on_threads(columns):
    a, b, small = random_targets(700, 300), random_targets(700, columns, 1), random_targets(300, columns, 2)
    tall = random_targets(40_000, columns, 3)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append([*results(a, b, small), dots(tall, tall)])
    for other in found[1:]:
        for ours, first in zip(other, found[0], strict=True):
            assert_same_bits(ours, first)
