"""Tests which CUDA kernel of the gram family is launched, by the choice's own source with a GPU that is only
described."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc: install the CUDA toolkit")
ROOT = Path(__file__).resolve().parents[2]
FLOAT32, FLOAT64, BFLOAT16, INT32 = range(4)
OPS = ("npk_gram", "gate_neighbors", "workspace of npk_matvec", "npk_matvec")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("choice") / "choice.so"
    source = ROOT / "tests" / "cuda" / "emulation" / "gram_choice.cpp"
    command = ["nvcc", "-std=c++17", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC", f"-I{ROOT / 'csrc'}"]
    command += ["-Xlinker", "-Bsymbolic"]  # It uses its own stand-ins, although torch may have loaded the CUDA runtime.
    done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(target))
    library.chosen.restype = library.gatedops_last_gram_kernel.restype = ctypes.c_char_p
    return library


def chosen(library, forced, major=9, rows=100, layers=3, dtype=FLOAT32, op=0):
    """Returns the kernel that is chosen. C sees the environment that monkeypatch changes through os.environ."""
    os.environ.pop("GATEDOPS_CUDA", None)
    if forced is not None:
        os.environ["GATEDOPS_CUDA"] = forced
    return library.chosen(major, ctypes.c_int64(rows), layers, dtype, op).decode()


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GATEDOPS_CUDA", "")  # It is restored afterwards.
    monkeypatch.setenv("GATEDOPS_BACKEND", "cuda")


@pytest.mark.parametrize("op", range(4), ids=OPS)
@pytest.mark.parametrize(
    ("forced", "kernel"), [(None, "sm90"), ("", "sm90"), ("sm90", "sm90"), ("sm90x1", "sm90x1"), ("sm80", "sm80")]
)
def test_a_forced_kernel_is_the_one_that_is_launched(library, forced, kernel, op):
    assert chosen(library, forced, op=op) == kernel


@pytest.mark.parametrize("backend", [None, "", "triton"])
def test_only_beside_the_backend_is_a_kernel_forced(library, backend, monkeypatch):
    monkeypatch.delenv("GATEDOPS_BACKEND")
    if backend is not None:
        monkeypatch.setenv("GATEDOPS_BACKEND", backend)
    assert chosen(library, "sm80") == "sm90"


@pytest.mark.parametrize("forced", [None, "sm90x1"])
def test_what_wgmma_does_not_take_goes_to_the_other_kernel(library, forced):
    wgmma = "sm90" if forced is None else forced
    assert [chosen(library, forced, major=major) for major in (8, 9, 10, 12)] == ["sm80", wgmma, "sm80", "sm80"]
    types = (FLOAT32, FLOAT64, BFLOAT16, INT32)
    assert [chosen(library, forced, dtype=dtype) for dtype in types] == [wgmma, "sm80", wgmma, wgmma]
    assert [chosen(library, forced, layers=layers) for layers in (64, 65)] == [wgmma, "sm80"]
    most = 2**31 - 1 - 256
    assert [chosen(library, forced, rows=rows) for rows in (most, most + 1)] == [wgmma, "sm80"]


def test_no_kernel_is_noted_before_a_launch(library):
    assert library.gatedops_last_gram_kernel() is None
