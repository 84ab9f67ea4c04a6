"""The CUDA kernels of conv_gram, their own source and plan run on the CPU, against the CPU kernels and the reference.

Threads run in random orders, memory that was not written is NaN, and loads of masks outside their rows are errors.
"""

from __future__ import annotations

import shutil

import emulated
import pytest
import torch
from conv_programs import CHANNELS, Programs, RandomProgram, chain, same, window
from emulated_conv import run_conv_gram
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, seeds
from test_conv_gram import residual
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops import reference_conv
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op

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


@examples(60)
@given(seeds, st.integers(1, 4), st.none() | st.integers(1, 3))
def test_any_program_computes_what_the_reference_does(kernel, seed, n, m):
    assert_is_the_reference(kernel, *RandomProgram(seed).program.arguments(n, m, seed % 1000), seed=seed % 97)


@pytest.mark.parametrize("head", ["mean", "trace"])
@pytest.mark.parametrize("size", [(1, 7), (5, 1), (4, 4), (3, 11), (9, 5), (17, 2)], ids=str)
@pytest.mark.parametrize("circular", [0, 1])
def test_chains_of_every_shape_stay_in_registers(kernel, size, circular, head):
    for kernel_size, channels in zip([(3, 3), (1, 3), (5, 3), (1, 1)], CHANNELS[::2], strict=True):
        program = chain(size, 3, channels, kernel_size, head, inputs=2, circular=circular)
        assert assert_is_the_reference(kernel, *program.arguments(2), seed=channels) == 1


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 6), (2, 2)], ids=str)
def test_residual_blocks_with_strided_shortcuts(kernel, size):
    assert assert_is_the_reference(kernel, *residual(size).arguments(3)) > 1
