"""Computes conv_gram by torch operations, tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops import _C
from gatedops.portable.checks import require, require_float, require_one_device, require_rows, require_words
from gatedops.portable.conv_plan import CPU_REGISTERS, REGISTERS, edges_of, plan
from gatedops.portable.conv_steps import Pairs, Side
from gatedops.portable.products import has_int8
from gatedops.portable.tiles import tiles, write


def conv_gram(
    x: Tensor,
    words: Tensor,
    y: Tensor | None,
    y_words: Tensor | None,
    program: list[int],
    scalars: list[float],
    dtype: torch.dtype,
) -> Tensor:
    """Runs a program on all pairs of inputs, and returns ``(n, m)`` of dtype. The arguments are those of the op."""
    require_float(dtype, "dtype")
    require((y is None) == (y_words is None), "y: needs y_words, and y_words needs y")
    left = _side(x, words, dtype, "x", "words")
    right = left if y is None or y_words is None else _side(y, y_words, dtype, "y", "y_words")
    require(right.x.shape[1] == x.shape[1], "y: needs as many columns as x")
    require(right.words.shape[1] == words.shape[1], "y_words: needs as many words in a row as words")
    require_one_device(x, words, y, y_words)
    _C.require_conv_program(program, scalars, x.shape[1], words.shape[1])
    steps, symmetric, int8 = plan(program, scalars), y is None, has_int8(x.device)
    registers = CPU_REGISTERS if x.device.type == "cpu" else REGISTERS
    out = x.new_empty((left.rows, right.rows))
    shape = (left.rows, right.rows)
    for rows, columns in tiles(shape, edges_of(steps, shape, symmetric, dtype.itemsize, registers), symmetric):
        a, b = Side(left.x[rows], left.words[rows]), Side(right.x[columns], right.words[columns])
        write(Pairs(a, b, scalars, int8).run(steps), out, rows, columns, symmetric)
    return out


def _side(x: Tensor, words: Tensor, dtype: torch.dtype, name: str, words_name: str) -> Side:
    require_words(words, words_name)
    require_rows(x, words.shape[0], name, "D")
    require(x.dtype == dtype, lambda: f"{name}: needs the given dtype")
    return Side(x, words)
