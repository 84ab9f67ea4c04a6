"""Cases of the ops of Grams. Lambda has the same bits in every backend (docs/math.md, section 3), and so has a Gram
whose inputs are bytes or whole numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops.portable.gram import MEASURES
from gatedops.selftest.case import Arguments, Case, Make, Timing
from gatedops.selftest.cases.inputs import (
    FLOAT32,
    FLOAT64,
    Draw,
    Layers,
    Layout,
    call,
    drawn,
    drawn_rows,
    every_other,
    expanded,
    framed,
    name_of,
    plain,
    transposed,
    unaligned,
)


@dataclass(frozen=True)
class Size:
    """The rows of both sides (m is None for the symmetric problem), the gates of each layer, and the share that is
    on."""

    n: int
    m: int | None
    widths: tuple[int, ...]
    share: float = 0.6

    def __str__(self) -> str:
        rows = f"{self.n} x {self.m}" if self.m is not None else f"{self.n} symmetric"
        return f"{rows}, layers {', '.join(map(str, self.widths))}{', all on' if self.share == 1 else ''}"

    @property
    def scale(self) -> list[float]:
        return [1 / width for width in self.widths]

    def sides(self, draw: Draw) -> tuple[Layers, Layers | None]:
        """Draws the gates of both sides, whose rows have different layouts."""
        left = draw.layers(self.n, self.widths, share=self.share)
        return left, None if self.m is None else draw.layers(self.m, self.widths, skip=8, share=self.share)


SMALL = Size(37, None, (1, 31, 33, 64, 200))
RECTANGLE = Size(37, 129, (33, 1000, 2100))
TILES = Size(260, 131, (33, 64))
SQUARE = Size(260, None, (33, 1000))
ONE = Size(1, None, (33,))
NO_ROWS = Size(0, 5, (33, 64))
NO_COLUMNS = Size(5, 0, (33, 64))
# Half precision would round these counts.
ALL_ON = Size(20, None, (5001, 8195), 1.0)
# Lambda of these without a scale is small enough for exact sums.
FEW = Size(131, 70, (33, 20))
FEW_SYMMETRIC = Size(131, None, (33, 20))


def cases() -> list[Case]:
    return [
        *_overlap_cases(),
        *_neighbor_cases(),
        *_diagonal_cases(),
        *_gram_cases(),
        *_filled_cases(),
        *_matvec_cases(),
        *_backward_cases(),
        *_sloped_cases(),
    ]


def timings() -> list[Timing]:
    made = []
    for label, rows, count_rows, layers in (
        ("small", 2048, 2048, (512, 512, 512)),
        ("large", 16384, 8192, (1024, 1024, 1024, 1024)),
    ):
        told, counted = (f"{n} rows, {len(layers)} layers of {layers[0]}" for n in (rows, count_rows))
        for op, told_of, make in (
            ("npk_gram", told, drawn_rows(_timed_gram, rows, layers)),
            ("npk_matvec", f"{told}, 10 columns", drawn_rows(_timed_matvec, rows, layers)),
            ("gate_overlap", counted, drawn_rows(_timed_overlap, count_rows, layers)),
            ("gate_neighbors", f"{counted}, 10 of each", drawn_rows(_timed_neighbors, count_rows, layers)),
        ):
            made.append(Timing(f"{op} of {told_of}", op, label, make, frozenset({0} if op == "npk_matvec" else ())))
    return made


def _timed_gram(draw: Draw, rows: int, layers: tuple[int, ...]) -> Arguments:
    return _gram_arguments(draw, Size(rows, None, layers))


def _timed_matvec(draw: Draw, rows: int, layers: tuple[int, ...]) -> Arguments:
    return _matvec_arguments(draw, Size(rows, None, layers), None, 10, whole=False)


def _timed_overlap(draw: Draw, rows: int, layers: tuple[int, ...]) -> Arguments:
    return _overlap_arguments(draw, Size(rows, None, layers), "both")


def _timed_neighbors(draw: Draw, rows: int, layers: tuple[int, ...]) -> Arguments:
    return _neighbor_arguments(draw, Size(rows, None, layers), 10, FLOAT32)


# --- counts, neighbours, the diagonal -------------------------------------------------------------------------------


def _overlap_cases() -> list[Case]:
    made = []
    for size in (SMALL, RECTANGLE, TILES, SQUARE, ONE, NO_ROWS, ALL_ON):
        for measure in MEASURES if size.n > 1 and size is not TILES else ("agree",):
            make = drawn(_overlap_arguments, size, measure)
            made.append(Case(f"gate_overlap of {size}, {measure}", "gate_overlap", make))
    return made


def _overlap_arguments(draw: Draw, size: Size, measure: str) -> Arguments:
    words, y_words, layout = _words(*size.sides(draw))
    return call(words, y_words, *layout, list(size.widths), measure)


def _neighbor_cases() -> list[Case]:
    made = []
    for size, k, dtype in (
        (Size(37, None, (3, 2)), 5, FLOAT32),  # With few gates, most candidates tie.
        (Size(150, 260, (3, 2)), 40, FLOAT32),
        (TILES, 1, FLOAT32),
        (SQUARE, 10, FLOAT64),
        (Size(131, None, (33,)), 130, FLOAT32),  # These are all candidates.
        (Size(5, 300, (1,)), 300, FLOAT64),
        (Size(0, 40, (33,)), 7, FLOAT32),
    ):
        make = drawn(_neighbor_arguments, size, k, dtype)
        made.append(Case(f"gate_neighbors of {size}, {k} of {name_of(dtype)}", "gate_neighbors", make))
    return made


def _neighbor_arguments(draw: Draw, size: Size, k: int, dtype: torch.dtype) -> Arguments:
    words, y_words, layout = _words(*size.sides(draw))
    return call(words, y_words, *layout, size.scale, k, dtype)


def _diagonal_cases() -> list[Case]:
    made = []
    sizes = (SMALL, Size(260, None, (33, 1000, 2100)), ALL_ON)
    for size, dtype in (*((size, FLOAT32) for size in sizes), (SMALL, FLOAT64)):
        make = drawn(_diagonal_arguments, size, dtype)
        made.append(Case(f"npk_diag of {size}, {name_of(dtype)}", "npk_diag", make))
    return made


def _diagonal_arguments(draw: Draw, size: Size, dtype: torch.dtype) -> Arguments:
    words, first, count = draw.layers(size.n, size.widths, skip=8, share=size.share)
    return call(words, first, count, size.scale, dtype)


# --- Grams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """The inputs x: the kind of numbers ("bytes", "whole" or "normal"), and how many columns, of a dtype and a
    layout."""

    kind: str
    columns: int
    dtype: torch.dtype = FLOAT32
    layout: Layout = plain

    def __str__(self) -> str:
        layout = "" if self.layout is plain else f" {self.layout.__name__}"
        return f"{self.columns} {self.kind} {name_of(self.dtype)}{layout}"

    def rows(self, draw: Draw, n: int, *, nan: bool = False) -> Tensor:
        """Draws the rows. If `nan`, the last number of the last row is NaN if the numbers are whole."""
        if self.kind == "bytes":
            return self.layout(draw.bytes(n, self.columns))
        made = (draw.whole if self.kind == "whole" else draw.normal)(n, self.columns, dtype=self.dtype)
        if nan and self.kind == "whole" and n > 1:
            made[-1, -1] = math.nan
        return self.layout(made)


BYTES = Inputs("bytes", 784, torch.uint8)


def _gram_cases() -> list[Case]:
    return [
        *(_gram_case(size, None, dtype) for size in (SMALL, RECTANGLE) for dtype in (FLOAT32, FLOAT64)),
        *(_gram_case(size, None) for size in (SQUARE, ONE, NO_ROWS, ALL_ON)),
        _gram_case(SQUARE, BYTES),
        _gram_case(RECTANGLE, BYTES, FLOAT64),
        _gram_case(TILES, Inputs("bytes", 33, torch.uint8, every_other)),
        _gram_case(TILES, Inputs("whole", 100)),
        _gram_case(SQUARE, Inputs("whole", 300)),
        _gram_case(RECTANGLE, Inputs("whole", 10, layout=transposed)),
        _gram_case(SMALL, Inputs("whole", 33, layout=unaligned)),
        _gram_case(TILES, Inputs("whole", 100, FLOAT64), FLOAT64),
        _gram_case(TILES, Inputs("whole", 100, torch.bfloat16)),
        _gram_case(TILES, None, factors=True),
        _gram_case(SQUARE, BYTES, factors=True),
        _gram_case(RECTANGLE, Inputs("whole", 100), factors=True),
        _gram_case(TILES, Inputs("normal", 300)),
        _gram_case(SQUARE, Inputs("normal", 20)),
        _gram_case(TILES, Inputs("normal", 300, FLOAT64), FLOAT64),
    ]


def _filled_cases() -> list[Case]:
    return [
        _gram_case(SQUARE, None, filled=True),
        _gram_case(TILES, Inputs("whole", 100, FLOAT64), FLOAT64, filled=True),
        _gram_case(RECTANGLE, Inputs("whole", 100, layout=every_other), factors=True, filled=True),
        _gram_case(NO_COLUMNS, None, filled=True),
        _gram_case(TILES, Inputs("normal", 70), filled=True),
    ]


def _gram_case(
    size: Size, x: Inputs | None, dtype: torch.dtype = FLOAT32, *, factors: bool = False, filled: bool = False
) -> Case:
    op = "npk_gram_out" if filled else "npk_gram"
    name = f"{op} of {x or 'no'} inputs, {size}, {name_of(dtype)}{', factors' if factors else ''}"
    close = frozenset({0}) if x is not None and x.kind == "normal" else frozenset[int]()
    return Case(name, op, drawn(_gram_arguments, size, x, dtype, factors, filled), close)


def _gram_arguments(
    draw: Draw,
    size: Size,
    x: Inputs | None = None,
    dtype: torch.dtype = FLOAT32,
    factors: bool = False,
    filled: bool = False,
) -> Arguments:
    words, y_words, layout = _words(*size.sides(draw))
    left, right = _rows(draw, size, x)
    factor = every_other(draw.uniform(size.n, dtype=FLOAT64)) if factors else None
    y_factor = every_other(draw.uniform(size.m, dtype=FLOAT64)) if factors and size.m is not None else None
    args = (left, words, right, y_words, factor, y_factor, *layout, size.scale)
    if filled:
        return call(*args, out=framed(size.n, size.n if size.m is None else size.m, dtype))
    return call(*args, dtype)


def _words(left: Layers, right: Layers | None) -> tuple[Tensor, Tensor | None, tuple[list[int], list[int], list[int]]]:
    """Returns the words of both sides, and first, y_first and count."""
    if right is None:
        return left.words, None, (left.first, left.first, left.sizes)
    return left.words, right.words, (left.first, right.first, left.sizes)


def _rows(draw: Draw, size: Size, x: Inputs | None, *, nan: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """Draws x, with a NaN or without, and y."""
    if x is None:
        return None, None
    return x.rows(draw, size.n, nan=nan), None if size.m is None else x.rows(draw, size.m)


# --- Grams that are used and not kept: sums over rows, exact for whole numbers --------------------------------------


def _matvec_cases() -> list[Case]:
    few, other_few = (Inputs("whole", 2, layout=layout) for layout in (plain, transposed))
    return [
        _matvec_case(FEW, None, 1),
        _matvec_case(FEW_SYMMETRIC, None, 5),
        _matvec_case(FEW, other_few, 5, layout=transposed),
        _matvec_case(FEW_SYMMETRIC, few, 1),
        _matvec_case(FEW, Inputs("whole", 2, FLOAT64), 5, FLOAT64),
        _matvec_case(NO_ROWS, None, 5),
        _matvec_case(NO_COLUMNS, few, 1),
        _matvec_case(RECTANGLE, BYTES, 5, whole=False),
        _matvec_case(SQUARE, Inputs("normal", 100), 1, whole=False),
        _matvec_case(RECTANGLE, Inputs("normal", 20, FLOAT64), 5, FLOAT64, whole=False),
    ]


def _matvec_case(
    size: Size,
    x: Inputs | None,
    columns: int,
    dtype: torch.dtype = FLOAT32,
    *,
    layout: Layout = plain,
    whole: bool = True,
) -> Case:
    name = f"npk_matvec of {x or 'no'} inputs, {size}, {columns} columns of {name_of(dtype)}, {layout.__name__}"
    make = drawn(_matvec_arguments, size, x, columns, dtype, layout=layout, whole=whole)
    return Case(name, "npk_matvec", make, frozenset() if whole else frozenset({0}))


def _matvec_arguments(
    draw: Draw,
    size: Size,
    x: Inputs | None,
    columns: int,
    dtype: torch.dtype = FLOAT32,
    *,
    layout: Layout = plain,
    whole: bool,
) -> Arguments:
    """Draws a product with vectors, which have this layout."""
    words, y_words, layers = _words(*size.sides(draw))
    # In a symmetric problem a NaN would be in every sum.
    left, right = _rows(draw, size, x, nan=size.m is not None)
    v = layout(_vectors(draw, size.n if size.m is None else size.m, columns, dtype, whole))
    return call(left, words, right, y_words, v, *layers, _scale(size, whole))


def _vectors(draw: Draw, rows: int, columns: int, dtype: torch.dtype, whole: bool) -> Tensor:
    return draw.small(rows, columns, dtype=dtype) if whole else draw.normal(rows, columns, dtype=dtype)


def _scale(size: Size, whole: bool) -> list[float]:
    return [1.0] * len(size.widths) if whole else size.scale


def _backward_cases() -> list[Case]:
    return [
        _backward_case(FEW, FLOAT32),
        _backward_case(FEW_SYMMETRIC, FLOAT32),
        _backward_case(FEW_SYMMETRIC, FLOAT64, layout=transposed),
        _backward_case(FEW, FLOAT32, y_dtype=torch.bfloat16, layout=every_other),
        _backward_case(FEW, FLOAT32, layout=expanded),
        _backward_case(ONE, FLOAT32),
        _backward_case(NO_ROWS, FLOAT32),
        _backward_case(SQUARE, FLOAT32, whole=False),
        _backward_case(RECTANGLE, FLOAT64, whole=False),
    ]


def _backward_case(
    size: Size, dtype: torch.dtype, *, y_dtype: torch.dtype | None = None, layout: Layout = plain, whole: bool = True
) -> Case:
    def build(draw: Draw) -> Arguments:
        words, y_words, layers = _words(*size.sides(draw))
        m = size.n if size.m is None else size.m
        grad = _vectors(draw, size.n, m, dtype, whole)
        if whole and size.n > 1:
            grad[-1, -1] = math.nan
        y = _vectors(draw, m, 20, y_dtype or dtype, whole)
        return call(layout(grad), words, y if layout is plain else transposed(y), y_words, *layers, _scale(size, whole))

    name = f"npk_gram_backward of {size}, {name_of(dtype)}, y {name_of(y_dtype or dtype)}, grad {layout.__name__}"
    return Case(name, "npk_gram_backward", drawn(build), frozenset() if whole else frozenset({0}))


# --- activations with two slopes ------------------------------------------------------------------------------------


def _sloped_cases() -> list[Case]:
    """Calls with slopes, which a kernel may refuse. In the second layer the slope is 0."""
    small, tiles = replace(SMALL, widths=(31, 33, 200)), replace(TILES, widths=(33, 64, 20))
    return [
        _sloped_case("npk_gram", drawn(_gram_arguments, small), small),
        _sloped_case("npk_gram", drawn(_gram_arguments, tiles, BYTES, FLOAT64, factors=True), tiles),
        _sloped_case("npk_gram_out", drawn(_gram_arguments, tiles, filled=True), tiles),
        _sloped_case("npk_diag", drawn(_diagonal_arguments, small, FLOAT32), small),
        _sloped_case("npk_matvec", drawn(_matvec_arguments, tiles, None, 5, whole=False), tiles, frozenset({0})),
        _sloped_case("npk_gram_backward", drawn(_backward_arguments, small), small, frozenset({0})),
        _sloped_case("gate_neighbors", drawn(_neighbor_arguments, tiles, 10, FLOAT32), tiles),
    ]


def _sloped_case(op: str, make: Make, size: Size, close: frozenset[int] = frozenset()) -> Case:
    def sloped(device: torch.device, seed: int = 0) -> Arguments:
        args, outs = make(device, seed)
        return [*args, [0.01, 0.0, -1.5], list(size.widths)], outs

    return Case(f"{op} of {size} with slopes", op, sloped, close, may_refuse=True)


def _backward_arguments(draw: Draw, size: Size) -> Arguments:
    words, y_words, layers = _words(*size.sides(draw))
    m = size.n if size.m is None else size.m
    grad, y = draw.normal(size.n, m, dtype=FLOAT32), draw.normal(m, 20, dtype=FLOAT32)
    return call(grad, words, y, y_words, *layers, size.scale)
