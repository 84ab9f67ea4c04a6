"""GateBits does what users of torch expect of len, names, devices, copies, pickles of views, and errors with a
remedy."""

from __future__ import annotations

import copy
import io
import multiprocessing.reduction
import pickle

import numpy as np
import pytest
import torch
from packing_problems import mixed_bits
from strategies import dense, random_bits
from tolerances import assert_same_bits
from torch import nn

import gatedops
from gatedops import (
    GateBits,
    gate_overlap,
    gate_stats,
    npk_diag,
    npk_gram,
    npk_matvec,
    pack_gates,
    soft_npk_gram,
    unpack_gates,
)
from gatedops.stats import class_overlap, count_regions, gate_change, npk_alignment

MANY = random_bits(20_000, dense(256, 40))
ROW_BYTES = 4 * MANY.words.shape[1]

# --- length, rows and layers --------------------------------------------------------------------------------


def test_the_length_is_the_number_of_inputs():
    bits = mixed_bits(9)
    assert len(bits) == 9
    assert len(bits[:4]) == 4
    assert bool(bits)
    assert not bits[:0]


def test_a_loop_visits_the_inputs():
    bits = mixed_bits(3)
    assert [row == bits[index] for index, row in enumerate(bits)] == [True] * 3
    assert GateBits.cat(list(bits)) == bits


def test_a_name_selects_a_layer():
    bits = mixed_bits()
    assert bits["c"] == bits.select_layers(["c"])
    assert bits["c"].words.data_ptr() == bits.words.data_ptr()
    assert "c" in bits
    assert "z" not in bits
    with pytest.raises(TypeError, match="in: got int, needs the name"):
        assert 3 in bits


def test_an_unknown_name_lists_the_names_and_the_closest():
    gates = [torch.rand(2, 3)] * 3
    bits = GateBits.pack(gates, names=["features.0", "features.3", "classifier"])
    with pytest.raises(ValueError, match=r"layer: 'clasifier' .*'features.3'.*did you mean 'classifier'\?"):
        bits["clasifier"]
    with pytest.raises(ValueError, match=r"selection: 'fc9' names 0 of the layers .*'classifier'"):
        bits.select_layers(["fc9"])
    twice = GateBits.pack(gates[:2], names=["a", "a"])
    with pytest.raises(ValueError, match=r"'a' names 2 of the layers .*select_layers\(\[0\]\)"):
        twice["a"]


def test_the_names_of_a_long_net_are_cut():
    bits = GateBits.pack([torch.rand(1, 1)] * 200)
    with pytest.raises(ValueError, match=r"layer: '200' .*180 more.*'199'") as raised:
        bits["200"]
    assert len(str(raised.value)) < 400


ROWS = {
    "numpy ints": np.array([3, 0, 8]),
    "numpy int16": np.array([3, 0, 8], np.int16),
    "numpy mask": np.arange(9) % 2 == 0,
    "read-only numpy ints": np.broadcast_to(np.int64(4), 3),
    "reversed numpy ints": np.array([3, 0, 8])[::-1],
    "a list": [3, -1, 0],
    "a list of bools": [True, False, True] * 3,
    "a list of numpy ints": [np.int64(3), np.int64(1)],
    "an empty list": [],
    "a range": range(1, 9, 3),
    "a negative step": slice(None, None, -1),
    "a negative step from the middle": slice(6, 1, -2),
    "an int32 tensor": torch.tensor([3, 0], dtype=torch.int32),
    "everything": ...,
}


@pytest.mark.parametrize("what", ROWS)
def test_rows_are_those_that_numpy_selects(what):
    bits, rows = mixed_bits(9), ROWS[what]
    index = rows.numpy() if isinstance(rows, torch.Tensor) else rows
    index = np.array(index, dtype=np.int64) if isinstance(index, (list, range)) and len(index) == 0 else index
    expected = bits.words.numpy()[list(index) if isinstance(index, range) else index]
    assert_same_bits(bits[rows].words.contiguous(), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (torch.full((9,), 0.5), TypeError, r"rows: got torch.float32, .*\.long\(\)"),
        (np.zeros(9, np.uint8), TypeError, "rows: got torch.uint8"),
        (torch.zeros(5, dtype=torch.bool), IndexError, "rows: got a mask of 5, .*9 inputs"),
        ([True, False], IndexError, "rows: got a mask of 2"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"rows: got shape \(2, 2\)"),
        (["a"], TypeError, r"rows: got \['a'\], .*select_layers"),
        ((0, 1), TypeError, "rows: GateBits has one axis"),
        (None, TypeError, "rows: got NoneType"),
        (1.5, TypeError, "rows: got float"),
        (True, TypeError, "rows: got bool"),
        (9, IndexError, "rows: index 9 is out of range"),
        (np.int64(-10), IndexError, "rows: index -10"),
    ],
    ids=str,
)
def test_a_bad_index_is_named(rows, error, message):
    with pytest.raises(error, match=message):
        mixed_bits(9)[rows]


# --- devices and copies -------------------------------------------------------------------------------------

TO = {
    "non_blocking": lambda bits: bits.to("cpu", non_blocking=True),
    "copy": lambda bits: bits.to("cpu", copy=True),
    "a tensor": lambda bits: bits.to(torch.zeros(3, dtype=torch.float64)),
    "gates": lambda bits: bits.to(mixed_bits(1)),
    "its own dtype": lambda bits: bits.to(dtype=torch.int32),
    "device and dtype": lambda bits: bits.to("cpu", torch.int32),
    "a keyword": lambda bits: bits.to(device="cpu"),
    "nothing": lambda bits: bits.to(),
    "cpu": GateBits.cpu,
    "clone": GateBits.clone,
}


@pytest.mark.parametrize("what", TO)
def test_moving_keeps_the_gates(what):
    bits = mixed_bits()[2:].select_layers(["d", "a"])
    found = TO[what](bits)
    assert found == bits
    assert (found.words.data_ptr() != bits.words.data_ptr()) == (what in ("copy", "clone"))


def test_moving_to_a_tensor_takes_its_device():
    assert mixed_bits().to(torch.zeros(3, device="meta")).device.type == "meta"


@pytest.mark.parametrize("call", [lambda b: b.to(dtype=torch.float32), lambda b: b.to(torch.float32)])
def test_gates_have_no_other_dtype(call):
    with pytest.raises(TypeError, match=r"dtype: got torch.float32, .*int32 words; unpack\(\) gives bool"):
        call(mixed_bits())


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5])
def test_an_unknown_device_is_named(device):
    with pytest.raises(ValueError, match=f"device: got {device!r}, needs a device of torch"):
        mixed_bits().to(device)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("call", [GateBits.cuda, lambda b: b.cuda(0), lambda b: b.to(0), GateBits.pin_memory])
def test_without_a_gpu_the_error_says_so(call):
    with pytest.raises(ValueError, match=r"torch sees no (CUDA )?GPU here"):
        call(mixed_bits())


def saved(bits: GateBits) -> bytes:
    file = io.BytesIO()
    torch.save(bits, file)
    return file.getvalue()


PICKLES = {
    "pickle": (pickle.dumps, pickle.loads),
    "torch.save": (saved, lambda data: torch.load(io.BytesIO(data), weights_only=True)),
}
PARTS = {
    "a slice": lambda bits: bits[5:15],
    "every other row": lambda bits: bits[:20:2],
    "one layer": lambda bits: bits[:10]["1"],
    "layers in another order": lambda bits: bits.select_layers([1, 0])[:10],
    "no rows": lambda bits: bits[:0],
    "one row many times": lambda bits: GateBits(bits.words[:1].expand(10, -1), bits.layers),
}


@pytest.mark.parametrize("how", PICKLES)
@pytest.mark.parametrize("what", PARTS)
def test_a_pickle_holds_the_rows_that_are_seen(what, how):
    part = PARTS[what](MANY)
    dump, load = PICKLES[how]
    data = dump(part)
    assert len(data) < 10 * ROW_BYTES + 4096  # 20,000 rows would be 1.9 MB.
    assert load(data) == part


def test_a_pickle_of_a_mapped_file_holds_the_rows_that_are_seen(tmp_path):
    MANY.save(tmp_path / "gates")
    part = GateBits.load(tmp_path / "gates", mmap=True)[100:110]
    data = pickle.dumps(part)
    assert len(data) < 10 * ROW_BYTES + 4096
    assert pickle.loads(data) == MANY[100:110]


def test_a_deep_copy_of_a_view_holds_its_rows():
    other = copy.deepcopy(MANY[:10])
    assert other.words.untyped_storage().nbytes() == 10 * ROW_BYTES
    assert other == MANY[:10]


def test_a_copy_shares_its_words():
    part = MANY[:10]
    assert copy.copy(part).words.data_ptr() == part.words.data_ptr()


def test_what_a_worker_process_sends_holds_the_rows_that_are_seen(monkeypatch):
    monkeypatch.setattr(torch.multiprocessing.reductions, "get_sharing_strategy", lambda: "file_system", raising=False)
    sent = pickle.loads(multiprocessing.reduction.ForkingPickler.dumps(MANY[:10]))
    assert sent.words.untyped_storage().nbytes() == 10 * ROW_BYTES
    assert sent == MANY[:10]


# --- arrays of numpy ----------------------------------------------------------------------------------------


def test_gates_are_packed_from_arrays():
    q = np.random.default_rng(0).standard_normal((5, 70))
    expected = pack_gates(torch.from_numpy(q))
    for array in (q, q.astype(np.float32), q > 0):
        assert pack_gates(array) == expected
        assert GateBits.pack([array]) == expected


# --- errors that say what to do -----------------------------------------------------------------------------

NET = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
X = torch.rand(4, 5)
GIVEN = {
    "a net": (NET, "got Sequential, needs a GateBits; record_gates"),
    "masks": (X > 0, r"got Tensor, needs a GateBits; GateBits\.pack\(\[\.\.\.\]\)"),
    "pre-activations": (X, r"got Tensor, needs a GateBits; GateBits\.pack\(\[\.\.\.\]\)"),
    "an array": (X.numpy(), r"got ndarray, needs a GateBits; GateBits\.pack"),
    "words": (torch.zeros(4, 8, dtype=torch.int32), r"got Tensor, needs a GateBits; GateBits\(words, layers\)"),
    "layers": ([X > 0, X], r"got list, needs a GateBits; GateBits\.pack\(list\)"),
    "parts": ((mixed_bits(1), mixed_bits(1)), r"got tuple, needs a GateBits; GateBits\.cat"),
    "a file": ("gates.safetensors", r"got str, needs a GateBits; GateBits\.load"),
    "nothing": (None, "got NoneType, needs a GateBits; record_gates"),
    "a number": (3, "got int, needs a GateBits$"),
}
ASKING = {
    "npk_gram": lambda bits: npk_gram(X, bits),
    "npk_diag": lambda bits: npk_diag(X, bits),
    "npk_matvec": lambda bits: npk_matvec(X, bits, X),
    "gate_overlap": gate_overlap,
    "gate_agreement": gatedops.gate_agreement,
    "gate_hamming": gatedops.gate_hamming,
    "gate_neighbors": lambda bits: gatedops.gate_neighbors(bits, 1),
    "unpack_gates": unpack_gates,
    "gate_stats": gate_stats,
    "gate_change": lambda bits: gate_change(bits, bits),
    "class_overlap": lambda bits: class_overlap(bits, [0, 0, 1, 1]),
    "count_regions": count_regions,
    "npk_alignment": lambda bits: npk_alignment(bits, bits),
    "cat": lambda bits: GateBits.cat([bits]),
}


@pytest.mark.parametrize("what", GIVEN)
def test_what_is_given_for_gates_says_how_to_make_them(what):
    value, message = GIVEN[what]
    with pytest.raises(TypeError, match=f"^bits: {message}"):
        npk_gram(X, value)


@pytest.mark.parametrize("function", ASKING)
def test_every_function_of_gates_says_how_to_make_them(function):
    with pytest.raises(TypeError, match="got Sequential, needs a GateBits; record_gates"):
        ASKING[function](NET)


def test_every_function_of_gates_takes_arrays():
    made = np.random.default_rng(0)
    x, y, v = (made.standard_normal(shape).astype(np.float32) for shape in ((9, 5), (4, 5), (4, 2)))
    for array in (x, y, v):
        array.flags.writeable = False
    tensors = [torch.from_numpy(array.copy()) for array in (x, y, v)]
    bits, y_bits = mixed_bits(9), mixed_bits(4, seed=1)
    soft = [made.random((9, 7)), made.random((9, 2, 3))]
    calls = {
        "npk_gram": lambda x, y, v: npk_gram(x, bits, y, y_bits, normalize=True),
        "npk_diag": lambda x, y, v: npk_diag(x, bits),
        "npk_matvec": lambda x, y, v: npk_matvec(x, bits, v, y, y_bits),
        "npk_alignment": lambda x, y, v: torch.tensor(npk_alignment(bits, mixed_bits(9, seed=2), x)),
    }
    for call in calls.values():
        assert_same_bits(call(x, y, v), call(*tensors))
    as_tensors = [torch.from_numpy(gate) for gate in soft]
    assert_same_bits(gatedops.soft_npk_gram(x, soft), gatedops.soft_npk_gram(tensors[0], as_tensors))
    bytes_ = made.integers(0, 256, (9, 5)).astype(np.uint8)
    assert_same_bits(npk_gram(bytes_, bits), npk_gram(torch.from_numpy(bytes_), bits))


@pytest.mark.parametrize("call", [lambda x: npk_gram(x, mixed_bits()), lambda x: npk_diag(x, mixed_bits())])
def test_what_is_no_array_is_named(call):
    with pytest.raises(TypeError, match="x: got list, needs a tensor or a numpy array"):
        call([[1.0]])


# --- what to do ---------------------------------------------------------------------------------------------


def test_a_name_that_no_layer_has_is_a_key_and_a_value():
    bits = mixed_bits()
    for error in (KeyError, ValueError):
        with pytest.raises(error, match=r"^layer: 'fc2' names 0 of the layers"):
            bits["fc2"]
        with pytest.raises(error, match=r"^selection: 'fc2' names 0 of the layers"):
            bits.select_layers(["fc2"])


def test_layers_are_chosen_by_any_list():
    bits = mixed_bits()
    for places in ((0, 1), np.array([0, 1]), torch.tensor([0, 1]), iter([0, 1]), [np.int64(0), 1]):
        assert bits.select_layers(places) == bits.select_layers([0, 1])
    for one in (0, np.int64(0), torch.tensor(0), "c", None):
        with pytest.raises(TypeError, match=r"selection: got .*, needs a list of layer names"):
            bits.select_layers(one)


@pytest.mark.parametrize("device", ["mps", "xpu:1", "privateuseone"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(ValueError, match=f"device: got {device}, which torch cannot use here: use 'cpu'"):
        mixed_bits().to(device)


def test_saving_into_no_folder_says_so(tmp_path):
    bits = mixed_bits()
    with pytest.raises(ValueError, match=r"path: .*none.gates lies in no existing folder; make it first"):
        bits.save(tmp_path / "none" / "gates")
    with pytest.raises(ValueError, match=r"path: .* is a folder"):
        bits.save(tmp_path)
    with pytest.raises(TypeError, match=r"path: got int, needs the path of a file"):
        bits.save(3)
    assert not list(tmp_path.iterdir())


SPARSE = torch.eye(3).to_sparse()
DEEP = GateBits.pack([torch.rand(3, 50)] * 300)
OTHER_KIND = GateBits.pack([torch.rand(3, 2, 4, 3, 3) > 0.5], kinds=["select"])
MESSAGES = {
    "images beside gates": ("x: .*x.flatten.1. makes rows", lambda: npk_gram(torch.rand(3, 1, 2, 2), DEEP)),
    "images beside soft gates": (
        "x: .*x.flatten.1. makes rows",
        lambda: soft_npk_gram(torch.rand(3, 1, 2, 2), [torch.rand(3, 2)]),
    ),
    "sparse inputs": ("x: got a tensor of torch.sparse_coo, .*x.to_dense()", lambda: npk_gram(SPARSE, DEEP)),
    "sparse inputs of a net": ("data: got .*data.to_dense()", lambda: gatedops.record_gates(nn.ReLU(), SPARSE)),
    "bytes as gates": (r"gates\[0\]: got torch.uint8, .*\.bool", lambda: GateBits.pack([torch.ones(3, 2).byte()])),
    "bytes as a layer": (r"q: got torch.uint8, .*\.bool", lambda: pack_gates(torch.ones(3, 2).byte())),
    "a dict of gates": (
        r"gates: got dict, .*list\(gates.values\(\)\), names=list\(gates\)",
        lambda: GateBits.pack({"a": torch.rand(3, 2)}),
    ),
    "hard gates as soft ones": ("gates: got GateBits, .*npk_gram takes", lambda: soft_npk_gram(None, DEEP)),
    "fewer layers": ("b: has 2 layers, a has 300; ", lambda: gate_change(DEEP, DEEP.select_layers([0, 1]))),
    "another shape": (
        r"b: layer 299 .'299'. has shape .51,. and kind 'gate', that of a .50,. and 'gate'; ",
        lambda: gate_change(DEEP, GateBits.pack([torch.rand(3, 50)] * 299 + [torch.rand(3, 51)])),
    ),
    "widths that overflow": (
        r"scale: 'none' overflows torch.float32, the widths \[50, .* 280 more .*dtype=torch.float64",
        lambda: npk_gram(None, DEEP, scale="none"),
    ),
    "numbers that are not finite": (
        "scale: got .* 280 more ",
        lambda: npk_gram(None, DEEP, scale=[float("inf")] * 300),
    ),
    "soft gates of other widths": (
        "y_gates: has widths .* 280 more .*gates has",
        lambda: soft_npk_gram(None, [torch.rand(3, 2)] * 300, None, [torch.rand(3, 3)] * 300),
    ),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_messages_say_what_to_do_and_stay_short(what):
    message, call = MESSAGES[what]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert len(str(caught.value)) < 400
