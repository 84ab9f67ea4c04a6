"""conv_gram runs programs of the convolutional path kernel as their plain reference does (docs/math.md, section 13)."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
import torch
from conv_mistakes import ARGUMENTS, CODES, DTYPE, SCALARS, WORDS, X
from conv_programs import CHANNELS, Programs, RandomProgram, chain, residual, same, window
from gram_problems import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from memory import needs_proc, peak_mib
from strategies import examples, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch.library import opcheck
from torch.nn.functional import pad
from torch_threads import threads

from gatedops import backends
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op
from gatedops.reference import conv_gram as reference_conv

# These numbers of inputs lie around 16, the number side by side in a register, and 8, the rows of a task.
ROWS = st.sampled_from([0, 1, 3, 7, 8, 9, 15, 16, 17, 33])
SIZES = [(1, 1), (1, 7), (5, 1), (4, 4), (3, 6), (7, 5)]
FEW = examples(40)


def assert_is_the_reference(*arguments):
    ours, truth = conv_gram(*arguments), reference_conv.conv_gram(*arguments)
    if truth.numel() == 0:
        assert_same_bits(ours, truth)
    else:
        assert_close_in_float64(ours, truth)
    return ours


# --- values -------------------------------------------------------------------------------------------------


def bundle_features(x: Tensor, gates: list[Tensor]) -> Tensor:
    """Lists the path features of two 3 x 3 convolutions (zero padding) and global average pooling, (n, bundles). The
    paths that share weights are one bundle: an input channel, and an offset and a channel of each layer."""
    n, _, height, width = x.shape
    first, second = gates
    features = []
    for c, d1, c1, d2, c2 in itertools.product(
        range(x.shape[1]), range(9), range(first.shape[1]), range(9), range(second.shape[1])
    ):
        total = torch.zeros(n, dtype=torch.float64)
        for p in itertools.product(range(height), range(width)):
            u = (p[0] + d2 // 3 - 1, p[1] + d2 % 3 - 1)
            v = (u[0] + d1 // 3 - 1, u[1] + d1 % 3 - 1)
            if all(0 <= q[0] < height and 0 <= q[1] < width for q in (u, v)):
                total += second[:, c2, *p] * first[:, c1, *u] * x[:, c, *v]
        features.append(total / (height * width))
    return torch.stack(features, 1)


def test_gram_is_that_of_all_listed_path_bundles(isa):
    program = Programs()
    register = program.input((2, 3), 2)
    for channels in (3, 2):
        register = program.box(register, channels, same((3, 3)))
    program.mean(register)
    x, words, *rest = program.arguments(5)
    starts = (0, 16)  # 6 positions of two words are padded to 16 words.
    gates = [
        reference_conv.gates_of_layer(words[:, start : start + 12], 6, channels).mT.unflatten(2, (2, 3)).double()
        for start, channels in zip(starts, (3, 2), strict=True)
    ]
    features = bundle_features(x.unflatten(1, (2, 2, 3)), gates)
    assert_close_in_float64(conv_gram(x, words, *rest), features @ features.T)


@examples(120)
@given(st.integers(0, 2**31), ROWS, st.none() | ROWS)
def test_any_program_computes_what_the_reference_does(seed, n, m):
    arguments = RandomProgram(seed).program.arguments(n, m, seed % 1000)
    ours = assert_is_the_reference(*arguments)
    if m is None:
        assert_same_bits(ours, ours.T)
    for isa in backends.available_isas()[:-1]:
        with backends.force_cpu(isa):
            assert_same_bits(conv_gram(*arguments), ours)


@pytest.mark.parametrize("head", ["mean", "trace"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("circular", [0, 1])
def test_chains_of_every_shape(isa, size, circular, head):
    for kernel, channels in zip([(3, 3), (1, 3), (5, 3), (1, 1)], CHANNELS[::2], strict=True):
        program = chain(size, 3, channels, kernel, head, inputs=2, circular=circular)
        assert_is_the_reference(*program.arguments(18))


@pytest.mark.parametrize("channels", [*CHANNELS, 1024, 1025, 2100])
def test_any_number_of_channels(isa, channels):
    """Above 31 words AVX2 adds up its byte counters in between."""
    assert_is_the_reference(*chain((2, 3), 2, channels).arguments(3, 4))


@FEW
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(-3, 5), st.integers(-3, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([0, 1]),
    seeds,
)
def test_a_window_of_any_geometry(size, kernel, stride, before, dilation, out, circular, seed):
    """The output has any size; pixels whose window misses the image are zero."""
    program = Programs()
    geometry = window(kernel, stride, before, dilation)
    register = program.box(program.input(size), 33, geometry | {"circular": circular}, out)
    register = program.box(register, 5, same((3, 3)) | {"circular": circular})
    program.emit(Op.POOL, (1, 1), register, **window(out))
    assert_is_the_reference(*program.arguments(3, 2, seed % 1000))


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 6), (2, 2)], ids=str)
def test_residual_blocks_with_strided_shortcuts(isa, size):
    assert_is_the_reference(*residual(size).arguments(5))


@pytest.mark.parametrize("make", [lambda: chain((6, 5), 6, head="mean"), lambda: residual((6, 6))])
def test_float32_is_as_good_as_torch(make):
    arguments = make().arguments(40, dtype=torch.float32)
    x, words, y, y_words, program, scalars, _ = arguments
    truth = reference_conv.conv_gram(x.double(), words, y, y_words, program, scalars, torch.float64)
    assert_as_good_as_torch(conv_gram(*arguments), reference_conv.conv_gram(*arguments), truth)


def test_a_constant_image_gives_the_number_of_paths():
    """All gates are on and x = 1, so K(p, p') of two layers counts pairs of paths that share weights. These are
    integers, so they are exact."""
    program = chain((3, 3), 2, 7, head="trace")
    x, words, *_, code, scalars, dtype = program.arguments(2)
    scalars = [1.0] * len(scalars)
    ones = pad(torch.ones(1, 1, 3, 3, dtype=dtype), (2, 2, 2, 2))
    paths = torch.nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3, dtype=dtype))
    paths = torch.nn.functional.conv2d(paths * pad(torch.ones(3, 3), (1, 1, 1, 1)), torch.ones(1, 1, 3, 3, dtype=dtype))
    ours = conv_gram(torch.ones_like(x), torch.full_like(words, -1), None, None, code, scalars, dtype)
    # Padding bits are on here as well, so a path counts 32 * 32 * (the gates of the dense layer in 4 words).
    assert_same_bits(ours, (paths.sum() * 32 * 32 * 128).expand(2, 2))


# --- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_bits_do_not_depend_on_threads_or_instruction_set(dtype):
    for make in (lambda: chain((5, 7), 4, 65), lambda: residual((6, 5)), lambda: chain((4, 4), 3, circular=1)):
        arguments = make().arguments(35, dtype=dtype)
        expected = conv_gram(*arguments)
        for isa, count in itertools.product(backends.available_isas(), (1, 2, 3)):
            with backends.force_cpu(isa), threads(count):
                assert_same_bits(conv_gram(*arguments), expected)


@pytest.mark.cpu_kernels
@FEW
@given(ROWS, st.sampled_from(FLOATS), seeds)
def test_the_symmetric_gram_is_the_lower_half_of_the_rectangular(n, dtype, seed):
    x, words, _, _, *rest = chain((3, 4), 2, 33).arguments(n, seed=seed % 1000, dtype=dtype)
    ours = conv_gram(x, words, None, None, *rest)
    assert_same_bits(ours, ours.T)
    assert_same_bits(ours.tril(), conv_gram(x, words, x, words, *rest).tril())


def test_strides_of_the_inputs_do_not_matter():
    x, words, y, y_words, *rest = chain((3, 3), 2).arguments(9, 4)
    expected = conv_gram(x, words, y, y_words, *rest)
    wide = torch.cat([words, words], 1)[:, : words.shape[1]]
    assert_same_bits(conv_gram(x.T.contiguous().T, wide, y, y_words, *rest), expected)
    assert_same_bits(conv_gram(x, words, y.repeat(1, 2)[:, : y.shape[1]], y_words, *rest), expected)
    assert_same_bits(conv_gram(x[::2], words[::2], y, y_words, *rest), expected[::2])


# --- as an op -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [None, 4])
def test_op_passes_opcheck(m):
    opcheck(torch.ops.gatedops.conv_gram, chain((3, 3), 2).arguments(5, m, dtype=torch.float32))


def test_a_compiled_gram_is_the_same():
    torch._dynamo.reset()
    arguments = chain((3, 3), 2).arguments(5)
    compiled = torch.compile(lambda x, words: conv_gram(x, words, *arguments[2:]), fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(*arguments[:2]), conv_gram(*arguments))


def test_a_gradient_is_refused():
    x, *rest = chain((3, 3), 1).arguments(3)
    with pytest.raises(RuntimeError, match="conv_gram is not differentiable"):
        conv_gram(x.requires_grad_(), *rest).sum().backward()


@needs_proc
def test_memory_does_not_grow_with_inputs_times_pixels():
    """For 128 inputs of 16 x 16, one kernel of all pairs is 4 GiB. Masks take some 30 MiB, and tiles a few MiB."""
    setup = "from conv_programs import chain\nfrom gatedops.ops.conv_gram import conv_gram"
    assert peak_mib(setup, "conv_gram(*chain((16, 16), 1, 64).arguments(n, dtype=torch.float32))", sizes=(8, 128)) < 96


@needs_proc
def test_memory_of_pools_is_that_of_one_input():
    """For 64 inputs of 16 x 16, pooled to 8 x 8, one thread needs 256 KiB, and all pairs would need 64 MiB."""
    setup = "from conv_programs import pooled\nfrom gatedops.ops.conv_gram import conv_gram"
    assert peak_mib(setup, "conv_gram(*pooled().arguments(n, dtype=torch.float32))", sizes=(8, 64)) < 48


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_do_not_fit_are_named(case):
    message, arguments = ARGUMENTS[case]
    with pytest.raises(ValueError, match=message):
        conv_gram(*arguments)


@pytest.mark.parametrize("case", CODES)
def test_programs_that_would_read_elsewhere_are_named(case):
    code, message = CODES[case]
    with pytest.raises(ValueError, match=message):
        conv_gram(X, WORDS, None, None, code, SCALARS, DTYPE)


@FEW
@given(st.data())
def test_no_program_crashes_the_interpreter(data):
    """Replacing any field of any instruction by any number gives an error that names the field, or a result."""
    program = RandomProgram(data.draw(seeds)).program
    x, words, _, _, code, scalars, dtype = program.arguments(2)
    at = data.draw(st.integers(0, len(code) - 1))
    code[at] = data.draw(st.integers(-2, 70) | st.sampled_from([1023, 1025, 2**31, 2**62, -(2**62)]))
    with suppress(ValueError):
        assert conv_gram(x, words, None, None, code, scalars, dtype).shape == (2, 2)
