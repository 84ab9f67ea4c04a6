"""Cases of one layer of both networks of a DGN, and of its backwards (docs/math.md, section 8). The features are whole
numbers, so that no gate depends on how a sum is rounded. Results of soft gates are rounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops.layout import layer_words
from gatedops.selftest.case import Arguments, Case, Timing
from gatedops.selftest.cases import gated_linear
from gatedops.selftest.cases.gated_linear import Layer, backward_inputs, close_unless_whole
from gatedops.selftest.cases.inputs import (
    FLOAT32,
    FLOAT64,
    HALVES,
    LAYER_DTYPES,
    Draw,
    Layout,
    call,
    contiguous_frame,
    drawn,
    drawn_rows,
    expanded,
    framed,
    name_of,
    packed,
    plain,
    sliced,
    transposed,
    unaligned,
)

GAIN = 0.5


@dataclass(frozen=True)
class Pair:
    """A feature layer of whole numbers, and the value layer beside it."""

    feature: Layer
    value: Layer
    linear: bool = False

    def __str__(self) -> str:
        return f"features {self.feature}{', linear' if self.linear else ''}, values {self.value}"

    @property
    def beta(self) -> float:
        """The slope of soft gates: small enough that the gates of large whole numbers are not all 0 or 1."""
        return 2.0**-10 if self.feature.dtype in (FLOAT32, FLOAT64) else 0.25

    def arguments(self, draw: Draw, *, nonfinite: bool = False) -> list[Tensor | None]:
        """Draws h, w_f, b_f, z, w_v and b_v. If `nonfinite`, both inputs hold infinities and NaN."""
        w_f, b_f = self.feature.parameters(draw)
        w_v, b_v = self.value.parameters(draw)
        h, z = (layer.inputs(draw, nonfinite=nonfinite) for layer in (self.feature, self.value))
        return [h, w_f, b_f, z, w_v, b_v]


def _pair(
    leading: tuple[int, ...],
    inner: tuple[int, int],
    width: int,
    dtype: torch.dtype = FLOAT32,
    layout: Layout = plain,
    *,
    biases: tuple[bool, bool] = (True, True),
    linear: bool = False,
) -> Pair:
    feature, value = (
        Layer(leading, length, width, dtype, layout, bias) for length, bias in zip(inner, biases, strict=True)
    )
    return Pair(feature, value, linear)


ODD = _pair((129,), (75, 40), 33)
WIDE = _pair((37,), (64, 128), 200, linear=True)
WHOLE = (
    ODD,
    WIDE,
    _pair((3, 5), (31, 64), 31, layout=transposed),
    _pair((5,), (100, 33), 33, FLOAT64, linear=True),
    *(_pair((129,), (64, 48), 200, dtype) for dtype in HALVES),
    _pair((3, 7), (33, 20), 65, torch.bfloat16, unaligned, biases=(False, False), linear=True),
    _pair((3, 7), (33, 20), 65, torch.float16, unaligned, biases=(True, False), linear=True),
    _pair((1,), (2, 2), 1),
    _pair((0,), (20, 8), 33),
)
# The features are whole numbers, and the values any floats.
ANY = tuple(
    Pair(Layer((70,), 40, 65, dtype), Layer((70,), 320, 65, dtype, kind="any"), linear)
    for dtype, linear in zip(LAYER_DTYPES, (False, True, True, False), strict=True)
)


# These sums are so long that intermediate rounding shows.
LONG = tuple(
    Pair(Layer((40,), 2048, 33, dtype, kind="clear"), Layer((40,), 2048, 33, dtype, kind="any")) for dtype in HALVES
)
LONG_BACKWARD = tuple(Pair(layer, layer) for layer in gated_linear.LONG_BACKWARD)
NO_BIAS = replace(ANY[0], value=replace(ANY[0].value, bias=False))


def cases() -> list[Case]:
    return [
        *(_hard_case(pair) for pair in (*WHOLE, *ANY, *LONG)),
        *(_soft_case(pair) for pair in (ODD, WIDE, WHOLE[2], *WHOLE[6:8], *ANY, *LONG, NO_BIAS)),
        *(_filled_case(pair, soft=False) for pair in (ODD, WHOLE[2], WHOLE[6], ANY[2], *LONG)),
        *(_filled_case(pair, soft=True) for pair in (ODD, WHOLE[2], NO_BIAS, *ANY[:3])),
        *_backward_cases(),
        *_soft_backward_cases(),
    ]


def timings() -> list[Timing]:
    made = []
    for size, rows, width in (("small", 512, 256), ("large", 8192, 2048)):
        for dtype in (FLOAT32, torch.bfloat16):
            for op, build, kind, close in (
                ("gated_linear_pair", _hard, "sparse", ()),
                ("gated_linear_pair_soft", _soft, "sparse", (1,)),
                ("gated_linear_pair_backward", _backward, "sparse", ()),
                ("gated_linear_pair_soft_backward", _soft_backward, "any", range(6)),
            ):
                make = drawn_rows(_timed, rows, build, width, dtype, kind)
                name = f"{op} of {rows} x {width} -> {width}, {name_of(dtype)}"
                made.append(Timing(name, op, size, make, frozenset(close)))
    return made


def _timed(
    draw: Draw, rows: int, build: Callable[[Draw, Pair], Arguments], width: int, dtype: torch.dtype, kind: str
) -> Arguments:
    layer = Layer((rows,), width, width, dtype, kind=kind)
    return build(draw, Pair(layer, layer))


# --- forward --------------------------------------------------------------------------------------------------------


def _hard_case(pair: Pair) -> Case:
    return Case(f"gated_linear_pair of {pair}", "gated_linear_pair", drawn(_hard, pair), _close(pair))


def _close(pair: Pair) -> frozenset[int]:
    """Returns which of the results with hard gates are rounded."""
    return close_unless_whole(pair.feature, 0) | close_unless_whole(pair.value, 1)


def _hard(draw: Draw, pair: Pair) -> Arguments:
    return call(*pair.arguments(draw, nonfinite=pair.value.whole), pair.linear)


def _soft_case(pair: Pair) -> Case:
    close = frozenset({1}) | close_unless_whole(pair.feature, 0, 3) | close_unless_whole(pair.value, 4)
    return Case(f"gated_linear_pair_soft of {pair}", "gated_linear_pair_soft", drawn(_soft, pair), close)


def _soft(draw: Draw, pair: Pair) -> Arguments:
    return call(*pair.arguments(draw, nonfinite=pair.value.whole), pair.beta, GAIN, pair.linear)


def _filled_case(pair: Pair, *, soft: bool) -> Case:
    def build(draw: Draw) -> Arguments:
        feature = pair.feature
        shape = (*feature.leading, feature.width)
        h_next, z_next = (contiguous_frame(*shape, dtype=feature.dtype) for _ in range(2))
        gates = framed(feature.rows, layer_words(1, feature.width), torch.int32)
        return call(
            *pair.arguments(draw, nonfinite=pair.value.whole), soft, pair.beta, GAIN, pair.linear,
            h_next=h_next, z_next=z_next, gates_out=gates,
        )  # fmt: skip

    name = f"gated_linear_pair_out of {pair}, {'soft' if soft else 'hard'}"
    close = _close(pair) | frozenset({1} if soft else ())
    return Case(name, "gated_linear_pair_out", drawn(build), close)


# --- backward -------------------------------------------------------------------------------------------------------


def _backward_cases() -> list[Case]:
    return [
        *(_backward_case(pair) for pair in WHOLE),
        *(_backward_case(pair, asked="hwbzv") for pair in ANY),
        *(_backward_case(pair) for pair in LONG_BACKWARD),
        _backward_case(_laid_out(ODD, expanded)),
        _backward_case(WIDE, asked="hwb"),
        _backward_case(ODD, asked="zvc"),
        _backward_case(WIDE, asked="wz"),
    ]


def _backward_case(pair: Pair, *, asked: str = "hwbzvc") -> Case:
    make = drawn(_backward, pair, asked)
    name = f"gated_linear_pair_backward of {pair}, asked for {_told(asked)}"
    close = close_unless_whole(pair.feature, 0, 1, 2) | close_unless_whole(pair.value, 3, 4, 5)
    return Case(name, "gated_linear_pair_backward", make, close)


def _laid_out(pair: Pair, layout: Layout) -> Pair:
    feature, value = (replace(layer, layout=layout) for layer in (pair.feature, pair.value))
    return replace(pair, feature=feature, value=value)


def _backward(draw: Draw, pair: Pair, asked: str = "hwbzvc") -> Arguments:
    """Draws a backward. `asked` names the gradients of h, w_f, b_f, z, w_v and b_v by "h", "w", "b", "z", "v", "c"."""
    gates = pair.feature.gates(draw)
    words = packed(draw, [gates]).words
    grad_h = pair.feature.cotangent(draw, None if pair.linear else gates, large=False, inf=True)
    grad_z = pair.value.cotangent(draw, gates, large=False, inf=True)
    return call(grad_h, grad_z, *_asked(draw, pair, asked), words, pair.linear)


def _asked(draw: Draw, pair: Pair, asked: str) -> list[Tensor | bool | None]:
    """Returns the arguments of a backward that ask for these gradients."""
    h, w_f = backward_inputs(draw, pair.feature)
    z, w_v = backward_inputs(draw, pair.value)
    wanted = {letter: letter in asked for letter in "hwbzvc"}
    return [
        h if wanted["w"] else None, w_f if wanted["h"] else None, wanted["b"],
        z if wanted["v"] else None, w_v if wanted["z"] else None, wanted["c"],
    ]  # fmt: skip


def _soft_backward_cases() -> list[Case]:
    pairs = [
        Pair(Layer((70,), 320, 65, dtype, kind="any"), Layer((70,), 100, 65, dtype, kind="any"), linear)
        for dtype, linear in zip(LAYER_DTYPES, (False, True, False, True), strict=True)
    ]
    first = pairs[0]
    odd = Pair(replace(first.feature, leading=(13, 7), layout=transposed), replace(first.value, leading=(13, 7)))
    empty = Pair(replace(first.feature, leading=(0,)), replace(first.value, leading=(0,)))
    return [
        *(_soft_backward_case(pair) for pair in pairs),
        _soft_backward_case(odd),
        _soft_backward_case(_laid_out(first, expanded)),
        *(_soft_backward_case(pair, asked="hwbzvc") for pair in LONG_BACKWARD),
        _soft_backward_case(empty, asked="hwbzvc"),
        _soft_backward_case(_laid_out(first, sliced), asked="hw"),
        _soft_backward_case(first, asked="zv", given="zq"),
        _soft_backward_case(first, given="hqv"),
        _soft_backward_case(replace(first, linear=True), asked="wv", given="zqv"),
        *(_soft_backward_case(pair, asked="hwbzvc") for pair in (ODD, WIDE, WHOLE[2], *WHOLE[4:6])),
    ]


def _soft_backward_case(pair: Pair, *, asked: str = "hwzv", given: str = "hzqv") -> Case:
    make = drawn(_soft_backward, pair, asked, given)
    name = f"gated_linear_pair_soft_backward of {pair}, asked for {_told(asked)}, given {_told(given)}"
    return Case(name, "gated_linear_pair_soft_backward", make, close_unless_whole(pair.feature, *range(6)))


def _soft_backward(draw: Draw, pair: Pair, asked: str = "hwbzvc", given: str = "hzqv") -> Arguments:
    """Draws a backward of soft gates. `asked` is that of :func:`_backward`; `given` names those of grad_h, grad_z, q
    and v that are given by "h", "z", "q", "v". If all numbers are whole, the gates are so steep that they are exactly 0
    or 1."""
    grad_h, grad_z = (pair.feature.cotangent(draw, large=False) for _ in range(2))
    held = replace(pair.feature, layout=plain) if pair.feature.layout is expanded else pair.feature
    q, v = (held.cotangent(draw, large=False, nan=False) for _ in range(2))
    present = [t if letter in given else None for t, letter in zip((grad_h, grad_z, q, v), "hzqv", strict=True)]
    beta = 2000.0 if pair.feature.whole else 2.0
    return call(*present, *_asked(draw, pair, asked), beta, GAIN, pair.linear)


def _told(letters: str) -> str:
    return ", ".join(letters)
