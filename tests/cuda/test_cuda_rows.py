"""Tests how the ops for NVIDIA GPUs hand rows to their kernels, whose copies step from row to row by at least a row.
The same source runs on CPU tensors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: apt install g++")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Loads torch.ops of tests/cuda/emulation/whole_rows.cpp."""
    library = tmp_path_factory.mktemp("rows") / "whole_rows.so"
    folder = Path(torch.__file__).parent / "lib"
    command = ["g++", "-std=c++17", "-O0", "-shared", "-fPIC", "-DTORCH_TARGET_VERSION=0x020A000000000000"]
    command += [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
    command += [str(ROOT / "tests" / "cuda" / "emulation" / "whole_rows.cpp"), "-o", str(library)]
    command += [f"-L{folder}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.ops.load_library(str(library))
    return torch.ops.gatedops_whole_rows


WORDS = torch.arange(5 * 24, dtype=torch.int32).view(5, 24)
BYTES = torch.arange(5 * 48, dtype=torch.uint8).view(5, 48)


@pytest.mark.parametrize(
    ("t", "kept"),
    [
        (WORDS, True),
        (WORDS[:, :8], True),
        (WORDS[::2, 8:16], True),
        (WORDS[:1], True),
        (WORDS[:1].as_strided((1, 24), (0, 1)), True),  # This is a single row, whose stride does not matter.
        (WORDS[:0], True),
        (WORDS[:1].expand(7, 24), False),
        (WORDS.view(-1).as_strided((9, 24), (8, 1)), False),  # These are windows, a third of a row apart.
    ],
)
def test_gates_are_copied_where_rows_overlap(rows, t, kept):
    found, same = rows.whole_rows(t)
    assert same == kept
    assert torch.equal(found, t)


def test_both_sides_of_a_problem_lie_in_whole_rows(rows):
    """Every op makes its problem from WholeArgs, and cannot make it from anything else."""
    given = WORDS[:1].expand(7, 24), WORDS.view(-1).as_strided((9, 24), (8, 1))
    for found, expected in zip(rows.whole_args(*given), given, strict=True):
        assert found.is_contiguous()
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        (BYTES, True),
        (BYTES[::2], True),
        (BYTES[:, :16], True),
        (BYTES[:1], True),
        (BYTES[:, :20], False),  # It needs zeros behind its columns.
        (BYTES[:, 1:17], False),  # It begins at an odd place.
        (BYTES[:1].expand(7, 48), False),
        (BYTES.view(-1).as_strided((9, 32), (16, 1)), False),
        (BYTES.T, False),
    ],
)
def test_bytes_are_copied_where_rows_overlap_or_are_not_whole(rows, x, kept):
    found, same = rows.padded_bytes(x)
    assert same == kept
    assert torch.equal(found[:, : x.shape[1]], x)
    assert not found[:, x.shape[1] :].any()
    assert found.shape[1] % 16 == 0
