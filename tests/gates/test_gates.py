"""Packing, unpacking and GateBits put every bit where docs/math.md, section 6, says, for any strides."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packing_problems import DTYPES, MIXED, mixed_bits
from safetensors import safe_open
from safetensors.torch import save_file
from strategies import (
    LAYOUTS,
    bits_of,
    dense,
    densities,
    examples,
    layer_specs,
    layouts,
    masks,
    nets,
    pre_activations,
    rows,
    seeds,
    special_values,
    widths,
)
from tolerances import assert_same_bits

import gatedops
from gatedops import GateBits, GateLayer, pack_gates, reference, unpack_gates

# --- packing ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@examples(60)
@given(rows, widths, st.sampled_from(DTYPES), layouts, seeds)
def test_a_dense_layer_packs_to_the_words_of_the_reference(n, width, dtype, layout, seed):
    q = LAYOUTS[layout](pre_activations(n, (width,), dtype, seed))
    packed = pack_gates(q)
    assert_same_bits(packed.words, reference.pack_gates(q).words)


@pytest.mark.usefixtures("isa")
@examples(60)
@given(st.integers(0, 5), layer_specs, st.sampled_from(DTYPES), layouts, seeds)
def test_every_shape_and_layout_packs_to_the_words_of_the_reference(n, spec, dtype, layout, seed):
    shape, kind = spec
    q = LAYOUTS[layout](pre_activations(n, shape, dtype, seed))
    packed = GateBits.pack([q], kinds=[kind])
    words, _ = reference.words_from_bool([reference.gates_on(q)], [kind])
    assert_same_bits(packed.words, words)
    assert packed.layers[0].shape == shape
    assert packed.layers[0].kind == kind


@pytest.mark.usefixtures("isa")
@examples(40)
@given(st.integers(0, 4), nets, st.sampled_from(DTYPES), seeds)
def test_layers_follow_each_other_on_256_bit_boundaries(n, specs, dtype, seed):
    q = [pre_activations(n, shape, dtype, seed + index) for index, (shape, _) in enumerate(specs)]
    kinds = [kind for _, kind in specs]
    packed = GateBits.pack(q, kinds=kinds)
    words, layers = reference.words_from_bool([reference.gates_on(one) for one in q], kinds)
    assert_same_bits(packed.words, words)
    assert [layer.first_word for layer in packed.layers] == [layer.first_word for layer in layers]
    assert packed.words.shape[1] % 8 == 0
    assert packed.words.data_ptr() % 16 == 0


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
@pytest.mark.parametrize("width", [1, 8, 16, 31, 257])
def test_on_means_strictly_greater_than_zero_for_every_special_value(dtype, width):
    for value in special_values(dtype):
        q = torch.full((2, width), value.item(), dtype=dtype)
        expected = value.item() > 0
        assert unpack_gates(pack_gates(q))[0].equal(torch.full((2, width), expected)), value.item()


@pytest.mark.usefixtures("isa")
def test_offsets_beyond_32_bits_are_followed():
    # The rows are 1.5 GiB apart in 3 GiB of address space, of which only a few pages are touched.
    row = 3 * 2**29
    q = torch.empty(0, dtype=torch.bool).set_(torch.UntypedStorage(2 * row + 4096), 0, (3, 40), (row, 7))
    q.copy_(torch.rand(3, 40) < 0.5)
    assert_same_bits(pack_gates(q).words, reference.pack_gates(q.clone()).words)


@pytest.mark.usefixtures("isa")
@examples(40)
@given(st.integers(0, 40), layer_specs, seeds, densities)
def test_unpacking_gives_the_gates_in_their_shapes(n, spec, seed, density):
    gates = masks(n, [dense(70)[0], spec], seed, density)
    bits = bits_of(gates, [dense(70)[0], spec])
    for found, expected in zip(unpack_gates(bits), gates, strict=True):
        assert_same_bits(found, expected)
    for found, expected in zip(bits[::2].unpack(), gates, strict=True):
        assert_same_bits(found, expected[::2])


@pytest.mark.usefixtures("isa")
def test_packing_gives_the_same_bits_for_every_number_of_threads():
    q = torch.randn(3001, 257)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(pack_gates(q).words)
    finally:
        torch.set_num_threads(before)
    assert_same_bits(found[0], reference.pack_gates(q).words)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.usefixtures("isa")
def test_pack_gates_out_writes_its_rows_and_nothing_else():
    q = torch.randn(5, 1, 70)
    frame = torch.full((7, 24), 77, dtype=torch.int32)
    torch.ops.gatedops.pack_gates_out(q, out=frame[1:6, 8:16])
    expected = torch.full((7, 24), 77, dtype=torch.int32)
    expected[1:6, 8:16] = reference.pack_gates(q[:, 0]).words
    assert_same_bits(frame, expected)


# --- GateBits -----------------------------------------------------------------------------------------------


def test_gatebits_describes_its_layers():
    bits = mixed_bits()
    assert bits.n == 9
    assert bits.nbytes == bits.words.numel() * 4
    assert bits.device == torch.device("cpu")
    assert bits.widths == (300, 195, 198, 80)
    assert [layer.name for layer in bits.layers] == ["a", "b", "c", "d"]
    assert [(layer.positions, layer.channels) for layer in bits.layers] == [
        (1, 300),
        (3, 65),
        (6, 33),
        (16, 5),
    ]
    assert [layer.words for layer in bits.layers] == [10, 12, 12, 32]
    assert [layer.first_word for layer in bits.layers] == [0, 16, 32, 48]
    assert isinstance(bits.layers[0], GateLayer)


def test_gatebits_is_frozen():
    bits = mixed_bits()
    with pytest.raises(dataclasses.FrozenInstanceError):
        bits.words = bits.words  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        bits.layers[0].name = "z"  # type: ignore[misc]


def test_default_names_tell_the_layers_apart():
    names = [layer.name for layer in GateBits.pack(masks(2, dense(3, 4, 5))).layers]
    assert len(set(names)) == 3
    assert all(isinstance(name, str) and name for name in names)


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(1, 6, 2),
        slice(4, 4),
        slice(-3, None),
        torch.tensor([5, 0, 0, 8]),
        torch.tensor([-1, 2]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(9) % 2 == 0,
        [3, 1],
    ],
    ids=str,
)
def test_indexing_selects_rows(index):
    bits = mixed_bits()
    chosen = bits[index]
    assert chosen.layers == bits.layers
    for found, gates in zip(chosen.unpack(), bits.unpack(), strict=True):
        assert_same_bits(found, gates[index])


@pytest.mark.parametrize("row", [0, 3, -1])
def test_indexing_with_an_integer_keeps_a_row(row):
    bits = mixed_bits()
    assert bits[row].n == 1
    assert_same_bits(bits[row].words, bits.words[[row]])


@pytest.mark.parametrize("row", [9, -10])
def test_indexing_past_the_rows_is_an_index_error(row):
    with pytest.raises(IndexError):
        mixed_bits()[row]


@pytest.mark.parametrize("chosen", [["b"], ["d", "a"], [2, 0], [-1], ["a", 1]], ids=str)
def test_layers_of_shares_words_and_keeps_the_records(chosen):
    bits = mixed_bits()
    part = bits.select_layers(chosen)
    places = [layer if isinstance(layer, int) else "abcd".index(layer) for layer in chosen]
    assert part.words.data_ptr() == bits.words.data_ptr()
    gates = bits.unpack()
    for found, place in zip(part.unpack(), places, strict=True):
        assert_same_bits(found, gates[place])
    assert part.widths == tuple(bits.widths[place] for place in places)


@pytest.mark.parametrize("chosen", [["z"], [4], [-5]], ids=str)
def test_layers_of_names_what_is_missing(chosen):
    with pytest.raises((ValueError, IndexError), match="selection"):
        mixed_bits().select_layers(chosen)


def test_cat_joins_rows():
    bits = mixed_bits(9)
    joined = GateBits.cat([bits[:4], bits[4:4], bits[4:]])
    assert joined == bits
    assert_same_bits(joined.words, bits.words)


def test_cat_of_parts_with_other_first_words_keeps_the_gates():
    bits = mixed_bits()
    part, alone = bits.select_layers(["c"]), GateBits.pack([bits.unpack()[2]], names=["c"])
    assert_same_bits(GateBits.cat([part, alone]).unpack()[0], bits.unpack()[2].repeat(2, 1, 1, 1))


def test_equality_compares_gates_and_records():
    bits = mixed_bits()
    assert bits == mixed_bits()
    assert bits != mixed_bits(seed=1)
    assert bits != bits[:8]
    renamed = GateBits.pack(bits.unpack(), names=["a", "b", "c", "e"], kinds=[kind for _, kind in MIXED])
    assert bits != renamed
    assert bits != "bits"


def test_equality_is_of_gates_not_of_where_they_lie():
    bits = mixed_bits()
    assert bits[::2] == bits[torch.arange(0, 9, 2)]


def test_to_keeps_the_gates():
    bits = mixed_bits()
    assert bits.to("cpu") == bits
    assert bits.to(torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, lambda bits: pickle.loads(pickle.dumps(bits))])
def test_copies_are_equal(copies):
    bits = mixed_bits()
    assert copies(bits) == bits
    assert copies(bits[1::3]) == bits[1::3]


def test_deepcopy_owns_its_words():
    bits = mixed_bits()
    other = copy.deepcopy(bits)
    other.words.zero_()
    assert bits == mixed_bits()


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_loading_gives_what_was_saved(tmp_path, n, mmap):
    bits = mixed_bits(n)
    bits.save(tmp_path / "gates.safetensors")
    loaded = GateBits.load(tmp_path / "gates.safetensors", mmap=mmap)
    assert loaded == bits
    assert loaded.layers == bits.layers
    assert_same_bits(gatedops.gate_overlap(loaded), gatedops.gate_overlap(bits))


def test_a_view_of_rows_and_layers_is_saved_as_it_is_seen(tmp_path):
    part = mixed_bits()[1::3].select_layers(["d", "b"])
    part.save(str(tmp_path / "part"))
    loaded = GateBits.load(str(tmp_path / "part"))
    for found, expected in zip(loaded.unpack(), part.unpack(), strict=True):
        assert_same_bits(found, expected)
    assert [layer.name for layer in loaded.layers] == ["d", "b"]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, -1])
def test_a_truncated_file_is_an_error_that_names_the_file(tmp_path, keep, mmap):
    path = tmp_path / "gates.safetensors"
    mixed_bits().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"gates\.safetensors"):
        GateBits.load(path, mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_foreign_file_is_an_error_that_names_the_file(tmp_path, mmap):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        GateBits.load(tmp_path / "other.safetensors", mmap=mmap)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "records",
    [None, "", "[[", "{}", "[]", "[[1]]", '[["a", [70000], "gate"]]', '[["a", [3], "pool"]]', '[["a", [0], "gate"]]'],
)
def test_damaged_records_of_layers_are_an_error_that_names_the_file(tmp_path, records, mmap):
    path = tmp_path / "gates.safetensors"
    mixed_bits().save(path)
    with safe_open(path, "pt") as file:
        metadata, words = file.metadata(), file.get_tensor("words")
    metadata.pop("layers")
    save_file({"words": words}, path, metadata | ({} if records is None else {"layers": records}))
    with pytest.raises(ValueError, match=r"gates\.safetensors"):
        GateBits.load(path, mmap=mmap)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        GateBits.load(tmp_path / "none.safetensors")


def test_the_old_name_of_select_layers_warns_at_the_callers_line():
    bits = GateBits.pack([torch.ones(3, 4), torch.ones(3, 5)])
    with pytest.warns(DeprecationWarning, match=r"layers_of is now select_layers") as found:
        assert bits.layers_of([1]) == bits.select_layers([1])
    assert [warning.filename for warning in found] == [__file__]
