"""Cases of gated layers and their backwards, and of gates on activations of any shape (docs/math.md, section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatedops.portable.gates import words_of
from gatedops.selftest.case import Arguments, Case, Timing
from gatedops.selftest.cases.gates import Shape, pre_activations
from gatedops.selftest.cases.inputs import (
    FLOAT32,
    FLOAT64,
    HALVES,
    LAYER_DTYPES,
    Draw,
    Layout,
    call,
    drawn,
    drawn_rows,
    every_other,
    expanded,
    name_of,
    packed,
    plain,
    sliced,
    transposed,
    unaligned,
)


@dataclass(frozen=True)
class Layer:
    """The sizes of a layer (leading dimensions, inner length, number of gates), its dtype, and the layout of x and
    weight.

    `kind` says what the numbers are:
        "whole": whole numbers, which give the same bits in any order of summation;
        "sparse": whole numbers of which most are 0, for sums of thousands of terms;
        "any": any floats;
        "clear": any floats, but x is positive, and each row of the weight has one sign, so that no gate depends on how
        a sum is rounded.
    """

    leading: tuple[int, ...]
    inner: int
    width: int
    dtype: torch.dtype = FLOAT32
    layout: Layout = plain
    bias: bool = True
    kind: str = "whole"

    def __str__(self) -> str:
        layout = "" if self.layout is plain else f", {self.layout.__name__}"
        bias = "" if self.bias else ", no bias"
        rows = ", ".join(map(str, self.leading))
        return f"({rows}) x {self.inner} -> {self.width}, {self.kind} {name_of(self.dtype)}{layout}{bias}"

    @property
    def whole(self) -> bool:
        return self.kind in ("whole", "sparse")

    @property
    def rows(self) -> int:
        return math.prod(self.leading)

    def numbers(self, draw: Draw, *shape: int, large: bool = True) -> Tensor:
        """Draws numbers of this kind. If `large`, whole numbers have many bits."""
        if not self.whole:
            return draw.normal(*shape, dtype=self.dtype)
        if self.kind == "sparse":
            return draw.sparse(*shape, dtype=self.dtype)
        return draw.whole(*shape, dtype=self.dtype) if large else draw.small(*shape, dtype=self.dtype)

    def parameters(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Draws weight and bias. The first two columns of the weight cancel, unless the kind is "clear"."""
        weight = self.numbers(draw, self.width, self.inner)
        if self.kind == "clear":
            weight = weight.abs() * draw.small(self.width, 1, dtype=FLOAT64).sign().to(self.dtype)
        elif self.inner > 1:
            weight[:, 1] = -weight[:, 0]
        bias = draw.integers(-2, 2, self.width, dtype=self.dtype) if self.whole else self.numbers(draw, self.width)
        bias = bias if self.layout is plain else every_other(bias)
        return self.layout(weight), bias if self.bias else None

    def inputs(self, draw: Draw, *, nonfinite: bool = False) -> Tensor:
        """Draws x. Unless the kind is "clear", the first of several rows gives the bias alone, so that pre-activations
        are exactly 0 where the bias is. If `nonfinite`, the last rows hold an infinity and a NaN."""
        x = self.numbers(draw, self.rows, self.inner)
        if self.kind == "clear":
            x = x.abs()
        elif self.rows > 2 and self.inner > 1:
            x[0] = 0
            x[0, :2] = 1
            if nonfinite:
                x[-2, 0], x[-1, -1] = math.inf, math.nan
        return self.layout(x.view(*self.leading, self.inner))

    def gates(self, draw: Draw, share: float = 0.5) -> Tensor:
        """Draws the gates of all rows. If there are corners, the last gate of the last row and the first gate of the
        row before it are on."""
        gates = draw.gates(self.rows, self.width, share=share)
        if self.has_corners:
            gates[-2, 0] = gates[-1, -1] = True
        return gates

    @property
    def has_corners(self) -> bool:
        """Whether two infinite or NaN numbers can be put into the last two rows and still leave finite results."""
        return self.rows > 2 and self.width > 2

    def cotangent(
        self, draw: Draw, gates: Tensor | None = None, *, large: bool = True, nan: bool = True, inf: bool = False
    ) -> Tensor:
        """Draws the gradient of the layer's output, which is infinite or NaN at some places where gates are off. If the
        numbers are whole, it is also NaN (`nan`) and infinite (`inf`) at the gates that are always on."""
        grad = self.numbers(draw, self.rows, self.width, large=large)
        if gates is not None:
            bad = ~gates & draw.gates(self.rows, self.width, share=0.1)
            grad[bad] = math.nan
            grad[bad & draw.gates(self.rows, self.width)] = math.inf
        if self.kind == "whole" and self.has_corners:
            grad[-2, 0] = math.inf if inf else grad[-2, 0]
            grad[-1, -1] = math.nan if nan else grad[-1, -1]
        return self.layout(grad.view(*self.leading, self.width))


ODD = Layer((129,), 75, 33)
WIDE = Layer((37,), 64, 200)
FORWARD = (
    ODD,
    WIDE,
    Layer((3, 5), 31, 31, layout=every_other),
    Layer((37,), 48, 64, layout=transposed),
    Layer((5,), 100, 33, FLOAT64),
    *(Layer((129,), 64, 200, dtype) for dtype in HALVES),
    *(Layer((3, 7), 33, 65, dtype, unaligned, False) for dtype in HALVES),
    Layer((1,), 2, 1),
    Layer((0,), 20, 33),
)
ANY = tuple(Layer((70,), 320, 65, dtype, kind="any") for dtype in LAYER_DTYPES)
# These are so long that sums in half precision are off by more than their last rounding.
LONG = tuple(Layer((40,), 2048, 33, dtype, kind="any") for dtype in HALVES)
LONG_AND_CLEAR = tuple(replace(layer, kind="clear") for layer in LONG)
# The same for backwards, which sum over rows and over gates.
LONG_BACKWARD = tuple(
    Layer((rows,), 24, width, dtype, kind="any") for dtype in HALVES for rows, width in ((2500, 40), (40, 2500))
)
# The gradient of a bias is only a few sums of single numbers, whose largest error says little. Whole numbers test it.
SUMS_OF_PRODUCTS = "xw"


def cases() -> list[Case]:
    return [
        *(_hard_case(layer) for layer in (*FORWARD, *ANY, *LONG)),
        *(_relu_case(layer) for layer in (*FORWARD, *LONG_AND_CLEAR)),
        *_soft_cases(),
        *_backward_cases(),
        *_soft_backward_cases(),
        *_activation_cases(),
    ]


def timings() -> list[Timing]:
    made = []
    for size, rows, width in (("small", 512, 256), ("large", 8192, 2048)):
        for dtype in (FLOAT32, torch.bfloat16):
            for op, build in (
                ("gated_linear", _hard),
                ("gated_linear_relu", _relu),
                ("gated_linear_backward", _backward),
            ):
                make = drawn_rows(_timed, rows, build, width, dtype)
                made.append(Timing(f"{op} of {rows} x {width} -> {width}, {name_of(dtype)}", op, size, make))
    return made


def _timed(
    draw: Draw, rows: int, build: Callable[[Draw, Layer], Arguments], width: int, dtype: torch.dtype
) -> Arguments:
    return build(draw, Layer((rows,), width, width, dtype, kind="sparse"))


# --- forward --------------------------------------------------------------------------------------------------------


def close_unless_whole(layer: Layer, *results: int) -> frozenset[int]:
    return frozenset() if layer.whole else frozenset(results)


def _hard_case(layer: Layer) -> Case:
    make = drawn(_hard, layer)
    return Case(f"gated_linear of {layer}", "gated_linear", make, close_unless_whole(layer, 0))


def _hard(draw: Draw, layer: Layer) -> Arguments:
    words, first, _ = packed(draw, [layer.gates(draw), layer.gates(draw)])
    weight, bias = layer.parameters(draw)
    return call(layer.inputs(draw, nonfinite=layer.whole), weight, bias, words, first[1])


def _relu_case(layer: Layer) -> Case:
    close = close_unless_whole(layer, 0)
    return Case(f"gated_linear_relu of {layer}", "gated_linear_relu", drawn(_relu, layer), close)


def _relu(draw: Draw, layer: Layer) -> Arguments:
    weight, bias = layer.parameters(draw)
    return call(layer.inputs(draw, nonfinite=layer.whole), weight, bias)


def _soft_cases() -> list[Case]:
    layers = (ODD, Layer((3, 5), 31, 31, layout=transposed), Layer((0,), 20, 33), *ANY, *LONG)
    return [
        Case(f"gated_linear_soft of {layer}", "gated_linear_soft", drawn(_soft, layer), close_unless_whole(layer, 0, 1))
        for layer in layers
    ]


def _soft(draw: Draw, layer: Layer) -> Arguments:
    weight, bias = layer.parameters(draw)
    x = layer.inputs(draw, nonfinite=layer.whole)
    gate = draw.small(layer.rows, layer.width, dtype=layer.dtype) if layer.whole else _sigmoid(draw, layer)
    return call(x, weight, bias, layer.layout(gate.view(*layer.leading, layer.width)))


def _sigmoid(draw: Draw, layer: Layer) -> Tensor:
    return torch.sigmoid(draw.normal(layer.rows, layer.width, dtype=layer.dtype))


# --- backward -------------------------------------------------------------------------------------------------------


def _backward_cases() -> list[Case]:
    many = Layer((2500,), 16, 40)  # A kernel may sum these rows in parts.
    made = [
        *(_backward_case(layer) for layer in FORWARD),
        _backward_case(ODD, asked="xb"),
        _backward_case(WIDE, asked="w"),
        _backward_case(Layer((37,), 64, 200, torch.bfloat16), asked="b"),
        _backward_case(WIDE, gated=False),
        _backward_case(WIDE, large_grad=True),
        _backward_case(many),
        _backward_case(Layer((2500,), 16, 40, torch.bfloat16), share=0.05),
        _backward_case(replace(ODD, layout=expanded)),
        *(_backward_case(layer) for layer in LONG_BACKWARD),
    ]
    return [*made, *(_backward_case(layer, asked=SUMS_OF_PRODUCTS) for layer in ANY)]


def _backward_case(
    layer: Layer, *, asked: str = "xwb", gated: bool = True, large_grad: bool = False, share: float = 0.5
) -> Case:
    gates = "" if gated else ", no gates"
    name = f"gated_linear_backward of {layer}{gates}, asked for {', '.join(asked)}{', large' if large_grad else ''}"
    make = drawn(_backward, layer, asked, gated, large_grad, share)
    return Case(name, "gated_linear_backward", make, close_unless_whole(layer, 0, 1, 2))


def _backward(
    draw: Draw, layer: Layer, asked: str = "xwb", gated: bool = True, large_grad: bool = False, share: float = 0.5
) -> Arguments:
    """Draws a backward. `asked` names the gradients by "x", "w" and "b". If `large_grad`, the gradient has many bits
    instead of x and weight."""
    gates = layer.gates(draw, share)
    words, first, _ = packed(draw, [layer.gates(draw), gates])
    grad = layer.cotangent(draw, gates if gated else None, large=large_grad, inf=True)
    x, weight = backward_inputs(draw, layer, large=not large_grad)
    return call(
        grad, x if "w" in asked else None, weight if "x" in asked else None, words if gated else None,
        first[1] if gated else 0, "b" in asked,
    )  # fmt: skip


def backward_inputs(draw: Draw, layer: Layer, *, large: bool = True) -> tuple[Tensor, Tensor]:
    """Draws x and weight of a backward, whose sums run over rows and gates."""
    x = layer.numbers(draw, layer.rows, layer.inner, large=large).view(*layer.leading, layer.inner)
    weight = layer.numbers(draw, layer.width, layer.inner, large=large)
    return (x, weight) if layer.layout is expanded else (layer.layout(x), layer.layout(weight))


def _soft_backward_cases() -> list[Case]:
    small = Layer((129,), 31, 64)
    made = [
        _soft_backward_case(small),
        _soft_backward_case(replace(small, layout=sliced), asked="xg"),
        _soft_backward_case(Layer((3, 5), 31, 33, layout=transposed)),
        _soft_backward_case(small, asked="wb"),
        _soft_backward_case(replace(small, layout=expanded)),
        *(_soft_backward_case(layer) for layer in LONG_BACKWARD),
        _soft_backward_case(Layer((0,), 20, 33)),
    ]
    return [*made, *(_soft_backward_case(layer, asked=SUMS_OF_PRODUCTS + "g") for layer in ANY)]


def _soft_backward_case(layer: Layer, *, asked: str = "xwbg") -> Case:
    held = plain if layer.layout is expanded else layer.layout

    def build(draw: Draw) -> Arguments:
        grad = layer.cotangent(draw, large=False, inf=True)
        x, weight = backward_inputs(draw, layer, large=False)
        gate, product = (replace(layer, layout=held).cotangent(draw, large=False, nan=False) for _ in range(2))
        if not layer.whole:
            gate = gate.sigmoid()
        return call(
            grad, x if "w" in asked else None, weight if "x" in asked else None, gate,
            product if "g" in asked else None, "b" in asked,
        )  # fmt: skip

    name = f"gated_linear_soft_backward of {layer}, asked for {', '.join(asked)}"
    return Case(name, "gated_linear_soft_backward", drawn(build), close_unless_whole(layer, 0, 1, 2, 3))


# --- activations of any shape ---------------------------------------------------------------------------------------


def _activation_cases() -> list[Case]:
    shapes: tuple[tuple[Shape, torch.dtype, Layout], ...] = (
        ((37, 1, 1), FLOAT32, plain),
        ((5, 1, 31), FLOAT64, plain),
        ((3, 4, 33), FLOAT32, sliced),
        ((129, 1, 200), torch.bfloat16, plain),
        ((3, 49, 64), FLOAT32, plain),
        ((3, 35, 48), torch.float16, transposed),
        ((0, 1, 33), FLOAT32, plain),
    )
    made = []
    for shape, dtype, layout in shapes:
        told = f"{' x '.join(map(str, shape))} {name_of(dtype)}, {layout.__name__}"
        relu, select = (drawn(build, shape, dtype, layout) for build in (_activations, _select))
        made += [
            Case(f"gate_relu of {told}", "gate_relu", relu),
            Case(f"gate_select of {told}", "gate_select", select),
        ]
    return made


def _activations(draw: Draw, shape: Shape, dtype: torch.dtype, layout: Layout) -> Arguments:
    return call(layout(pre_activations(draw, shape, dtype, signed_zeros=False)))


def _select(draw: Draw, shape: Shape, dtype: torch.dtype, layout: Layout) -> Arguments:
    q = pre_activations(draw, shape, dtype)
    before = packed(draw, [draw.gates(shape[0], 40)]).words
    words = torch.cat([before, words_of(draw.gates(*shape)), before], 1)
    return call(layout(q), words[:, : words.shape[1] - before.shape[1]], before.shape[1])
