"""CUDA kernels on the CPU: the kernel's own source, compiled by g++ against tests/emulation/."""

from __future__ import annotations

import ctypes as c
import subprocess
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += [
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    "-DGATEDOPS_EMULATED",
    f"-I{ROOT / 'csrc'}",
    f"-I{ROOT / 'tests' / 'emulation'}",
]
MAX_LAYERS = 128
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.int32: 3}


def compiled(source: str, folder: Path) -> c.CDLL:
    """tests/emulation/<source> as a library."""
    library = folder / f"{source}.so"
    command = ["g++", *FLAGS, str(ROOT / "tests" / "emulation" / source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return c.CDLL(str(library))


class _GateRows(c.Structure):
    _fields_ = (("words", c.c_void_p), ("rows", c.c_int64), ("stride", c.c_int64))


class _Layer(c.Structure):
    _fields_ = (*((name, c.c_int32) for name in ("x_first", "y_first", "words", "gates")), ("scale", c.c_double))


class _GramOutput(c.Structure):
    _fields_ = (
        ("data", c.c_void_p),
        ("row_stride", c.c_int64),
        ("plane_stride", c.c_int64),
        ("times", c.c_bool),
        *((name, c.c_void_p) for name in ("factor", "y_factor", "x_on", "y_on")),
    )


class _LayerTable(c.Structure):
    _fields_ = (("count", c.c_int32), ("layer", _Layer * MAX_LAYERS))


class _GramCall(c.Structure):
    _fields_ = (
        ("x", _GateRows),
        ("y", _GateRows),
        ("symmetric", c.c_int32),
        ("type", c.c_int32),
        ("blocks", c.c_int32),
        ("seed", c.c_uint32),
        ("out", _GramOutput),
        ("layers", _LayerTable),
    )


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def run_gram(
    kernel, words: Tensor, y_words: Tensor | None, first: list[int], y_first: list[int], count: list[int],
    scale: list[float], out: Tensor, *, times: bool = False, factor: Tensor | None = None,
    y_factor: Tensor | None = None, gates: list[int] | None = None, on: tuple[Tensor, Tensor] | None = None,
    blocks: int = 3, seed: int = 0,
) -> None:  # fmt: skip
    """Runs one of the emulated Gram kernels; arguments as of the ops. gates and on: for counts that agree."""
    right = words if y_words is None else y_words
    call = _GramCall(
        x=_GateRows(words.data_ptr(), words.shape[0], words.stride(0)),
        y=_GateRows(right.data_ptr(), right.shape[0], right.stride(0)),
        symmetric=y_words is None, type=TYPES[out.dtype], blocks=blocks, seed=seed,
        out=_GramOutput(
            out.data_ptr(), out.stride(-2), out[0].numel() if out.dim() == 3 else 0, times, _address(factor),
            _address(factor if y_factor is None else y_factor), *map(_address, on or (None, None)),
        ),
    )  # fmt: skip
    call.layers.count = len(count)
    for i, layer in enumerate(zip(first, y_first, count, gates or [0] * len(count), scale, strict=True)):
        call.layers.layer[i] = _Layer(*layer)
    kernel.restype = c.c_char_p
    error = kernel(c.byref(call))
    assert error is None, error.decode()
