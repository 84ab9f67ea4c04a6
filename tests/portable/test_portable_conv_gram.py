"""conv_gram by torch operations agrees with its plain reference, in bounded memory, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conv_mistakes import ARGUMENTS, CODE, CODES, DTYPE, SCALARS, WORDS, X
from conv_programs import (
    Programs,
    RandomProgram,
    chain,
    depthwise,
    linear,
    nearest,
    pooled,
    resampled,
    residual,
    same,
    window,
)
from gram_problems import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from live_bytes import LiveBytes
from strategies import examples, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_threads import threads

from gatedops.ops.conv_program import Instruction, Op, decode
from gatedops.portable import conv_counts, conv_gram, conv_plan, conv_steps
from gatedops.portable.conv_windows import Axis
from gatedops.portable.tiles import tiles
from gatedops.portable.workspace import WORKSPACE
from gatedops.reference import conv_gram as reference_conv


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread, because the problems are too small for more."""
    with threads(1):
        yield


@pytest.fixture(params=["float32", "int8"])
def counted_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes counts use either form of products, whatever this machine prefers."""
    monkeypatch.setattr(conv_gram, "has_int8", lambda device: request.param == "int8")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes tiles of a few pairs, and cuts masks and inputs into pieces, even for small problems."""
    monkeypatch.setattr(conv_gram, "CPU_REGISTERS", 30_000)
    for module in (conv_plan, conv_counts):
        monkeypatch.setattr(module, "GATES", 8 * 32 * 9)
    for module in (conv_plan, conv_steps):
        monkeypatch.setattr(module, "INPUTS", 300)


def assert_is_the_reference(*arguments: Any) -> Tensor:
    ours, truth = conv_gram.conv_gram(*arguments), reference_conv.conv_gram(*arguments)
    if truth.numel() == 0:
        assert_same_bits(ours, truth)
    else:
        assert_close_in_float64(ours, truth)
    if arguments[2] is None:
        assert_same_bits(ours, ours.mT)
    return ours


def with_a_second_head(program: Programs, register: int) -> Programs:
    """Ends a program in the trace and the mean of a register, so that the whole register is needed."""
    trace, mean = program.trace(register), program.mean(register)
    program.emit(Op.ADD, (1, 1), trace, src2=mean, scale2=program.number(0.5))
    return program


def max_pool(size: tuple[int, int], out: tuple[int, int], geometry: dict[str, int], channels: int = 33) -> Programs:
    p = Programs()
    register = p.box(p.input(size, 2), 20, same((3, 3)))
    masks = p.masked(math.prod(out) * geometry["kernel_h"] * geometry["kernel_w"], channels)
    register = p.emit(Op.SELECT, out, register, scale=0.5, **geometry, **masks)
    return with_a_second_head(p, p.box(register, 33, same((3, 3))))


# --- values --------------------------------------------------------------------------------------------------------


@examples(50)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 3, 7]), st.none() | st.sampled_from([0, 1, 5]), st.booleans())
def test_any_program_computes_what_the_reference_does(counted_in, seed, n, m, small):
    arguments = RandomProgram(seed).program.arguments(n, m, seed % 1000)
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(conv_gram, "CPU_REGISTERS", 30_000)
        assert_is_the_reference(*arguments)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (4, 4), (3, 6)], ids=str)
@pytest.mark.parametrize("circular", [0, 1])
def test_chains_whose_registers_are_needed_as_a_whole_or_on_their_diagonal(counted_in, small_pieces, size, circular):
    for kernel, channels in zip([(3, 3), (1, 3), (5, 3), (1, 1)], [1, 33, 64, 200], strict=True):
        for head in ("mean", "trace", "both"):
            program = chain(size, 3, channels, kernel, "mean", inputs=2, circular=circular)
            if head != "mean":
                program = Programs(program.code[:-2], program.scalars, program.masks[:-1], program.columns)
                program.trace(3) if head == "trace" else with_a_second_head(program, 3)
            assert_is_the_reference(*program.arguments(4))


@pytest.mark.parametrize("head", ["mean", "trace"])
@pytest.mark.parametrize("channels", [1, 31, 33, 64, 65, 1025, 2100, 2500])
def test_any_number_of_channels(counted_in, channels, head):
    """Masks of more than 2048 channels are multiplied in several spans."""
    assert_is_the_reference(*chain((2, 3), 2, channels, head=head).arguments(3, 4))


@examples(40)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(-5, 12), st.integers(-5, 12)),
    st.tuples(st.integers(1, 3), st.integers(1, 12)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([0, 1]),
    seeds,
)
def test_a_window_of_any_geometry(size, kernel, stride, before, dilation, out, circular, seed):
    """The output has any size; pixels whose window misses the image are zero."""
    program = Programs()
    geometry = window(kernel, stride, before, dilation)
    register = program.box(program.input(size), 33, geometry | {"circular": circular}, out)
    program.emit(Op.POOL, (1, 1), register, **window(out))
    assert_is_the_reference(*program.arguments(3, 2, seed % 1000))


GEOMETRIES = {
    "side by side": ((2, 3), window((2, 2), (2, 2))),
    "the whole image": ((1, 1), window((5, 6), (1, 1))),
    "overlapping": ((3, 4), window((3, 3), (1, 1))),
    "padded": ((3, 3), window((3, 3), (2, 2), (1, 1))),
    "strides above the kernel": ((2, 2), window((1, 2), (3, 3))),
    "dilated": ((3, 4), window((2, 2), (1, 1), (0, 0), (2, 2))),
    "beyond the image": ((4, 9), window((2, 3), (2, 2), (1, 9))),
}


@pytest.mark.parametrize("case", GEOMETRIES)
def test_max_pools(counted_in, small_pieces, case):
    out, geometry = GEOMETRIES[case]
    assert_is_the_reference(*max_pool((5, 6), out, geometry).arguments(4))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("case", GEOMETRIES)
def test_average_pools(case, listed):
    out, geometry = GEOMETRIES[case]
    program = Programs()
    register = program.box(program.input((5, 6)), 20, same((3, 3)))
    weights = [program.number(weight) for weight in ([0.25, 0.25, 1 / 3] * math.prod(out))[: math.prod(out)]]
    fields = geometry | ({"scale2": weights[0]} if listed else {})
    register = program.emit(Op.POOL, out, register, 0.7, **fields)
    assert_is_the_reference(*with_a_second_head(program, register).arguments(3, 2))


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 6)], ids=str)
def test_residual_blocks_with_strided_shortcuts(counted_in, size):
    assert_is_the_reference(*residual(size).arguments(5))


@pytest.mark.parametrize("head", ["mean", "trace", "both"])
@pytest.mark.parametrize("circular", [0, 1])
def test_masked_boxes(counted_in, small_pieces, circular, head):
    """More than one row is unpacked at a time, and each mask in several pieces."""
    for kernel, stride, out, channels in [((3, 3), 1, (4, 5), 300), ((1, 2), 2, (2, 3), 33), ((4, 5), 1, (1, 1), 65)]:
        p = Programs()
        register = p.box(p.input((4, 5), 2), 20, same((3, 3)))
        geometry = window(kernel, (stride, stride), (kernel[0] // 2, 1)) | {"circular": circular}
        masks = p.masked(out[0] * out[1] * kernel[0] * kernel[1], channels, own_y=True)
        register = p.masked_box(register, masks, geometry, out, scale=0.5)
        with_a_second_head(p, register) if head == "both" else getattr(p, head)(register)
        assert_is_the_reference(*p.arguments(4, 3))


@pytest.mark.parametrize(
    "make", [lambda: chain((6, 5), 6), lambda: chain((6, 5), 6, head="trace"), lambda: residual((6, 6))]
)
def test_float32_is_as_good_as_torch(counted_in, make):
    arguments = make().arguments(20, dtype=torch.float32)
    x, words, y, y_words, program, scalars, _ = arguments
    truth = reference_conv.conv_gram(x.double(), words, y, y_words, program, scalars, torch.float64)
    assert_as_good_as_torch(conv_gram.conv_gram(*arguments), reference_conv.conv_gram(*arguments), truth)


def test_numbers_that_a_program_does_not_use_change_nothing():
    code = [Instruction(*numbers) for numbers in decode(CODE)]
    odd = {"src2": 5, "scale2": 7, "constant": 9, "kernel_h": 9, "stride_w": 5, "pad_top": 3, "dilation_h": 2}
    code[0] = code[0]._replace(src=3, height=50, circular=1, **odd)
    code[3] = code[3]._replace(circular=1, **odd)
    encoded = [number for instruction in code for number in instruction]
    expected = conv_gram.conv_gram(X, WORDS, None, None, CODE, SCALARS, DTYPE)
    assert_same_bits(conv_gram.conv_gram(X, WORDS, None, None, encoded, SCALARS, DTYPE), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_not_finite_stays_so_on_both_sides_of_the_diagonal(small_pieces, dtype):
    x, words, *rest = chain((3, 3), 2).arguments(9, dtype=dtype)
    x[2, 4], x[5, 1], x[7] = math.nan, math.inf, -0.0
    ours = conv_gram.conv_gram(x, words, *rest)
    truth = reference_conv.conv_gram(x, words, *rest)
    assert_same_bits(ours, ours.mT)
    torch.testing.assert_close(ours, truth, equal_nan=True)
    assert not truth.isfinite().all()
    again = conv_gram.conv_gram(x, words, *rest)
    assert_same_bits(again, ours)


def test_a_scale_that_float32_does_not_hold_is_infinite():
    x, words, *rest, code, scalars, dtype = chain((3, 3), 1).arguments(3, dtype=torch.float32)
    arguments = (x, words, *rest, code, [1e300] * len(scalars), dtype)
    assert_same_bits(conv_gram.conv_gram(*arguments), reference_conv.conv_gram(*arguments))


def test_strides_of_the_inputs_do_not_matter():
    x, words, y, y_words, *rest = chain((3, 3), 2).arguments(9, 4)
    expected = conv_gram.conv_gram(x, words, y, y_words, *rest)
    wide = torch.cat([words, words], 1)[:, : words.shape[1]]
    assert_same_bits(conv_gram.conv_gram(x.T.contiguous().T, wide, y, y_words, *rest), expected)


# --- memory and the device -----------------------------------------------------------------------------------------


@examples(40)
@given(seeds)
def test_registers_take_what_the_plan_says(seed):
    """Each tile takes this much beside the memory for the masks and inputs of its rows."""
    x, words, *_, code, scalars, dtype = RandomProgram(seed).program.arguments(4)
    steps, side = conv_plan.plan(code, scalars), conv_steps.Side(x, words)
    with LiveBytes(x, words) as live:
        conv_steps.Pairs(side, side, scalars, int8=False).run(steps)
    gates = max((4 * s.positions * s.pitch * 32 for s in steps if s.masked), default=0)
    assert live.peak <= 16 * conv_plan._peak(steps, dtype.itemsize) + 11 * gates + 2 * x.nbytes + 2000


PROBLEMS = {
    "convolutions": (lambda: chain((32, 32), 2, 64, inputs=3), 7),
    "flattened": (lambda: chain((32, 32), 2, 64, head="trace"), 200),
    "wide layers": (lambda: chain((1, 1), 2, 9000, inputs=5000), 4000),
    "a pool": (pooled, 30),
    "a max-pool": (lambda: max_pool((16, 16), (8, 8), window((2, 2), (2, 2)), 64), 30),
    "a max-pool of windows that overlap": (lambda: max_pool((16, 16), (8, 8), window((2, 2), (1, 1)), 64), 20),
    "a depthwise convolution": (lambda: depthwise((24, 24)), 20),
    "interpolation": (lambda: resampled((12, 12), linear(24, 12)), 20),
    "repeated pixels": (lambda: resampled((32, 32), nearest(64, 32)), 100),
}


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_memory_stays_within_the_workspace(counted_in, case, dtype):
    """The tensors have the true sizes, but no memory behind them."""
    make, n = PROBLEMS[case]
    program = make()
    code, scalars = [number for line in program.code for number in line], program.scalars
    words = sum(-(-conv_plan.words_used(*layer) // 8) * 8 for layer in program.masks)
    x = torch.empty(n, program.columns, dtype=dtype, device="meta")
    masks = torch.empty(n, words, dtype=torch.int32, device="meta")
    edges = conv_plan.edges_of(conv_plan.plan(code, scalars), (n, n), True, dtype.itemsize, conv_plan.REGISTERS)
    assert len(list(tiles((n, n), edges, True))) > 2
    with LiveBytes(x, masks) as live:
        out = conv_gram.conv_gram(x, masks, None, None, code, scalars, dtype)
    assert WORKSPACE // 8 < live.peak - out.nbytes <= WORKSPACE


class OnOneDevice(TorchDispatchMode):
    """Refuses ops that make the host wait or copy, results on another device than `device`, and float64 if told so."""

    def __init__(self, device: str, *, float64: bool) -> None:
        super().__init__()
        self._device, self._float64 = device, float64

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::lift_fresh", "aten::masked_select")
        for index in args[1] if name == "aten::index" else []:
            assert index is None or index.dtype != torch.bool
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                assert tensor.device.type == self._device
                assert self._float64 or tensor.dtype != torch.float64
        return result


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nothing_leaves_the_device(monkeypatch, dtype):
    """This runs on the CPU and on a device without memory, from which no number can be read; in float32 without any
    float64."""
    monkeypatch.setattr(conv_gram, "has_int8", lambda device: dtype == torch.float64)
    programs = [residual((6, 5)), chain((3, 3), 2, head="trace"), *(RandomProgram(seed).program for seed in range(15))]
    programs += [max_pool((5, 6), out, geometry) for out, geometry in GEOMETRIES.values()]
    for program in programs:
        for m, device in ((None, "cpu"), (2, "cpu"), (2, "meta")):
            arguments = [v.to(device) if isinstance(v, Tensor) else v for v in program.arguments(3, m, dtype=dtype)]
            with OnOneDevice(device, float64=dtype == torch.float64):
                out = conv_gram.conv_gram(*arguments)
            assert (out.shape, out.dtype, out.device.type) == ((3, m or 3), dtype, device)


# --- plans ---------------------------------------------------------------------------------------------------------


def test_only_what_reaches_the_last_register_is_computed():
    program = chain((3, 3), 1, head="trace")
    code = [*program.code]
    code.insert(2, code[1]._replace(dst=2))
    code[3:] = [line._replace(dst=line.dst + 1, src=line.src + (line.src > 1)) for line in code[3:]]
    steps = conv_plan.plan([number for line in code for number in line], program.scalars)
    assert [step.instruction.dst for step in steps] == [0, 1, 3, 4]
    assert [step.drops for step in steps] == [(), (0,), (1,), (3,)]
    assert all(step.diagonal for step in steps)


def test_a_trace_needs_whole_kernels_only_below_sums_of_pixels():
    """A MASKED_BOX, and a RESAMPLE that moves pixels, keep the diagonal; a RESAMPLE that adds pixels does not."""
    weighted = [[0.0, 0.5, 0.0], [0.25, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
    for matrix, diagonal in ((nearest(5, 3), 6), (weighted, 6), (linear(5, 3), 2)):
        p = Programs()
        register = p.masked_box(p.input((3, 3)), p.masked(81, 7), same((3, 3)), (3, 3))
        p.trace(p.box(p.resample(p.box(register, 3, same((3, 3))), matrix, matrix), 5, same((3, 3))))
        steps = conv_plan.plan(*p.arguments(1)[4:6])
        assert [step.diagonal for step in steps] == [False] * (6 - diagonal) + [True] * diagonal
        assert_is_the_reference(*p.arguments(4, 3))


@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(1, 500))
def test_tiles_cover_every_pair_once(n, m, symmetric, pairs):
    steps = conv_plan.plan(*chain((1, 1), 1, 8).arguments(1)[4:6])
    m = n if symmetric else m
    seen = torch.zeros(n, m)
    each = conv_plan._peak(steps, 8)
    for rows, columns in tiles((n, m), conv_plan.edges_of(steps, (n, m), symmetric, 8, pairs * each), symmetric):
        assert (rows.stop - rows.start) * (columns.stop - columns.start) <= pairs
        seen[rows, columns] += 1
        if symmetric and rows != columns:
            seen[columns, rows] += 1
    assert_same_bits(seen, torch.ones(n, m))


@given(*[st.integers(1, 9)] * 4, st.integers(1, 12), st.integers(-12, 12), st.booleans())
def test_runs_are_the_pixels_of_the_reference(out, size, kernel, stride, dilation, before, circular):
    axis = Axis(out, size, kernel, stride, dilation, before, circular)
    table = reference_conv._source(out, kernel, stride, dilation, before, size, circular)
    for offset in range(kernel):
        found = torch.full((out,), size)
        for pixels, source in axis.runs(offset):
            found[pixels] = torch.arange(size)[source]
        assert_same_bits(found, table[:, offset])


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_do_not_fit_are_named(case):
    message, arguments = ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        conv_gram.conv_gram(*arguments)


@pytest.mark.parametrize("case", CODES)
def test_programs_that_would_read_elsewhere_are_named(case):
    code, message = CODES[case]
    with pytest.raises(ValueError, match=message):
        conv_gram.conv_gram(X, WORDS, None, None, code, SCALARS, DTYPE)


def test_sides_on_two_devices_are_refused():
    elsewhere = WORDS.to("meta")
    with pytest.raises(ValueError, match="got tensors on cpu and meta"):
        conv_gram.conv_gram(X, elsewhere, None, None, CODE, SCALARS, DTYPE)


def test_an_infinite_constant_is_zero_off_its_pattern():
    program = [
        Instruction(Op.CONSTANT, 0, height=2, width=2, out_height=2, out_width=2, pattern=1),
        Instruction(Op.POOL, 1, 0, height=2, width=2, kernel_h=2, kernel_w=2),
    ]
    args = (torch.zeros(3, 1), torch.zeros(3, 8, dtype=torch.int32), None, None)
    code = [number for line in program for number in line]
    found = conv_gram.conv_gram(*args, code, [math.inf], torch.float32)
    assert_same_bits(found, torch.full((3, 3), math.inf))
