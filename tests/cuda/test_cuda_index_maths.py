"""The index arithmetic of the CUDA kernels, run on the CPU, visits every tile, chunk and element exactly once."""

from __future__ import annotations

import ctypes as c
import shutil

import emulated
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: apt install g++")


@pytest.fixture(scope="module")
def maths(tmp_path_factory):
    library = emulated.compiled("index_maths.cpp", tmp_path_factory.mktemp("emulated"))
    library.tiles.restype = library.pieces.restype = library.offset.restype = library.staged.restype = c.c_int64
    library.bands.restype = library.largest.restype = c.c_int64
    return library


def tile_at(maths, rows, cols, symmetric, t):
    at = (c.c_int64 * 2)()
    maths.tile(c.c_int64(rows), c.c_int64(cols), symmetric, c.c_int64(t), at)
    return tuple(at)


def tiles_of(maths, rows, cols, symmetric, blocks):
    """Returns the tiles in the order of blocks that take every blocks-th tile, as in the kernels."""
    count = maths.tiles(c.c_int64(rows), c.c_int64(cols), symmetric)
    return [tile_at(maths, rows, cols, symmetric, t) for b in range(blocks) for t in range(b, count, blocks)]


@given(rows=st.integers(0, 40), blocks=st.integers(1, 300))
def test_each_unordered_pair_of_tiles_once(maths, rows, blocks):
    found = tiles_of(maths, rows, rows, True, blocks)
    assert sorted(found) == [(i, j) for i in range(rows) for j in range(i + 1)]


@given(rows=st.integers(0, 40), cols=st.integers(0, 40), blocks=st.integers(1, 300))
def test_each_pair_of_tiles_once_in_a_rectangle(maths, rows, cols, blocks):
    found = tiles_of(maths, rows, cols, False, blocks)
    assert sorted(found) == [(i, j) for i in range(rows) for j in range(cols)]


@given(rows=st.integers(0, 30), cols=st.integers(1, 30), symmetric=st.booleans(), parts=st.integers(1, 400))
def test_bands_cover_each_tile_once_and_fit_their_workspace(maths, rows, cols, symmetric, parts):
    cols = rows if symmetric else cols
    ends, tiles = (c.c_int64 * 2 * 31)(), (c.c_int64 * 2 * 901)()
    count = maths.bands(c.c_int64(rows), c.c_int64(cols), symmetric, c.c_int64(parts), ends, tiles)
    bands = [tuple(ends[i]) for i in range(count)]
    assert [row for first, end in bands for row in range(first, end)] == list(range(rows))
    wanted = [(i, j) for i in range(rows) for j in range(i + 1 if symmetric else cols)]
    found = [tuple(tiles[i]) for i in range(len(wanted))]
    assert sorted(found) == wanted
    at = 0
    for first, end in bands:
        inside = [(i, j) for i, j in wanted if first <= i < end]
        assert sorted(found[at : at + len(inside)]) == inside
        at += len(inside)
        width = max(j for _, j in inside) + 1
        assert (end - first) * width <= maths.largest(c.c_int64(rows), c.c_int64(cols), symmetric, c.c_int64(parts))
        assert (end - first) * width <= parts or end == first + 1


@given(rows=st.integers(1, 2**31), data=st.data())
def test_tiles_of_huge_problems_are_inside_and_differ(maths, rows, data):
    """There are up to 2^31 x 2^31 tiles, for which a float64 square root would be wrong."""
    count = maths.tiles(c.c_int64(rows), c.c_int64(rows), True)
    assert count == rows * (rows + 1) // 2
    t = data.draw(st.integers(0, count - 1))
    some = range(max(0, t - 50), min(count, t + 50))
    found = [tile_at(maths, rows, rows, True, s) for s in some]
    assert all(0 <= col <= row < rows for row, col in found)
    assert len(set(found)) == len(found)


def test_tiles_in_flight_share_rows(maths):
    """132 blocks that work on a large problem at the same time read 8 rows of tiles and few columns."""
    found = [tile_at(maths, 469, 469, True, t) for t in range(60000, 60132)]
    assert len({row for row, _ in found}) <= 16
    assert len({col for _, col in found}) <= 40


def test_a_stage_is_a_bijection_without_bank_conflicts(maths):
    rows = 128
    found = [[maths.offset(row, chunk) for chunk in range(8)] for row in range(rows)]
    assert sorted(offset for row in found for offset in row) == list(range(0, rows * 128, 16))
    for first in range(0, rows, 8):
        for chunk in range(8):
            banks = {found[row][chunk] // 16 % 8 for row in range(first, first + 8)}
            assert len(banks) == 8  # Eight rows of 16 bytes each have 4 of the 32 banks.


def test_a_stage_is_swizzled_as_tma_does(maths):
    """Bits 7 to 9 of the address are added to bits 4 to 6."""
    for row in range(128):
        for chunk in range(8):
            plain = row * 128 + chunk * 16
            assert maths.offset(row, chunk) == plain ^ ((plain >> 7 & 7) << 4)


@pytest.mark.parametrize("tile", [64, 128])
def test_a_finished_tile_is_a_bijection(maths, tile):
    found = [maths.staged(tile, row, col) for row in range(tile) for col in range(tile)]
    assert sorted(found) == list(range(tile * tile))


def test_a_finished_tile_has_no_bank_conflicts(maths):
    """For float32, lanes store their accumulators, and read 32 columns of a row, or 32 rows of a column."""
    patterns = []
    for register in range(64):
        for first_row in range(0, 128, 16):
            pattern = []
            for lane in range(32):
                at = (c.c_int64 * 2)()
                maths.place(3, lane, register, at)
                pattern.append((first_row + at[0], at[1]))
            patterns.append(pattern)
    for line in range(128):
        for first in range(0, 128, 32):
            patterns.append([(line, first + lane) for lane in range(32)])
            patterns.append([(first + lane, line) for lane in range(32)])
    for pattern in patterns:
        assert len({maths.staged(128, row, col) % 32 for row, col in pattern}) == 32


@pytest.mark.parametrize(("tile", "elements"), [(128, 4), (64, 2)])
def test_lines_of_a_finished_tile_have_no_bank_conflicts(maths, tile, elements):
    """A lane's elements of a row are 16 bytes in one place, in some order, and eight lanes read all banks once. In a
    column a lane reads one element at a time, together with all lanes of float32, or half of the lanes of float64,
    which is 16 banks."""
    for line in range(tile):
        groups = [
            {maths.staged(tile, line, elements * lane + e) // elements for e in range(elements)} for lane in range(32)
        ]
        assert all(len(group) == 1 for group in groups)
        for first in range(0, 32, 8):
            assert len({group.pop() % 8 for group in groups[first : first + 8]}) == 8
        together = 8 * elements
        for turn in range(elements):
            for first in range(0, 32, together):
                lanes = range(first, first + together)
                rows = [elements * lane + (turn ^ maths.turn(lane, elements)) for lane in lanes]
                assert len({maths.staged(tile, row, line) % together for row in rows}) == together


@pytest.mark.parametrize(
    ("what", "registers", "rows", "cols"), [(0, 1, 16, 2), (1, 1, 16, 2), (2, 4, 16, 8), (3, 64, 16, 128)]
)
def test_fragments_cover_each_element_once(maths, what, registers, rows, cols):
    found = []
    for lane in range(32):
        for i in range(registers):
            at = (c.c_int64 * 2)()
            maths.place(what, lane, i, at)
            found.append(tuple(at))
    assert sorted(found) == [(row, col) for row in range(rows) for col in range(cols)]


@given(words=st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_pieces_cover_each_word_of_each_layer_once(maths, words):
    out = (c.c_int64 * 4 * 256)()
    count = maths.pieces((c.c_int32 * len(words))(*words), len(words), out)
    pieces = [tuple(out[i]) for i in range(count)]
    covered = [(layer, word + i) for layer, word, used, _ in pieces for i in range(used)]
    assert covered == [(layer, word) for layer, used in enumerate(words) for word in range(used)]
    assert all(used <= 32 for _, _, used, _ in pieces)
    assert [closes for _, _, _, closes in pieces] == [
        int(word + used == words[layer]) for layer, word, used, _ in pieces
    ]


@given(x=st.floats(width=32, allow_subnormal=False, min_value=-(2.0**120), max_value=2.0**120))
def test_tf32_rounds_to_eleven_bits(maths, x):
    bits = torch.tensor(x, dtype=torch.float32).view(torch.int32).item() & 0xFFFFFFFF
    found = maths.tf32(c.c_uint32(bits)) & 0xFFFFFFFF
    expected = emulated.tf32(torch.tensor(x, dtype=torch.float32)).view(torch.int32).item() & 0xFFFFFFFF
    assert found & 0x7FFFFFFF == expected & 0x7FFFFFFF


@pytest.mark.parametrize("x", [float("inf"), float("-inf"), float("nan")])
def test_tf32_of_what_is_no_number(maths, x):
    bits = torch.tensor(x).view(torch.int32).item() & 0xFFFFFFFF
    found = torch.tensor(maths.tf32(c.c_uint32(bits)), dtype=torch.int32).view(torch.float32)
    torch.testing.assert_close(found, torch.tensor(x), equal_nan=True)
