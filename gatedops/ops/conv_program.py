"""Programs of the conv_gram family, which compute a kernel between the pixels of two inputs.

A program works on registers. A register holds, for one pair of inputs, a kernel R(p, p') between their pixels. Each
instruction writes one register. docs/math.md, section 13, gives the meaning of every instruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import chain
from typing import NamedTuple


class Op(IntEnum):
    """The kinds of instructions."""

    INPUT = 0  # s <x(p), x'(p')>
    BOX = 1  # (s sum_u R(f(p, u), f(p', u)) + constant) <g(p), g'(p')>: the same offset u on both sides
    GATE = 2  # s R(p, p') <g(p), g'(p')>
    SELECT = 3  # s sum_{u, v} R(f(p, u), f(p', v)) <m_u(p), m'_v(p')>
    POOL = 4  # s w(p) w(p') sum_{u, v} R(f(p, u), f(p', v))
    ADD = 5  # s R(p, p') + s2 R2(p, p') + constant
    CONSTANT = 6  # s if the rows and columns that the pattern names agree, else 0
    TRACE = 7  # s sum_p R(p, p)
    MASKED_BOX = 8  # s sum_u R(f(p, u), f(p', u)) <m_u(p), m'_u(p')>: the same offset u on both sides
    RESAMPLE = 9  # s sum_{q, q'} A(p, q) A(p', q') R(q, q')


# These are the bits of Instruction.pattern.
SAME_ROW, SAME_COLUMN = 1, 2


class Instruction(NamedTuple):
    """One instruction; -1 means "none" in src, src2, scale2, constant and the `first` of a BOX.

    f(p, u) is the input pixel at the offset u = (i, j) in the window of the output pixel p = (r, q). It is
    ``(r * stride_h + i * dilation_h - pad_top, q * stride_w + j * dilation_w - pad_left)``. Outside the image nothing
    is added; with `circular` the pixel wraps around. pad_top and pad_left may be negative.

    SELECT and MASKED_BOX have a mask m_u(p) for each output pixel and each offset, at position
    ``(r * out_width + q) * kernel_h * kernel_w + i * kernel_w + j``.
    """

    op: int
    # The register that is written. Registers are numbered in the order in which they are written.
    dst: int
    src: int = -1
    src2: int = -1
    # These are indices into the scalars of the program. scale gives s. scale2 gives s2 of an ADD, or the first of the
    # weights w(p) of a POOL, which has one for each output pixel, or of the weights of a RESAMPLE. For RESAMPLE,
    # A((r, q), (r', q')) is rows[r, r'] * columns[q, q']; the out_height * height numbers of `rows` come first, row by
    # row, then the out_width * width numbers of `columns`. constant gives a number that every entry gets added.
    scale: int = 0
    scale2: int = -1
    constant: int = -1
    # An INPUT begins at this column of x, masks at this word.
    first: int = -1
    # The input, or the masks, have this many channels.
    channels: int = 0
    # The images of src have this size.
    height: int = 1
    width: int = 1
    # The images of dst have this size.
    out_height: int = 1
    out_width: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    circular: int = 0
    # A CONSTANT combines SAME_ROW and SAME_COLUMN here.
    pattern: int = 0
    # The masks of the rows of y begin at this word; -1: at `first`, as those of the rows of x.
    first_y: int = -1


FIELDS = len(Instruction._fields)


def encode(instructions: Iterable[Instruction]) -> list[int]:
    """Returns the program in the form that the op takes: FIELDS numbers per instruction."""
    return list(chain.from_iterable(instructions))


def decode(program: Sequence[int]) -> list[Instruction]:
    """Returns the instructions of a program; the inverse of :func:`encode`."""
    return [Instruction(*program[i : i + FIELDS]) for i in range(0, len(program), FIELDS)]
