"""The backward ops of gated layers run two networks at once, products side by side, and keep memory between calls."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from strategies import generator
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch.library import opcheck
from torch_threads import threads

from gatedops import gated_linear, gated_linear_pair

OPS = torch.ops.gatedops
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="only MKL says which thread multiplies")
ROWS = {"one row": (1,), "some rows": (700,), "tokens": (5, 40), "no rows": (0,)}


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def words_of(rows: int, width: int):
    return OPS.pack_gates(normal(rows, 1, width, seed=9))


def pair_arguments(leading=(33,), inputs=(20, 12), width=70, dtype=torch.float32):
    """Makes the arguments of gated_linear_pair_backward without linear_feature, which ask for all gradients."""
    parts = []
    for place, size in enumerate(inputs):
        parts.append(
            (normal(*leading, size, dtype=dtype, seed=place), normal(width, size, dtype=dtype, seed=place + 2))
        )
    grads = [normal(*leading, width, dtype=dtype, seed=seed) for seed in (4, 5)]
    words = words_of(torch.Size(leading).numel(), width)
    return *grads, *parts[0], True, *parts[1], True, words


def one_by_one(grad_h, grad_z, h, w_f, b_f, z, w_v, b_v, words, linear_feature):
    """Computes the same by two backwards of a single layer."""
    feature = OPS.gated_linear_backward(grad_h, h, w_f, None if linear_feature else words, 0, b_f)
    return *feature, *OPS.gated_linear_backward(grad_z, z, w_v, words, 0, b_v)


# --- both networks of a pair ------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("linear_feature", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_pair_on_two_threads_has_the_bits_of_its_layers_on_one(rows, linear_feature, dtype):
    arguments = pair_arguments(ROWS[rows], width=300, dtype=dtype)
    with threads(1):
        expected = one_by_one(*arguments, linear_feature)
    for count in (1, 2, 2, 2):  # The first time, the second thread starts late.
        with threads(count):
            found = OPS.gated_linear_pair_backward(*arguments, linear_feature)
        for ours, other in zip(found, expected, strict=True):
            assert_same_bits(ours, other)


SIZES = [(40, 30, 20), (700, 90, 300), (2100, 500, 1030), (4200, 8, 1030)]


@pytest.mark.parametrize(
    ("size", "count"),
    [
        *((size, count) for size in SIZES for count in (2, 3)),
        *((size, 4) for size in (SIZES[0], SIZES[1], SIZES[3])),
        pytest.param(SIZES[2], 4, marks=pytest.mark.slow),  # Four threads spin for half a minute on two cores.
    ],
    ids=str,
)
def test_gradients_of_any_size_and_number_of_threads_are_as_good_as_torch(count, size):
    """One size has products above the bound. The last has more masked rows than the memory that is kept between calls
    (32 MiB) can hold."""
    rows, inputs, width = size
    grad_h, grad_z, h, w_f, _, z, w_v, _, words = pair_arguments((rows,), (inputs, inputs), width)
    mask = OPS.unpack_gates(words, 1, width)[:, 0]

    def plain(dtype):
        found = []
        for grad, x, weight in ((grad_h, h, w_f), (grad_z, z, w_v)):
            dv = torch.where(mask, grad, 0).to(dtype)
            found += [dv @ weight.to(dtype), dv.T @ x.to(dtype), dv.sum(0)]
        return found

    with threads(count):
        for ours in (
            OPS.gated_linear_pair_backward(grad_h, grad_z, h, w_f, True, z, w_v, True, words, False),
            one_by_one(grad_h, grad_z, h, w_f, True, z, w_v, True, words, False),
        ):
            for one, other, exact in zip(ours, plain(torch.float32), plain(torch.float64), strict=True):
                assert_as_good_as_torch(one, other, exact)


def threads_of_products(capfd, count, call):
    """Returns the number that MKL gives to the thread of each product, in the order in which the products end."""
    with threads(count), torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        call()
    return [int(thread) for thread in re.findall(r"^MKL_VERBOSE SGEMM\(.* TID:(\d+)", capfd.readouterr().out, re.M)]


SMALL_LAYER, LARGE_LAYER, LARGE_PAIR = (128, 256, 1024), (129, 256, 1024), (1025, 1024, 1024)


@needs_mkl
@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    ("count", "size", "apart"),
    [
        (1, SMALL_LAYER, False),
        (2, SMALL_LAYER, True),
        (2, LARGE_LAYER, True),
        (2, LARGE_PAIR, False),
        (3, SMALL_LAYER, False),
        (4, SMALL_LAYER, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("soft", [False, True])
def test_the_layers_of_a_pair_run_side_by_side_on_two_threads_alone(count, size, apart, soft, capfd):
    """With more threads torch runs the products one after another with all threads; run_apart in backward.h says
    why."""
    rows, inputs, width = size
    grad_h, grad_z, h, w_f, _, z, w_v, _, words = pair_arguments((rows,), (inputs, inputs), width)
    soft_arguments = (grad_h, grad_z, grad_h, grad_z, h, w_f, True, z, w_v, True, 4.0, 1.0, False)

    def call():
        if soft:
            return OPS.gated_linear_pair_soft_backward(*soft_arguments)
        return OPS.gated_linear_pair_backward(grad_h, grad_z, h, w_f, True, z, w_v, True, words, False)

    found = threads_of_products(capfd, count, call)
    assert sorted(found) == ([0, 0, 1, 1] if apart else [0] * 4)


@needs_mkl
@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    ("count", "size", "apart"),
    [(1, SMALL_LAYER, False), (2, SMALL_LAYER, True), (2, LARGE_LAYER, False), (4, SMALL_LAYER, False)],
    ids=str,
)
def test_the_products_of_one_small_layer_run_side_by_side_on_two_threads_alone(count, size, apart, capfd):
    rows, inputs, width = size
    grad, x, weight = normal(rows, width), normal(rows, inputs), normal(width, inputs)
    found = threads_of_products(capfd, count, lambda: OPS.gated_linear_backward(grad, x, weight, None, 0, True))
    assert sorted(found) == ([0, 1] if apart else [0, 0])


def test_what_a_pair_is_not_asked_for_is_empty():
    everything = pair_arguments()
    expected = OPS.gated_linear_pair_backward(*everything, False)
    without = {2: 1, 3: 0, 4: 2, 5: 4, 6: 3, 7: 5}  # Maps an argument to the gradient that needs it.
    for argument, gradient in without.items():
        given = list(everything)
        given[argument] = False if isinstance(given[argument], bool) else None
        for place, found in enumerate(OPS.gated_linear_pair_backward(*given, False)):
            assert_same_bits(found, expected[place] if place != gradient else torch.empty(0))


def test_cotangents_of_a_pair_of_any_strides():
    arguments = [t.requires_grad_() for t in (normal(50, 6), normal(70, 6, seed=1), normal(70, 6, seed=2))]
    h, w_f, w_v = arguments
    base = normal(70, 50, seed=3)

    def gradients(cotangent):
        h_next, z_next, _ = gated_linear_pair(h, w_f, None, h, w_v, None)
        return torch.autograd.grad([h_next, z_next], arguments, [cotangent, cotangent])

    for cotangent in (base.T, base[:1, :1].expand(50, 70)):
        for found, expected in zip(gradients(cotangent), gradients(cotangent.contiguous()), strict=True):
            assert_same_bits(found, expected)


# --- memory kept between calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_backwards_in_several_python_threads_do_not_share_memory(soft):
    """The layers have different sizes, so that the memory that is kept grows and is used again."""

    def gradients(seed):
        rows = 40 + 300 * seed
        x, weight = (normal(*shape, dtype=torch.float64, seed=seed) for shape in ((rows, 8), (64, 8)))
        leaves = [x.requires_grad_(), weight.requires_grad_()]
        gate = torch.rand(rows, 64, generator=generator(seed), dtype=torch.float64)
        y = gated_linear(x, weight, None, gate if soft else gate > 0.5)
        return torch.autograd.grad((y**2).sum(), leaves)

    expected = [gradients(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gradients, [*range(8)] * 10))
    for one, other in zip(found, expected * 10, strict=True):
        for ours, exact in zip(one, other, strict=True):
            assert_close_in_float64(ours, exact)


def test_gradients_do_not_lie_in_kept_memory():
    x, weight = normal(200, 16), normal(100, 16, seed=1)
    words = words_of(200, 100)
    first = OPS.gated_linear_backward(normal(200, 100), x, weight, words, 0, True)
    before = [t.clone() for t in first]
    OPS.gated_linear_backward(normal(200, 100, seed=7), x, weight, words, 0, True)
    for found, expected in zip(first, before, strict=True):
        assert_same_bits(found, expected)


# --- the ops ----------------------------------------------------------------------------------------------------

X, W, B, GRAD = normal(6, 5), normal(40, 5, seed=1), normal(40, seed=2), normal(6, 40, seed=3)
SOFT, WORDS = torch.rand(6, 40), words_of(6, 40)
CALLS = {
    "gated_linear": (X, W, B, WORDS, 0),
    "gated_linear_relu": (X, W, None),
    "gated_linear_soft": (X, W, B, SOFT),
    "gated_linear_backward": (GRAD, X, W, WORDS, 0, True),
    "gated_linear_soft_backward": (GRAD, X, W, SOFT, GRAD, True),
    "gated_linear_pair": (X, W, B, X, W, None, False),
    "gated_linear_pair_backward": (GRAD, GRAD, X, None, True, None, W, False, WORDS, False),
    "gated_linear_pair_soft": (X, W, B, X, W, B, 4.0, 1.0, False),
    "gated_linear_pair_soft_backward": (GRAD, None, GRAD, GRAD, X, W, True, X, W, True, 4.0, 1.0, True),
}


@pytest.mark.parametrize("name", CALLS)
def test_ops_pass_opcheck(name):
    opcheck(getattr(OPS, name), CALLS[name])


@pytest.mark.parametrize("linear_feature", [False, True])
def test_a_pair_compiles_forward_and_backward_with_a_dynamic_batch(linear_feature):
    def step(h, z, *weights):
        feature = "linear" if linear_feature else "relu"
        h_next, z_next, _ = gated_linear_pair(h, *weights[:2], z, *weights[2:], feature=feature)
        return h_next.sin().sum() + z_next.square().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    weights = [normal(40, 5), normal(40), normal(40, 3, seed=1), normal(40, seed=1)]
    for rows in (7, 11):
        leaves = [t.requires_grad_() for t in (normal(rows, 5), normal(rows, 3, seed=1), *weights)]
        found, expected = (torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step))
        for ours, other in zip(found, expected, strict=True):
            assert_same_bits(ours, other)
