"""npk_matvec has the right values and derivatives; all ops of Grams keep to their memory, and run on other
processors."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import paths
import pytest
import torch
from gram_problems import FLOATS, SHAPE
from hypothesis import example, given
from hypothesis import strategies as st
from instruction_sets import every_set
from memory import ROOT, WORKSPACE_MIB, needs_proc, peak_mib
from paths import PATH_NETS
from strategies import dense, examples, nets, random_bits, rows, rows_of, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops import GateBits, npk_matvec, reference

# torch warns of itself, because vmap calls the ops one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

BITS, Y_BITS = random_bits(5, dense(6, 9)), random_bits(4, dense(6, 9), seed=1)


def long_double_gram(x, bits, y, y_bits) -> np.ndarray:
    """Computes K in numpy's long double (64-bit significand)."""
    product = np.ones((bits.n, (bits if y_bits is None else y_bits).n), dtype=np.longdouble)
    if x is not None:
        right = x if y is None else y
        product = x.double().numpy().astype(np.longdouble) @ right.double().numpy().astype(np.longdouble).T
    for count, width in zip(reference.gate_overlap(bits, y_bits).numpy(), bits.widths, strict=True):
        product = product * (count.astype(np.longdouble) / np.longdouble(width))
    return product


def rounded_product(gram: np.ndarray, v: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy((gram @ v.numpy().astype(np.longdouble)).astype(np.float64))


def assert_products_are_good(x, bits, vs, y=None, y_bits=None, *, dtype, columns=None):
    """Checks products with each v by the rule of two baselines, under every instruction set.

    columns: how many columns of v a call gets; by default all.
    """
    gram = long_double_gram(x, bits, y, y_bits)
    for v in vs:
        parts = v.split(columns or max(1, v.shape[1]), 1)

        def product(library, parts=parts):
            return torch.cat([library.npk_matvec(x, bits, part, y, y_bits, dtype=dtype) for part in parts], 1)

        baseline, truth = product(reference), rounded_product(gram, v)
        for _ in every_set():
            assert_as_good_as_torch(product(Ours), baseline, truth)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("d_in", "widths"), PATH_NETS)
def test_matvec_of_integers_is_exactly_that_of_all_listed_paths(d_in, widths, dtype):
    rng = np.random.default_rng(d_in)
    weights = paths.random_net(rng, d_in, widths, integers=True)
    every = paths.all_paths(weights)
    x, y, v = (rng.integers(-4, 5, shape) for shape in [(33, d_in), (18, d_in), (18, 3)])
    (gates, _), (y_gates, _) = paths.forward(weights, x), paths.forward(weights, y)
    expected = paths.features(x, gates, every) @ (paths.features(y, y_gates, every).T @ v)
    bits = GateBits.pack([torch.from_numpy(gate) for gate in gates])
    y_bits = GateBits.pack([torch.from_numpy(gate) for gate in y_gates])
    x, y, v = (torch.from_numpy(one).to(dtype) for one in (x, y, v))
    found = npk_matvec(x, bits, v, y, y_bits, scale="none", dtype=dtype)
    assert_same_bits(found.long(), torch.from_numpy(expected))


@examples(15)
@given(
    rows,
    rows,
    st.sampled_from([0, 1, 5, 64]),
    st.sampled_from([0, 1, 3, 17]),
    nets,
    seeds,
    st.sampled_from(FLOATS),
)
@example(127, 0, 1, 1, [((31,), "gate")], 0, torch.float32)  # Sums of float32 terms one after another fail here.
def test_matvec_is_as_good_as_torch(n, m, d, c, specs, seed, dtype):
    bits, y_bits = random_bits(n, specs, seed), random_bits(m, specs, seed + 1)
    x, y = rows_of(n, d, seed, dtype), rows_of(m, d, seed + 1, dtype)
    # Several calls are compared, because the largest of a few errors is a matter of luck, for torch too.
    many = max(c, 16) if c else 0
    v, w = rows_of(n, many, seed + 2, dtype), rows_of(m, many, seed + 2, dtype)
    assert_products_are_good(x, bits, [w], y, y_bits, dtype=dtype, columns=c)
    assert_products_are_good(x, bits, [v], dtype=dtype, columns=c)
    assert_products_are_good(None, bits, [w], None, y_bits, dtype=dtype, columns=c)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", [None, torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_matvec_over_many_tiles_is_as_good_as_torch(x_dtype, dtype):
    n, m = 700, 530
    bits, y_bits = random_bits(n, SHAPE), random_bits(m, SHAPE, seed=1)
    x = y = None
    if x_dtype is not None:
        x, y = rows_of(n, 20, 0, x_dtype), rows_of(m, 20, 1, x_dtype)
    # Up to 24 columns are multiplied block by block, more by torch.
    vs = [rows_of(m, columns, 2, dtype) for columns in (10, 24, 25)]
    assert_products_are_good(x, bits, vs, y, y_bits, dtype=dtype)
    vs = [rows_of(n, columns, 3, dtype) for columns in (1, 2, 3, 4, 5, 24, 25)]
    assert_products_are_good(x, bits, vs, dtype=dtype)


def test_bfloat16_inputs_are_converted():
    bits, v = random_bits(300, SHAPE), rows_of(300, 2)
    x = rows_of(300, 784, dtype=torch.bfloat16)
    assert_products_are_good(x, bits, [v], dtype=torch.float32)
    assert npk_matvec(x, bits, v.bfloat16()).dtype == torch.float32


def test_a_vector_gives_a_vector():
    x, v = rows_of(5, 3), rows_of(5, 1)
    assert_same_bits(npk_matvec(x, BITS, v[:, 0]), npk_matvec(x, BITS, v)[:, 0])


def test_v_and_x_may_have_any_strides():
    bits = random_bits(300, SHAPE)
    x, v = rows_of(300, 12), rows_of(300, 6)
    expanded = v[:, :1].expand(300, 6)
    assert_products_are_good(x.T.contiguous().T, bits, [v.T.contiguous().T, expanded], dtype=torch.float32)
    assert_products_are_good(torch.cat([x, x], 1)[:, :12], bits, [v], dtype=torch.float32)
    for _ in every_set():
        assert_same_bits(npk_matvec(x, bits, torch.stack([v, v], -1)[..., 0]), npk_matvec(x, bits, v))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "m", "c"), [(0, 4, 3), (5, 0, 3), (5, 4, 0), (0, 0, 0)])
def test_empty_problems_give_zeros(n, m, c):
    x, y, v = rows_of(n, 3), rows_of(m, 3), rows_of(m, c)
    assert_same_bits(npk_matvec(x, BITS[:n], v, y, Y_BITS[:m]), torch.zeros(n, c))
    assert_same_bits(npk_matvec(None, BITS[:n], v, None, Y_BITS[:m]), torch.zeros(n, c))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_threads_and_repetition_do_not_change_a_bit(dtype):
    bits, y_bits = random_bits(700, SHAPE), random_bits(600, SHAPE, seed=1)
    x, y = rows_of(700, 50, dtype=dtype), rows_of(600, 50, 1, dtype)
    v, w = rows_of(700, 7, 2, dtype), rows_of(600, 7, 3, dtype)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            found.append((npk_matvec(x, bits, v, dtype=dtype), npk_matvec(x, bits, w, y, y_bits, dtype=dtype)))
    for symmetric, rectangular in found[1:]:
        assert_same_bits(symmetric, found[0][0])
        assert_same_bits(rectangular, found[0][1])


# --- derivatives --------------------------------------------------------------------------------------------


class Ours:
    npk_matvec = staticmethod(npk_matvec)


def symmetric(library):
    return lambda x, v: library.npk_matvec(x, BITS, v, dtype=torch.float64)


def rectangular(library):
    return lambda x, v, y: library.npk_matvec(x, BITS, v, y, Y_BITS, dtype=torch.float64)


def gates_alone(library):
    return lambda v: library.npk_matvec(None, BITS, v, None, Y_BITS, dtype=torch.float64)


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return rows_of(*shape, seed, torch.float64).requires_grad_()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (symmetric, [(5, 3), (5, 2)]),
        (rectangular, [(5, 3), (4, 2), (4, 3)]),
        (gates_alone, [(4, 2)]),
    ],
)
def test_first_and_second_derivatives_are_right(function, inputs):
    tensors = tuple(doubles(*shape, seed=seed) for seed, shape in enumerate(inputs))
    assert torch.autograd.gradcheck(function(Ours), tensors)
    assert torch.autograd.gradgradcheck(function(Ours), tensors)


def test_derivatives_with_a_vector_are_right():
    x, v = doubles(5, 3), doubles(5, 1, seed=1).detach()[:, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(symmetric(Ours), (x, v))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("square", [True, False])
def test_gradients_over_many_tiles_are_as_good_as_torch(square):
    n, m = 530, 530 if square else 270
    bits, y_bits = random_bits(n, SHAPE), None if square else random_bits(m, SHAPE, seed=1)

    def gradients(library, dtype):
        x, v = rows_of(n, 40).to(dtype).requires_grad_(), rows_of(m, 3, 2).to(dtype).requires_grad_()
        y = None if square else rows_of(m, 40, 1).to(dtype).requires_grad_()
        library.npk_matvec(x, bits, v, y, y_bits, dtype=dtype).sin().sum().backward()
        return [x.grad, v.grad] if square else [x.grad, v.grad, y.grad]

    wide = gradients(reference, torch.float64)
    for ours, torchs, truth in zip(
        gradients(Ours, torch.float32), gradients(reference, torch.float32), wide, strict=True
    ):
        assert_as_good_as_torch(ours, torchs, truth)


def same_under(transform) -> None:
    """Checks that transform(library) is the same, and not 0, for gatedops and for plain torch."""
    ours, truth = transform(Ours), transform(reference)
    assert truth.abs().max() > 0
    assert_close_in_float64(ours, truth)


def test_torch_func_transforms_are_right():
    x, v, y = (rows_of(*shape, seed, torch.float64) for seed, shape in enumerate([(5, 3), (4, 2), (4, 3)]))
    tangents = tuple(rows_of(*shape, seed, torch.float64) for seed, shape in enumerate([(5, 3), (4, 2), (4, 3)], 5))
    u = rows_of(5, 2, 9, torch.float64)
    same_under(lambda library: torch.func.jvp(rectangular(library), (x, v, y), tangents)[1])
    for index in range(3):
        same_under(lambda library, i=index: torch.func.vjp(rectangular(library), x, v, y)[1](u)[i])
        same_under(
            lambda library, i=index: torch.func.grad(lambda *a: rectangular(library)(*a).sin().sum(), argnums=i)(
                x, v, y
            )
        )
    same_under(lambda library: torch.func.jvp(gates_alone(library), (v,), (tangents[1],))[1])
    same_under(lambda library: torch.func.hessian(lambda z: symmetric(library)(z, u).sin().sum())(x))


def test_vmap_is_right():
    x, v = rows_of(15, 3, 0, torch.float64).view(3, 5, 3), rows_of(15, 2, 1, torch.float64).view(3, 5, 2)
    same_under(lambda library: torch.func.vmap(symmetric(library))(x, v))
    same_under(lambda library: torch.func.vmap(lambda w: symmetric(library)(x[0], w))(v))
    same_under(lambda library: torch.func.vmap(lambda w: symmetric(library)(x[0], w), in_dims=1)(v.movedim(0, 1)))
    same_under(lambda library: torch.func.vmap(torch.func.grad(lambda z, w: symmetric(library)(z, w).sum()))(x, v))


# --- memory, and other processors ---------------------------------------------------------------------------

LARGE = """
from gatedops import npk_diag, npk_gram, npk_matvec
x, bits = rows_of({}, {}, dtype=torch.{}), random_bits({}, dense(32))
"""
# What must not be copied is twice the workspace or more; the portable ops have a larger workspace.
ROWS, N = (8000, 6000) if WORKSPACE_MIB < 128 else (16000, 10000)
GRAM_MIB = N * N * 4 // 2**20 + 1
# Maps a name to the rows and columns of x, its dtype, the call for the first n rows, and the MiB of the result.
CALLS = {
    # 8000 rows are 64 MiB of bfloat16 and 128 MiB of float32.
    "a Gram of a large bfloat16 x": (ROWS, 4096, "bfloat16", "npk_gram(x[:n], bits[:n], x[:9], bits[:9])", 1),
    "a Gram of a large uint8 x": (ROWS, 16000, "uint8", "npk_gram(x[:n], bits[:n], x[:9], bits[:9])", 1),
    "a normalized Gram of a large x": (
        ROWS,
        4096,
        "float32",
        "npk_gram(x[:n], bits[:n], x[:9], bits[:9], normalize=True)",
        1,
    ),
    "a diagonal of a large bfloat16 x": (ROWS, 4096, "bfloat16", "npk_diag(x[:n], bits[:n])", 1),
    "a diagonal of a large uint8 x": (ROWS, 16000, "uint8", "npk_diag(x[:n], bits[:n])", 1),
    "a symmetric Gram": (N, 4, "float32", "npk_gram(x[:n], bits[:n])", GRAM_MIB),
    "a matvec": (N, 4, "float32", "npk_matvec(x[:n], bits[:n], x[:n])", 1),
    "the gradient of a symmetric Gram": (
        N,
        4,
        "float32",
        "npk_gram(x[:n].requires_grad_(), bits[:n]).backward(x[:1, :1].expand(n, n))",
        GRAM_MIB,
    ),
}


@needs_proc
@pytest.mark.parametrize("what", CALLS)
def test_workspace_is_below_64_mib(what):
    n, d, dtype, call, result_mib = CALLS[what]
    assert peak_mib(LARGE.format(n, d, dtype, n), call, sizes=(300, n)) < WORKSPACE_MIB + result_mib


@pytest.mark.parametrize("instructions", ["SSE41", "AVX2", "AVX512_CORE"])
def test_uint8_inputs_are_multiplied_exactly_on_processors_without_vnni(instructions):
    # On such a processor torch's int8 products saturate. The variable makes its oneDNN take that processor's path.
    script = """
import torch
from gatedops import npk_gram, pack_gates
for d in (31, 100, 1024):
    x = torch.randint(0, 256, (150, d), dtype=torch.uint8)
    x[:9], x[9:20] = 255, 0
    gram = npk_gram(x, pack_gates(torch.ones(150, 1)), dtype=torch.float64)
    print(bool(gram.long().equal(x.long() @ x.long().T)))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True"] * 3
