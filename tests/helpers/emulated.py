"""Runs CUDA kernels on the CPU: g++ compiles the kernels' own source against tests/cuda/emulation/."""

from __future__ import annotations

import ctypes as c
import subprocess
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-O1", "-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += [
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    "-DGATEDOPS_EMULATED",
    "-U_FORTIFY_SOURCE",  # It takes a jump to another stack for a mistake.
    f"-I{ROOT / 'csrc'}",
    f"-I{ROOT / 'tests' / 'cuda' / 'emulation'}",
]
MAX_LAYERS = 128
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.int32: 3}


def compiled(source: str, folder: Path) -> c.CDLL:
    """Compiles tests/cuda/emulation/<source> to a library."""
    library = folder / f"{source}.so"
    command = ["g++", *FLAGS, str(ROOT / "tests" / "cuda" / "emulation" / source), "-o", str(library)]
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
        ("differ", c.c_bool),
        *((name, c.c_void_p) for name in ("factor", "y_factor", "x_on", "y_on")),
    )


class _LayerTable(c.Structure):
    _fields_ = (("count", c.c_int32), ("sigma", c.c_int32), ("layer", _Layer * (MAX_LAYERS + 1)))


class _GramCall(c.Structure):
    _fields_ = (
        *((name, _GateRows) for name in ("x", "y", "sigma_x", "sigma_y", "sigma_x_rest", "sigma_y_rest")),
        ("symmetric", c.c_int32),
        ("type", c.c_int32),
        ("blocks", c.c_int32),
        ("seed", c.c_uint32),
        ("out", _GramOutput),
        ("v", c.c_void_p),
        ("columns", c.c_int64),
        ("bytes", c.c_int64),
        ("values", c.c_void_p),
        ("indices", c.c_void_p),
        ("k", c.c_int32),
        ("not_itself", c.c_bool),
        ("layers", _LayerTable),
    )


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _rows(words: Tensor) -> _GateRows:
    return _GateRows(words.data_ptr(), words.shape[0], words.stride(0))


def padded_bytes(x: Tensor) -> Tensor:
    """Returns uint8 (n, d) as words (n, W), padded with zeros to 16 bytes."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 16))
    return padded.contiguous().view(torch.int32)


def tf32(x: Tensor) -> Tensor:
    """Rounds float32 to 11 significant bits, ties to even."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11).float()


def split_floats(x: Tensor) -> Tensor:
    """Returns float32 (n, d) as (2, n, W), rounded to TF32, and the remainder rounded to TF32, padded to 16 bytes."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 4))
    high = tf32(padded)
    return torch.stack([high, tf32(padded - high)])


def run_gram(
    kernel, words: Tensor, y_words: Tensor | None, first: list[int], y_first: list[int], count: list[int],
    scale: list[float], out: Tensor, *, times: bool = False, factor: Tensor | None = None,
    y_factor: Tensor | None = None, gates: list[int] | None = None, on: tuple[Tensor, Tensor] | None = None,
    sigma: tuple[Tensor, Tensor | None] | None = None, v: Tensor | None = None, workspace: int = 1 << 27,
    indices: Tensor | None = None, differ: bool = False, blocks: int = 3, seed: int = 0,
) -> None:  # fmt: skip
    """Runs one of the emulated Gram kernels; the other arguments are those of the ops. `gates` and `on` are for counts
    of gates that agree or, if `differ`, of gates that differ. `sigma` has x and y of bytes. With `v`, out is the Gram
    times v, with partial products in `workspace` bytes. With `indices`, the largest values of each row go to out."""
    right = words if y_words is None else y_words
    call = _GramCall(
        x=_rows(words), y=_rows(right),
        symmetric=y_words is None, type=TYPES[out.dtype], blocks=blocks, seed=seed,
        out=_GramOutput(
            out.data_ptr(), out.stride(-2), out.stride(0) if out.dim() == 3 else 0, times, differ, _address(factor),
            _address(factor if y_factor is None else y_factor), *map(_address, on or (None, None)),
        ),
        v=_address(v), columns=0 if v is None else v.shape[1], bytes=workspace,
        values=None if indices is None else out.data_ptr(), indices=_address(indices),
        k=0 if indices is None else out.shape[1], not_itself=y_words is None,
    )  # fmt: skip
    call.layers.count = len(count)
    for i, layer in enumerate(zip(first, y_first, count, gates or [0] * len(count), scale, strict=True)):
        call.layers.layer[i] = _Layer(*layer)
    if sigma is not None:
        of_bytes = sigma[0].dtype == torch.uint8
        sides = [padded_bytes(t)[None] if of_bytes else split_floats(t) for t in sigma if t is not None]
        for name, side in zip(("x", "y"), (sides[0], sides[-1]), strict=True):
            setattr(call, f"sigma_{name}", _rows(side[0]))
            setattr(call, f"sigma_{name}_rest", _rows(side[-1]))
        call.layers.sigma = 1 if of_bytes else 2
        call.layers.layer[len(count)] = _Layer(0, 0, sides[0].shape[2], 0, 1.0)
    kernel.restype = c.c_char_p
    error = kernel(c.byref(call))
    assert error is None, error.decode()
