"""Runs conv_gram's CUDA kernels on the CPU: g++ compiles their own source and plan against tests/cuda/emulation/."""

from __future__ import annotations

import ctypes as c

import torch
from torch import Tensor


class _ConvCall(c.Structure):
    _fields_ = (
        *((name, c.c_void_p) for name in ("x", "y", "words", "y_words")),
        *((name, c.c_int64) for name in ("n", "m", "columns", "words_in_row", "words_stride")),
        ("program", c.c_void_p),
        ("program_size", c.c_int64),
        ("scalars", c.c_void_p),
        ("scalars_size", c.c_int64),
        ("out", c.c_void_p),
        ("pairs_per_batch", c.c_int64),
        *((name, c.c_int32) for name in ("symmetric", "is_double")),
        ("seed", c.c_uint32),
        ("stretches", c.c_int32),
    )


def run_conv_gram(
    kernel, x: Tensor, words: Tensor, y: Tensor | None, y_words: Tensor | None, program: list[int],
    scalars: list[float], dtype: torch.dtype, *, pairs_per_batch: int = 7, seed: int = 0,
) -> tuple[Tensor, int]:  # fmt: skip
    """Runs the op on contiguous rows, and returns how many stretches of the program stayed in registers too."""
    right, right_words = (x, words) if y is None else (y, y_words)
    out = torch.full((len(x), len(right)), float("nan"), dtype=dtype)
    code = torch.tensor(program, dtype=torch.int64)
    numbers = torch.tensor([*scalars], dtype=torch.float64)
    call = _ConvCall(
        *(t.data_ptr() for t in (x, right, words, right_words)), len(x), len(right), x.shape[1], words.shape[1],
        words.stride(0), code.data_ptr(), len(program), numbers.data_ptr(), len(scalars), out.data_ptr(),
        pairs_per_batch, y is None, dtype == torch.float64, seed, 0,
    )  # fmt: skip
    kernel.restype = c.c_char_p
    error = kernel(c.byref(call))
    if error is not None:
        raise RuntimeError(error.decode())
    return out, call.stretches
