"""The CUDA kernels of conv_gram agree with the CPU kernels and the reference when their own source and plan run on the
CPU.

Threads run in random orders, memory that was not written is NaN, and loads of masks outside their rows are errors.
"""

from __future__ import annotations

import shutil

import emulated
import pytest
import torch
from conv_programs import CHANNELS, Programs, RandomProgram, chain, residual, same, window
from emulated_conv import run_conv_gram
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op, encode
from gatedops.reference import conv_gram as reference_conv

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: apt install g++")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    return emulated.compiled("conv_gram.cpp", tmp_path_factory.mktemp("emulated")).emulate_conv_gram


def assert_is_the_reference(kernel, *arguments, **options):
    ours, stretches = run_conv_gram(kernel, *arguments, **options)
    assert_close_in_float64(ours, reference_conv.conv_gram(*arguments))
    if arguments[2] is None:
        assert_same_bits(ours, ours.T)
    return stretches


def assert_is_the_cpus(kernel, *arguments):
    ours, stretches = run_conv_gram(kernel, *arguments)
    assert_close_in_float64(ours, conv_gram(*arguments))
    return stretches


@examples(25)
@given(seeds, st.integers(1, 4), st.none() | st.integers(1, 3))
def test_any_program_computes_what_the_reference_does(kernel, seed, n, m):
    program = RandomProgram(seed, extended=False).program
    assert_is_the_reference(kernel, *program.arguments(n, m, seed % 1000), seed=seed % 97)


@pytest.mark.parametrize("head", ["mean", "trace"])
@pytest.mark.parametrize("size", [(1, 7), (5, 1), (4, 4), (3, 11), (9, 5), (17, 2)], ids=str)
@pytest.mark.parametrize("circular", [0, 1])
def test_chains_of_every_shape_stay_in_registers(kernel, size, circular, head):
    for kernel_size, channels in zip([(3, 3), (1, 3), (5, 3), (1, 1)], CHANNELS[::2], strict=True):
        program = chain(size, 3, channels, kernel_size, head, inputs=2, circular=circular)
        assert assert_is_the_reference(kernel, *program.arguments(2), seed=channels) == 1


@pytest.mark.parametrize(("size", "stretches"), [((8, 8), 3), ((7, 5), 3), ((1, 6), 3), ((2, 2), 1)], ids=str)
def test_residual_blocks_with_strided_shortcuts(kernel, size, stretches):
    """Strided boxes cut a program into stretches, and images of one pixel get no map."""
    assert assert_is_the_reference(kernel, *residual(size).arguments(3)) == stretches


def test_a_pool_has_more_weights_than_a_launch_stores(kernel):
    """There are 17 x 17 different weights."""
    p = Programs()
    register = p.box(p.input((17, 17)), 5, same((3, 3)))
    first, *_ = [p.number(1 / (2 + k)) for k in range(17 * 17)]
    p.trace(p.emit(Op.POOL, (17, 17), register, **window((1, 1)), scale2=first))
    assert_is_the_reference(kernel, *p.arguments(1))


def many_branches(size: tuple[int, int], count: int) -> Programs:
    """Makes registers that are all read again at the end; if count is large, a warp does not have enough slots for
    them."""
    p = Programs()
    registers = [p.input(size)]
    for _ in range(count):
        registers.append(p.box(registers[-1], 33, same((3, 3)), scale=0.125))
    total = registers[0]
    for register in registers[1:]:
        total = p.emit(Op.ADD, size, register, 0.5, 0.25, src2=total, scale2=p.number(1.0))
    p.emit(Op.ADD, (1, 1), p.mean(total), src2=p.trace(registers[2]), scale2=p.number(1.0))
    return p


@pytest.mark.parametrize("count", [2, 7, 20])
def test_registers_that_are_read_again(kernel, count):
    """Such registers are in slots in shared memory or, if slots or steps run out, in the store."""
    stretches = assert_is_the_reference(kernel, *many_branches((3, 5), count).arguments(2))
    assert (stretches == 1) == (count < 20)


def test_the_same_register_twice(kernel):
    p = Programs()
    start = p.box(p.input((4, 3)), 20, same((3, 3)))
    p.mean(p.emit(Op.ADD, (4, 3), start, 0.5, src2=start, scale2=p.number(0.25)))
    assert assert_is_the_reference(kernel, *p.arguments(3)) == 1


@pytest.mark.parametrize("depth", [20, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_deep_chains(kernel, depth, dtype):
    """Above 30 layers a stretch is full, and another stretch continues."""
    arguments = chain((4, 4), depth).arguments(2, 1, dtype=dtype)
    ours, stretches = run_conv_gram(kernel, *arguments)
    x, words, y, y_words, program, scalars, _ = arguments
    truth = reference_conv.conv_gram(x.double(), words, y.double(), y_words, program, scalars, torch.float64)
    assert_as_good_as_torch(ours, reference_conv.conv_gram(*arguments), truth)
    assert stretches == 1 + (depth > 30)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (32, 5), (6, 31)], ids=str)
@pytest.mark.parametrize("circular", [0, 1])
def test_a_map_has_the_bits_of_the_cpu(kernel, size, circular):
    """A box over the whole image reads R(p, p) alone and sums it in one order on every device."""
    p = Programs()
    register = p.input(size, 3, scale=0.3)
    for channels, window_size in [(64, (3, 3)), (200, (5, 1)), (31, (3, 3))]:
        register = p.box(register, channels, same(window_size) | {"circular": circular}, scale=0.7, constant=0.1)
    p.box(register, 0, window(size), (1, 1))
    for dtype in (torch.float32, torch.float64)[: 1 if size == (32, 32) else 2]:  # 262,144 numbers take seconds.
        arguments = p.arguments(1, dtype=dtype)
        ours, stretches = run_conv_gram(kernel, *arguments)
        assert stretches == 1
        assert_same_bits(ours, conv_gram(*arguments))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (32, 5)], ids=str)
def test_all_displacements_of_an_image(kernel, size):
    arguments = chain(size, 2, inputs=2).arguments(1, 1, dtype=torch.float32)
    x, words, y, y_words, program, scalars, _ = arguments
    ours, _ = run_conv_gram(kernel, *arguments)
    truth = conv_gram(x.double(), words, y.double(), y_words, program, scalars, torch.float64)
    assert_as_good_as_torch(ours, reference_conv.conv_gram(*arguments), truth)


@pytest.mark.parametrize("head", ["mean", "trace"])
def test_images_too_large_for_registers(kernel, head):
    program = chain((2, 33), 2, 20, head=head)
    assert assert_is_the_reference(kernel, *program.arguments(2)) == 0


def test_masks_at_an_odd_word_stay_in_memory(kernel):
    program = chain((3, 3), 2, 64)
    x, words, y, y_words, _, scalars, dtype = program.arguments(3)
    program.code[2] = program.code[2]._replace(first=program.code[2].first + 1)
    assert assert_is_the_cpus(kernel, x, words, y, y_words, encode(program.code), scalars, dtype) == 1


def test_words_behind_those_of_a_mask_do_not_count(kernel):
    """65 channels have three words and a fourth of padding. With every bit on, 96 gates count, and not 128."""
    x, words, *rest = chain((3, 3), 2, 65).arguments(2)
    assert assert_is_the_cpus(kernel, x, torch.full_like(words, -1), *rest) == 1


@pytest.mark.parametrize("m", [None, 5])
def test_batches_and_orders_of_threads_do_not_matter(kernel, m):
    arguments = residual((6, 5)).arguments(6, m, dtype=torch.float32)
    expected, _ = run_conv_gram(kernel, *arguments, pairs_per_batch=64)
    for pairs, seed in ((1, 1), (4, 2), (21, 3)):
        found, _ = run_conv_gram(kernel, *arguments, pairs_per_batch=pairs, seed=seed)
        assert_same_bits(found, expected)


def test_more_totals_than_a_stretch_sums(kernel):
    p = Programs()
    start = p.box(p.input((3, 4)), 20, same((3, 3)))
    total = p.mean(start)
    for scale in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        part = p.trace(p.gate(start, 10, scale=scale))
        total = p.emit(Op.ADD, (1, 1), total, src2=part, scale2=p.number(1.0))
    assert assert_is_the_reference(kernel, *p.arguments(3)) > 1


NOT_KNOWN = {
    "first_y": {"first_y": 16},
    "negative padding": {"pad_left": -1},
    "MASKED_BOX": {"op": Op.MASKED_BOX, "channels": 1},
    "RESAMPLE": {"op": Op.RESAMPLE, "scale2": 0},
}


@pytest.mark.parametrize("case", NOT_KNOWN)
def test_instructions_that_the_kernels_do_not_know_are_refused(kernel, case):
    """The third instruction stands inside a stretch."""
    program = chain((2, 2), 2, 1)
    x, words, y, y_words, _, scalars, dtype = program.arguments(2)
    words, scalars = torch.zeros(2, 100, dtype=torch.int32), scalars + [1.0] * 8
    known = program.code[2]
    program.code[2] = known._replace(first_y=known.first)
    run_conv_gram(kernel, x, words, y, y_words, encode(program.code), scalars, dtype)
    program.code[2] = known._replace(**NOT_KNOWN[case])
    with pytest.raises(RuntimeError, match=f"instruction 2 is not known to the CUDA kernels.*{case}"):
        run_conv_gram(kernel, x, words, y, y_words, encode(program.code), scalars, dtype)
