"""Masked boxes, resamplings, masks of their own for y, and negative padding agree with loops over pairs of pixels, and
have the same bits on every instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv_pixels import PixelLoops
from conv_programs import Pair, Programs, same, window
from gram_problems import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, generator, seeds
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor

from gatedops import _C, backends
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op, encode

FEW = examples(20)


class Made(Programs):
    """Appends the instructions that are tested here."""

    def masked_box(
        self, src: int, channels: int, geometry: dict[str, int], out: Pair | None = None, **more: Any
    ) -> int:
        out = self.size(src) if out is None else out
        positions = out[0] * out[1] * geometry["kernel_h"] * geometry["kernel_w"]
        return self.emit(Op.MASKED_BOX, out, src, **geometry, **self.masked(positions, channels), **more)

    def resample(self, src: int, out: Pair, weights: list[float], **more: Any) -> int:
        (height, width), count = self.size(src), len(weights)
        assert count == out[0] * height + out[1] * width
        first, *_ = [self.number(weight) for weight in weights]
        return self.emit(Op.RESAMPLE, out, src, scale2=first, **more)

    def masks_of_y(self, register: int, positions: int) -> int:
        """Gives the rows of y masks of their own."""
        code = self.code[register]
        fields = self.masked(positions, code.channels)
        self.code[register] = code._replace(first_y=fields["first"])
        return register

    def whole_arguments(self, n: int, m: int | None, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple:
        """Returns arguments with whole numbers 0 to 3 as pixels."""
        x, words, y, *rest = self.arguments(n, m, seed, dtype)
        return ((4 * x).floor(), words, None if y is None else (4 * y).floor(), *rest)


def weights_of(count: int, seed: int, values: tuple[float, ...] = (0.0, 0.0, 1.0, -1.0)) -> list[float]:
    return [values[k] for k in torch.randint(len(values), (count,), generator=generator(seed)).tolist()]


def looped(
    x: Tensor, words: Tensor, y: Tensor | None, y_words: Tensor | None, program: list[int], *rest: Any
) -> Tensor:
    """Returns the Gram from loops over pairs of pixels. Without y, the lower half counts, as in conv_gram."""
    gram = PixelLoops(x, words, y, y_words, rest[0]).run(program)
    return gram if y is not None else gram.tril() + gram.tril(-1).T


def assert_is_exact(*arguments: Any) -> None:
    """Compares every instruction set, in float32 and float64, on arguments that make sums of whole numbers or halves
    below 2**23."""
    x, words, y, *rest, _ = arguments
    truth = looped(*arguments)
    assert truth.abs().max() < 2**23
    for dtype in FLOATS:
        given = (x.to(dtype), words, None if y is None else y.to(dtype), *rest, dtype)
        for isa in backends.available_isas():
            with backends.force_cpu(isa):
                assert_same_bits(conv_gram(*given), truth.to(dtype))


def masked_chain(size: Pair, channels: int, circular: int = 0) -> Made:
    p = Made()
    register = p.masked_box(p.input(size, 2), channels, same((3, 3)) | {"circular": circular})
    p.trace(p.masked_box(register, 5, same((3, 1)), scale=0.5))
    return p


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 33, 65, 2100])
@pytest.mark.parametrize("circular", [0, 1])
def test_masked_boxes_are_sums_over_offsets(channels, circular):
    for size, m in [((1, 1), None), ((3, 4), 3), ((4, 2), 17)]:
        x, words, y, y_words, program, scalars, dtype = masked_chain(size, channels, circular).whole_arguments(2, m)
        words = words if channels < 100 else words & 0x1111  # The sums stay exact in float32.
        assert_is_exact(x, words, y, y_words, program, scalars, dtype)


@FEW
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(-3, 4), st.integers(-3, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([0, 1]),
    st.sampled_from([Op.MASKED_BOX, Op.BOX, Op.SELECT, Op.POOL]),
    seeds,
)
def test_a_window_of_any_geometry(size, kernel, stride, before, dilation, out, circular, op, seed):
    p = Made()
    geometry, register = window(kernel, stride, before, dilation), p.input(size)
    if op == Op.MASKED_BOX:
        register = p.masked_box(register, 3, geometry | {"circular": circular}, out)
    elif op == Op.BOX:
        register = p.box(register, 3, geometry | {"circular": circular}, out)
    else:
        masks = p.masked(out[0] * out[1] * kernel[0] * kernel[1], 3) if op == Op.SELECT else {}
        register = p.emit(op, out, register, **geometry, **masks)
    p.emit(Op.POOL, (1, 1), register, **window(out))
    assert_is_exact(*p.whole_arguments(2, 3, seed % 1000))


@FEW
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.sampled_from([None, 3]),
    seeds,
)
def test_a_resampling_of_any_size(size, out, m, seed):
    p = Made()
    register = p.box(p.input(size), 2, same((3, 3)) | {"circular": seed % 2})
    weights = weights_of(out[0] * size[0] + out[1] * size[1], seed)
    p.trace(p.box(p.resample(register, out, weights), 1, same((3, 3))))
    assert_is_exact(*p.whole_arguments(2, m, seed % 1000))


@pytest.mark.parametrize("op", ["box", "gate", "select", "masked_box"])
def test_masks_of_y_may_begin_elsewhere(op):
    p = Made()
    register = p.input((3, 4))
    if op == "select":
        register = p.emit(Op.SELECT, (2, 3), register, **window((2, 2)), **p.masked(6 * 4, 33))
    else:
        register = p.gate(register, 33) if op == "gate" else getattr(p, op)(register, 33, same((3, 3)))
    height, width = p.size(register)
    p.masks_of_y(register, height * width * {"select": 4, "masked_box": 9}.get(op, 1))
    p.emit(Op.POOL, (1, 1), register, **window((height, width)))
    arguments = p.whole_arguments(3, 18)
    assert_is_exact(*arguments)
    x, words, y, y_words, _, scalars, dtype = arguments
    swapped = encode([i._replace(first=i.first_y, first_y=i.first) if i.first_y >= 0 else i for i in p.code])
    assert_same_bits(conv_gram(y, y_words, x, words, swapped, scalars, dtype), conv_gram(*arguments).T)
    assert not torch.equal(conv_gram(x, words, y, y_words, swapped, scalars, dtype), conv_gram(*arguments))


# --- programs with all of them --------------------------------------------------------------------------------------


def branches(size: Pair, circular: int) -> Made:
    """Makes two branches that meet behind a resampling: one of masked boxes, one that is cut and enlarged."""
    p = Made()
    start = p.box(p.input(size, 3), 40, same((3, 3)) | {"circular": circular})
    left = p.masked_box(start, 70, same((3, 3)) | {"circular": circular}, scale=0.25)
    left = p.masks_of_y(left, size[0] * size[1] * 9)
    cut = (size[0] - 1, size[1] - 2)
    right = p.box(start, 0, window((1, 1), pad=(-1, -2)), cut, scale=0.5)
    weights = weights_of(size[0] * cut[0] + size[1] * cut[1], 3, (0.0, 0.3, 0.7))
    right = p.box(p.resample(right, size, weights), 33, same((3, 3)))
    p.trace(p.gate(p.emit(Op.ADD, size, left, src2=right, scale2=p.number(0.3)), 31))
    return p


def strided(size: Pair, circular: int) -> Made:
    """Makes strided and dilated masked boxes, one larger than its image, in front of a resampling."""
    p = Made()
    half = (-(-size[0] // 2), -(-size[1] // 2))
    register = p.masked_box(p.input(size, 2), 33, window((3, 3), (2, 2), (1, 1)) | {"circular": circular}, half)
    register = p.masked_box(register, 200, window((3, 5), (1, 1), (2, 4), (2, 2)), scale=0.1)
    weights = weights_of(4 * half[0] + 3 * half[1], 5, (0.0, 0.25, 0.75))
    register = p.masked_box(p.resample(register, (4, 3), weights), 64, window((9, 9), pad=(4, 4)), scale=0.1)
    p.mean(p.box(register, 20, window((3, 3), pad=(-1, 1)), (2, 3)))
    return p


MADE: list[Callable[[Pair, int], Made]] = [branches, strided]


@pytest.mark.parametrize("circular", [0, 1])
@pytest.mark.parametrize("make", MADE)
def test_branches_are_the_loops_over_pixels(make, circular):
    for m in (None, 3):
        arguments = make((4, 4), circular).arguments(2, m)
        assert_close_in_float64(conv_gram(*arguments), looped(*arguments))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("make", MADE)
def test_the_bits_do_not_depend_on_the_instruction_set(make, dtype):
    for size, circular, (n, m) in itertools.product([(5, 3), (4, 6)], [0, 1], [(19, None), (9, 18)]):
        arguments = make(size, circular).arguments(n, m, dtype=dtype)
        expected = conv_gram(*arguments)
        for isa in backends.available_isas()[:-1]:
            with backends.force_cpu(isa):
                assert_same_bits(conv_gram(*arguments), expected)
        # A row has the same bits alone, whatever rows are beside it.
        x, words, y, y_words, *rest = arguments
        alone = conv_gram(x[8:9], words[8:9], x[:9] if y is None else y, words[:9] if y is None else y_words, *rest)
        assert_same_bits(alone, expected[8:9, :9] if y is None else expected[8:9])


# --- errors ---------------------------------------------------------------------------------------------------------

WRONG = {
    "words of y past the end": (1, {"first_y": 100}, "instruction 1 reads words outside the rows"),
    "words of y before the start": (1, {"first_y": -2}, "instruction 1 reads words outside the rows"),
    "masks of offsets past the end": (1, {"channels": 65}, "instruction 1 reads words outside the rows"),
    "more channels than a number holds": (1, {"channels": 2**63 - 1}, "instruction 1 reads words outside the rows"),
    "no masks": (1, {"first": -1}, "instruction 1 reads words outside the rows"),
    "a large masked box": (1, {"kernel_w": 65}, "instruction 1 has kernel 65, needs 1 to 64"),
    "circular": (1, {"circular": 2}, "instruction 1 has circular 2, needs 0 to 1"),
    "much padding": (1, {"pad_left": -1025}, "instruction 1 has padding -1025, needs -1024 to 1024"),
    "no weights": (2, {"scale2": -1}, "instruction 2 needs 10 weights in scalars"),
    "weights past the end": (2, {"scale2": 5}, "instruction 2 needs 10 weights in scalars"),
    "weights far past the end": (2, {"scale2": 2**63 - 1}, "instruction 2 needs 10 weights in scalars"),
    "another size": (2, {"height": 3}, "instruction 2 reads a register of another size"),
}


@pytest.mark.parametrize("case", WRONG)
def test_programs_that_would_read_elsewhere_are_named(case):
    index, fields, message = WRONG[case]
    p = Made()
    register = p.masked_box(p.input((2, 3)), 33, same((3, 3)))
    p.trace(p.resample(register, (2, 2), [1.0] * 10))
    x, words, *_ = p.arguments(1)
    _C.require_conv_program(encode(p.code), p.scalars, x.shape[1], words.shape[1])
    p.code[index] = p.code[index]._replace(**fields)
    with pytest.raises(ValueError, match=message):
        _C.require_conv_program(encode(p.code), p.scalars, x.shape[1], words.shape[1])
