"""Cases of the ops that pack gates into words, unpack and count them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gatedops.layout import layer_words
from gatedops.portable.gates import words_of
from gatedops.selftest.case import Arguments, Case, Make, Timing
from gatedops.selftest.cases.inputs import (
    FLOAT32,
    FLOAT64,
    HALVES,
    Draw,
    Layout,
    call,
    drawn,
    drawn_rows,
    every_other,
    framed,
    name_of,
    plain,
    transposed,
    unaligned,
)

# The rows, the positions and the channels.
Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = (
    (37, 1, 1),
    (5, 1, 31),
    (3, 4, 33),
    (6, 1, 64),
    (1, 2, 200),
    (129, 1, 200),
    (2, 1, 5000),
    (3, 49, 64),
    (0, 1, 33),
)


def cases() -> list[Case]:
    return [*_pack_cases(), *_unpack_cases(), *_count_cases()]


def timings() -> list[Timing]:
    made = []
    for size, rows, channels in (("small", 512, 512), ("large", 32768, 2048)):
        q, words = (drawn_rows(build, rows, channels) for build in (_timed_q, _timed_words))
        made.append(Timing(f"pack_gates of {rows} x {channels}, float32", "pack_gates", size, q))
        made.append(Timing(f"unpack_gates of {rows} x {channels}", "unpack_gates", size, words))
    return made


def _timed_q(draw: Draw, rows: int, channels: int) -> Arguments:
    return call(draw.normal(rows, 1, channels, dtype=FLOAT32))


def _timed_words(draw: Draw, rows: int, channels: int) -> Arguments:
    return call(words_of(draw.gates(rows, 1, channels)), 1, channels)


def _pack_cases() -> list[Case]:
    plain_ones = [(shape, FLOAT32, plain) for shape in SHAPES]
    others = [(shape, dtype, plain) for dtype in (FLOAT64, *HALVES, torch.bool) for shape in ((5, 9, 33), (4, 1, 128))]
    strided = [
        ((3, 35, 48), FLOAT32, transposed),
        ((3, 5, 33), FLOAT32, every_other),
        ((4, 1, 128), FLOAT32, unaligned),
        ((4, 1, 128), torch.bfloat16, unaligned),
        ((3, 35, 48), torch.bool, transposed),
    ]
    made = [
        Case(
            f"pack_gates of {_told(shape)} {name_of(dtype)}, {layout.__name__}", "pack_gates", _q(shape, dtype, layout)
        )
        for shape, dtype, layout in (*plain_ones, *others, *strided)
    ]
    for shape, dtype, layout in (
        ((5, 1, 200), FLOAT32, every_other),
        ((3, 4, 33), torch.bool, plain),
        ((129, 1, 64), torch.bfloat16, plain),
    ):
        name = f"pack_gates_out of {_told(shape)} {name_of(dtype)}, {layout.__name__}"
        made.append(Case(name, "pack_gates_out", _q(shape, dtype, layout, out=True)))
    return made


def _unpack_cases() -> list[Case]:
    made = []
    for shape in ((37, 1, 1), (5, 1, 31), (3, 4, 33), (1, 2, 200), (129, 1, 2100), (0, 1, 33)):
        made.append(Case(f"unpack_gates to {_told(shape)}", "unpack_gates", _words(shape)))
    return made


def _count_cases() -> list[Case]:
    return [Case(f"gate_counts of {n} rows", "gate_counts", drawn(_counted, n)) for n in (0, 1, 300)]


def _counted(draw: Draw, n: int) -> Arguments:
    return call(draw.layers(n, [33, 1000]).words)


def _q(shape: Shape, dtype: torch.dtype, layout: Layout, *, out: bool = False) -> Make:
    def build(draw: Draw) -> Arguments:
        q = draw.gates(*shape) if dtype == torch.bool else pre_activations(draw, shape, dtype)
        outputs = {"out": framed(shape[0], layer_words(*shape[1:]), torch.int32)} if out else {}
        return call(layout(q), **outputs)

    return drawn(build)


def _words(shape: Shape) -> Make:
    def build(draw: Draw) -> Arguments:
        words = words_of(draw.gates(*shape))
        others = draw.integers(-(2**31), 2**31 - 1, shape[0], 8, dtype=torch.int32)
        return call(torch.cat([others, words, others], 1)[:, 8 : 8 + words.shape[1]], *shape[1:])

    return drawn(build)


def pre_activations(draw: Draw, shape: Shape, dtype: torch.dtype, *, signed_zeros: bool = True) -> Tensor:
    """Draws pre-activations. One in four is a number that q > 0 must get right: a zero, an infinity, NaN, or a number
    next to 0. `signed_zeros` is for ops that give gates alone, because relu(-0.0) depends on the device."""
    least = torch.tensor([1], dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]).view(dtype)
    tiny = torch.finfo(dtype).tiny
    numbers = [0.0, -0.0 if signed_zeros else 0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, tiny, -tiny]
    special = torch.cat([torch.tensor(numbers, dtype=dtype), least, -least])
    chosen = special[draw.integers(0, len(special) - 1, *shape)]
    return torch.where(draw.gates(*shape, share=0.25), chosen, draw.normal(*shape, dtype=dtype))


def _told(shape: Shape) -> str:
    return " x ".join(map(str, shape))
