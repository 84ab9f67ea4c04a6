"""conv_gram on a GPU agrees with the reference and the CPU. Run it with GATEDOPS_BACKEND=cuda:

GATEDOPS_BACKEND=cuda python -m pytest -x tests/gpu/test_gpu_conv_gram.py
"""

from __future__ import annotations

import pytest
import torch
from conv_programs import Programs, RandomProgram, chain, residual, same, window
from gpu import DEVICE, captured, needs_gpu, not_dry, on_gpu, only_on
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

import gatedops
from gatedops import backends
from gatedops.nn import conv_spec
from gatedops.ops.conv_gram import conv_gram
from gatedops.ops.conv_program import Op
from gatedops.reference import conv_gram as reference_conv

pytestmark = needs_gpu("portable", "cuda")

SIZES = [(1, 7), (4, 4), (7, 5), (8, 8), (16, 16), (28, 28), (32, 32), (2, 40)]


def assert_is_the_cpus(*arguments):
    ours = conv_gram(*on_gpu(*arguments)).cpu()
    assert_close_in_float64(ours, conv_gram(*arguments))
    if arguments[2] is None:
        assert_same_bits(ours, ours.T)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("circular", [0, 1])
@pytest.mark.parametrize("head", ["mean", "trace"])
def test_chains_of_every_size(size, circular, head):
    for kernel, channels in [((3, 3), 64), ((5, 1), 200), ((1, 1), 33), ((3, 3), 1)]:
        arguments = chain(size, 3, channels, kernel, head, inputs=3, circular=circular).arguments(5, 3)
        assert_is_the_cpus(*arguments)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed):
    extended = backends.forced_backend() != "cuda"
    assert_is_the_cpus(*RandomProgram(seed, extended).program.arguments(5, None if seed % 2 else 3, seed))


@pytest.mark.parametrize("size", [(6, 5), (32, 32)], ids=str)
def test_residual_blocks(size):
    assert_is_the_cpus(*residual(size).arguments(4))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (32, 32), (28, 28)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_map_has_the_bits_of_the_cpu(size, dtype):
    p = Programs()
    register = p.input(size, 3, scale=0.3)
    for channels, window_size in [(64, (3, 3)), (200, (5, 1)), (31, (3, 3))]:
        register = p.box(register, channels, same(window_size), scale=0.7, constant=0.1)
    p.box(register, 0, window(size), (1, 1))
    arguments = p.arguments(6, dtype=dtype)
    assert_same_bits(conv_gram(*on_gpu(*arguments)).cpu(), conv_gram(*arguments))


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (28, 28)], ids=str)
def test_float32_is_as_good_as_torch(size):
    arguments = chain(size, 6).arguments(3, dtype=torch.float32)
    x, words, y, y_words, program, scalars, _ = arguments
    truth = conv_gram(x.double(), words, y, y_words, program, scalars, torch.float64)
    plain = reference_conv.conv_gram(*on_gpu(*arguments)).cpu()
    assert_as_good_as_torch(conv_gram(*on_gpu(*arguments)).cpu(), plain, truth)


def test_the_same_bits_on_every_run_and_in_every_batch():
    # A pair takes MiB, so there are several batches.
    arguments = on_gpu(*residual((32, 32)).arguments(12, dtype=torch.float32))
    expected = conv_gram(*arguments)
    for _ in range(3):
        assert_same_bits(conv_gram(*arguments), expected)
    x, words, _, _, *rest = arguments
    assert_same_bits(conv_gram(x[:3], words[:3], None, None, *rest), expected[:3, :3])


def test_a_graph_of_pools_with_weights_replays_on_new_inputs():
    """There are more weights than one launch stores."""
    p = Programs()
    register = p.box(p.input((17, 17)), 5, same((3, 3)))
    first, *_ = [p.number(1 / (2 + k)) for k in range(17 * 17)]
    p.trace(p.emit(Op.POOL, (17, 17), register, **window((1, 1)), scale2=first))
    arguments, fresh = (p.arguments(3, seed=seed) for seed in (0, 1))
    there, results = on_gpu(*arguments), []
    graph = captured(lambda: results.append(conv_gram(*there)))
    there[0].copy_(fresh[0])
    there[1].copy_(fresh[1])
    graph.replay()
    assert_close_in_float64(results[-1].cpu(), conv_gram(*fresh))


def test_npk_of_a_model_on_the_gpu():
    spec = conv_spec((3, 32, 32), [16, 16], [20], 10, "gap")
    net, x = spec.relu_net(0).eval().double(), torch.rand(6, 3, 32, 32, dtype=torch.float64)
    expected = gatedops.npk(net, x, dtype=torch.float64)
    found = gatedops.npk(net.to(DEVICE), x.to(DEVICE), dtype=torch.float64)
    assert_close_in_float64(found.cpu(), expected)


@only_on("cuda", "words may lie anywhere for others")
def test_misaligned_words_are_refused():
    x, words, _, _, *rest = on_gpu(*chain((3, 3), 1).arguments(3))
    odd = torch.cat([words, words[:, :1]], 1)
    with pytest.raises(ValueError, match="words: the CUDA kernels need rows on 8-byte boundaries"):
        conv_gram(x, odd, None, None, *rest)


@not_dry("a CPU has no second device")
def test_inputs_elsewhere_are_refused():
    x, words, _, _, *rest = on_gpu(*chain((3, 3), 1).arguments(3))
    with pytest.raises(ValueError, match=r"(x: needs to be on the device of words|got tensors on cpu and cuda:0)"):
        torch.ops.gatedops.conv_gram(x.cpu(), words, None, None, *rest)


def test_an_empty_gram():
    x, words, _, _, *rest = on_gpu(*chain((3, 3), 1).arguments(3))
    assert conv_gram(x, words, x[:0], words[:0], *rest).shape == (3, 0)
