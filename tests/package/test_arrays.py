"""Functions that take tensors also take numpy arrays."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from gatedops.arrays import as_tensor

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_a_tensor_is_returned_as_it_is():
    x = torch.rand(3)
    assert as_tensor(x, "x") is x


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "uint8", "bool", "int64", "int32"])
def test_an_array_shares_its_memory(dtype):
    array = ARRAY.astype(dtype)
    found = as_tensor(array, "x")
    assert found.data_ptr() == array.ctypes.data
    assert str(found.dtype) == f"torch.{dtype}"
    assert found.tolist() == array.tolist()


def test_a_read_only_array_is_shared_without_a_warning():
    array = ARRAY.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_tensor(array, "x").data_ptr() == array.ctypes.data


def test_a_mapped_file_is_shared(tmp_path):
    np.save(tmp_path / "x.npy", ARRAY)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_tensor(array, "x").data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    "array",
    [
        ARRAY[::-1],
        ARRAY[:, ::-1],
        ARRAY.T,
        ARRAY[::2, 1:],
        np.broadcast_to(ARRAY[:1], (5, 4)),
        ARRAY.astype(">f4"),
        np.asfortranarray(ARRAY),
        np.zeros((0, 4), np.float32),
        np.zeros(3, [("a", "u1"), ("b", "<f4")])["b"],
    ],
    ids=[
        "reversed rows",
        "reversed columns",
        "transposed",
        "sliced",
        "broadcast",
        "big-endian",
        "Fortran",
        "empty",
        "packed",
    ],
)
def test_arrays_of_every_layout_keep_their_values(array):
    found = as_tensor(array, "x")
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "x: got list, needs a tensor or a numpy array"),
        (None, "x: got NoneType, needs a tensor"),
        (1.5, "x: got float"),
        (np.float32(1.5), "x: got float32"),
        (np.array(["a", "b"]), "x: got a numpy array of <U1, .*convert it"),
        (np.array([None, 1]), "x: got a numpy array of object"),
        (np.array(["2026-11-28"], "datetime64[D]"), "x: got a numpy array of datetime64"),
        (torch.eye(2).to_sparse(), r"x: got a tensor of torch.sparse_coo, .*x\.to_dense\(\)"),
        (np.ma.masked_less(ARRAY, 3), r"x: got a masked array, .*\.filled\(\)"),
    ],
    ids=str,
)
def test_what_is_no_array_is_named(value, message):
    with pytest.raises(TypeError, match=message):
        as_tensor(value, "x")
