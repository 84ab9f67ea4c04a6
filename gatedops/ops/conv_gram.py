"""The Gram of a program of the conv_gram family: wrapper and fake kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatedops.ops.checks import require_precision


def conv_gram(
    x: Tensor,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    program: Sequence[int],
    scalars: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Runs a program of :mod:`gatedops.ops.conv_program` on all pairs of inputs (docs/math.md, section 13).

    Args:
        x: ``(n, D)`` of `dtype`, the real numbers that the program's INPUTs read.
        words: int32 ``(n, W)``, the masks in the layout of GateBits.
        y, y_words: ``(m, D)`` and ``(m, W)`` of the other side; give both or neither. Without them each unordered pair
            is computed once, and the result is bitwise symmetric.
        program, scalars: the instructions and their numbers; the last register has one pixel.
        dtype: float32 or float64, for the arithmetic and the result.

    Returns:
        ``(n, m)``. On the CPU every number is summed in one order: the bits are the same on every instruction set and
        for any number of threads, and no memory beside the result grows with n or m. On other devices the bits are the
        same on every run, and the workspace is 256 MiB, or more if one pair of inputs needs more.

    Raises:
        ValueError: raised before any work; the message names the argument or the instruction.
    """
    require_precision(dtype, x.device, "dtype")
    return torch.ops.gatedops.conv_gram(x, words, y, y_words, list(program), list(scalars), dtype)


@torch.library.register_fake("gatedops::conv_gram")
def _(
    x: Tensor,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    program: list[int],
    scalars: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[0] if y is None else y.shape[0]))


def _no_derivative(ctx: Any, grad: Tensor) -> Any:
    raise RuntimeError("conv_gram is not differentiable; gatedops.reference.conv_gram is, in plain torch")


torch.library.register_autograd("gatedops::conv_gram", _no_derivative)
