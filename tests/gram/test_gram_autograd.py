"""Derivatives of npk_gram (docs/math.md, section 7) exist to any order, in both modes, under torch.func, in any
dtype."""

from __future__ import annotations

import pytest
import torch
from gram_problems import SHAPE
from strategies import dense, random_bits, rows_of
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops import npk_diag, npk_gram, reference

pytestmark = [
    pytest.mark.usefixtures("isa"),
    # torch warns of itself, because vmap calls the ops one by one.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

# Small layers have pairs without overlap, but most pairs have some.
BITS, Y_BITS = random_bits(5, dense(6, 9)), random_bits(4, dense(6, 9), seed=1)


def doubles(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return rows_of(n, d, seed, torch.float64).requires_grad_()


def symmetric(library, normalize=False):
    return lambda x: library.npk_gram(x, BITS, normalize=normalize, dtype=torch.float64)


def rectangular(library, normalize=False):
    return lambda x, y: library.npk_gram(x, BITS, y, Y_BITS, normalize=normalize, dtype=torch.float64)


class Ours:
    npk_gram = staticmethod(npk_gram)


@pytest.mark.parametrize("normalize", [False, True])
def test_first_and_second_derivatives_of_the_symmetric_gram_are_right(normalize):
    gram, x = symmetric(Ours, normalize), doubles(5, 3)
    assert torch.autograd.gradcheck(gram, x)
    assert torch.autograd.gradgradcheck(gram, x)


@pytest.mark.parametrize("normalize", [False, True])
def test_first_and_second_derivatives_of_the_rectangular_gram_are_right(normalize):
    gram, x, y = rectangular(Ours, normalize), doubles(5, 3), doubles(4, 3, 1)
    assert torch.autograd.gradcheck(gram, (x, y))
    assert torch.autograd.gradgradcheck(gram, (x, y))


def test_derivatives_of_the_diagonal_are_right():
    def diagonal(x):
        return npk_diag(x, BITS, dtype=torch.float64)

    x = doubles(5, 3)
    assert torch.autograd.gradcheck(diagonal, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(diagonal, x)


def test_a_third_derivative_is_that_of_the_reference():
    def third(library):
        x = doubles(5, 3)
        value = (symmetric(library)(x) ** 3).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, x, create_graph=True)
            value = (grad**2).sum()
        return grad.detach()

    assert_close_in_float64(third(Ours), third(reference))


@pytest.mark.parametrize("which", ["x", "y"])
def test_only_the_input_that_asks_gets_a_gradient(which):
    x, y = rows_of(5, 3, 0, torch.float64), rows_of(4, 3, 1, torch.float64)
    wanted = (x if which == "x" else y).requires_grad_()
    rectangular(Ours)(x, y).sum().backward()
    assert (x.grad is None) == (which == "y")
    assert (y.grad is None) == (which == "x")
    found = wanted.grad.clone()
    wanted.grad = None
    rectangular(reference)(x, y).sum().backward()
    assert_close_in_float64(found, wanted.grad)


def test_a_gram_of_gates_alone_and_of_integers_needs_no_gradient():
    assert not npk_gram(None, BITS).requires_grad
    assert not npk_gram(rows_of(5, 3, dtype=torch.uint8), BITS).requires_grad
    assert not npk_gram(doubles(5, 3).detach(), BITS).requires_grad
    assert npk_gram(doubles(5, 3), BITS).requires_grad


def cotangents(n: int, m: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    g = rows_of(n, m, 7, dtype)
    return {"contiguous": g, "transposed": g.T.contiguous().T, "expanded": g[:1, :1].expand(n, m)}


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("square", [True, False])
def test_gradients_over_many_tiles_are_as_good_as_torch(square, dtype, layout):
    n, m, d = 530, 530 if square else 270, 40
    bits, y_bits = random_bits(n, SHAPE), None if square else random_bits(m, SHAPE, seed=1)
    grad = cotangents(n, m, dtype)[layout]

    def gradients(library, compute):
        x = rows_of(n, d, 0, dtype).to(compute).requires_grad_()
        y = None if square else rows_of(m, d, 1, dtype).to(compute).requires_grad_()
        library.npk_gram(x, bits, y, y_bits, dtype=compute).backward(grad.to(compute))
        return [x.grad] if square else [x.grad, y.grad]

    wide = gradients(reference, torch.float64)
    for ours, torchs, truth in zip(gradients(Ours, dtype), gradients(reference, dtype), wide, strict=True):
        if dtype == torch.float64:
            assert_close_in_float64(ours, truth)
        else:
            assert_as_good_as_torch(ours, torchs, truth)


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_gradients_come_back_in_the_dtype_of_x(x_dtype):
    bits = random_bits(40, SHAPE)

    def gradient(library, compute, dtype):
        x = rows_of(40, 30, 0, x_dtype).to(compute).requires_grad_()
        library.npk_gram(x, bits, dtype=dtype).sum().backward()
        return x.grad

    ours = gradient(Ours, x_dtype, torch.float32)
    assert ours.dtype == x_dtype
    truth = gradient(reference, torch.float64, torch.float64)
    assert_as_good_as_torch(ours, gradient(reference, x_dtype, torch.float32), truth)


def test_threads_and_repetition_do_not_change_a_bit_of_a_gradient():
    bits, y_bits = random_bits(600, SHAPE), random_bits(300, SHAPE, seed=1)
    found = []
    for count in (1, 2, 3, 2):
        x, y = rows_of(600, 50).requires_grad_(), rows_of(300, 50, 1).requires_grad_()
        with threads(count):
            npk_gram(x, bits).sin().sum().backward()
            npk_gram(x, bits, y, y_bits).sin().sum().backward()
        found.append((x.grad, y.grad))
    for x_grad, y_grad in found[1:]:
        assert_same_bits(x_grad, found[0][0])
        assert_same_bits(y_grad, found[0][1])


@pytest.mark.parametrize(("n", "m", "d"), [(0, 4, 3), (5, 0, 3), (5, 4, 0)])
def test_gradients_of_empty_problems_are_zeros(n, m, d):
    x, y = doubles(n, d), doubles(m, d, 1)
    npk_gram(x, BITS[:n], y, Y_BITS[:m], dtype=torch.float64).sum().backward()
    assert_same_bits(x.grad, torch.zeros(n, d, dtype=torch.float64))
    assert_same_bits(y.grad, torch.zeros(m, d, dtype=torch.float64))


def test_a_normalized_gram_has_no_nan_gradient_at_an_empty_row():
    x = rows_of(5, 3, 0, torch.float64)
    x[2] = 0
    x.requires_grad_()
    symmetric(Ours, normalize=True)(x).sum().backward()
    assert x.grad.isfinite().all()


# --- torch.func ---------------------------------------------------------------------------------------------


def same_under(transform) -> None:
    """Checks that transform(library) is the same, and not 0, for gatedops and for plain torch."""
    ours, truth = transform(Ours), transform(reference)
    assert truth.abs().max() > 0
    assert_close_in_float64(ours, truth)


@pytest.mark.parametrize("normalize", [False, True])
def test_jvp_is_right(normalize):
    x, y, u, w = (rows_of(n, 3, seed, torch.float64) for n, seed in [(5, 0), (4, 1), (5, 2), (4, 3)])
    same_under(lambda library: torch.func.jvp(symmetric(library, normalize), (x,), (u,))[1])
    same_under(lambda library: torch.func.jvp(rectangular(library, normalize), (x, y), (u, w))[1])
    same_under(lambda library: torch.func.jvp(lambda z: rectangular(library, normalize)(x, z), (y,), (w,))[1])


def test_forward_mode_with_dual_tensors_is_right():
    import torch.autograd.forward_ad as forward

    def tangent(library):
        with forward.dual_level():
            x = forward.make_dual(rows_of(5, 3, 0, torch.float64), rows_of(5, 3, 1, torch.float64))
            return forward.unpack_dual(symmetric(library)(x)).tangent

    same_under(tangent)


def test_vjp_and_grad_are_right():
    x, y, g = (
        rows_of(5, 3, 0, torch.float64),
        rows_of(4, 3, 1, torch.float64),
        rows_of(5, 4, 2, torch.float64),
    )
    same_under(lambda library: torch.func.vjp(rectangular(library), x, y)[1](g)[0])
    same_under(lambda library: torch.func.vjp(rectangular(library), x, y)[1](g)[1])
    same_under(lambda library: torch.func.grad(lambda z: symmetric(library)(z).sin().sum())(x))


def test_hessian_and_jacobians_are_right():
    x = rows_of(5, 2, 0, torch.float64)
    same_under(lambda library: torch.func.jacrev(symmetric(library))(x))
    same_under(lambda library: torch.func.jacfwd(symmetric(library))(x))
    same_under(lambda library: torch.func.hessian(lambda z: symmetric(library)(z).sin().sum())(x))


def test_vmap_is_right():
    x, y = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    one_x = x[0]
    same_under(lambda library: torch.func.vmap(symmetric(library))(x))
    same_under(lambda library: torch.func.vmap(rectangular(library), in_dims=(0, 1))(x, y))
    same_under(lambda library: torch.func.vmap(lambda z: rectangular(library)(one_x, z), in_dims=1)(y))
    same_under(lambda library: torch.func.vmap(torch.func.grad(lambda z: symmetric(library)(z).sin().sum()))(x))


def test_vmap_over_gates_is_right_or_refused():
    words = torch.stack([random_bits(5, dense(6, 9), seed).words for seed in range(3)])
    x = rows_of(5, 3, 0, torch.float64)
    expected = torch.stack([npk_gram(x, type(BITS)(one, BITS.layers), dtype=torch.float64) for one in words])

    def gram(one):
        return npk_gram(x, type(BITS)(one, BITS.layers), dtype=torch.float64)

    try:
        found = torch.func.vmap(gram)(words)
    except (RuntimeError, ValueError, NotImplementedError):
        return
    assert_same_bits(found, expected)


def test_gradients_reach_parameters_through_the_inputs():
    layer = torch.nn.Linear(4, 3).double()
    data = rows_of(5, 4, 0, torch.float64)
    npk_gram(layer(data), BITS, dtype=torch.float64).sum().backward()
    found = layer.weight.grad.clone()
    layer.zero_grad()
    reference.npk_gram(layer(data), BITS, dtype=torch.float64).sum().backward()
    assert_close_in_float64(found, layer.weight.grad)
