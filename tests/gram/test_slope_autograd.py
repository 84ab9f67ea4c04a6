"""Derivatives of Grams with slopes exist to any order, and torch.compile takes slopes (docs/math.md, section 7)."""

from __future__ import annotations

import pytest
import torch
from strategies import dense, random_bits, rows_of
from tolerances import assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch.library import opcheck

from gatedops import npk_diag, npk_gram, npk_matvec, reference

BITS, Y_BITS = random_bits(5, dense(6, 9)), random_bits(4, dense(6, 9), seed=1)
OPS = torch.ops.gatedops


class Ours:
    npk_gram = staticmethod(npk_gram)
    npk_matvec = staticmethod(npk_matvec)


def doubles(n: int, d: int, seed: int = 0) -> Tensor:
    return rows_of(n, d, seed, torch.float64).requires_grad_()


def two_sided(library, **options):
    options = {"slope": [-0.4, 0.1], "dtype": torch.float64, **options}
    return lambda x, y: library.npk_gram(x, BITS, y, Y_BITS, **options)


@pytest.mark.usefixtures("isa")
def test_first_and_second_derivatives_are_right():
    x, y, v = doubles(5, 3), doubles(4, 3, 1), doubles(5, 2, 2)

    def product(a, b):
        return npk_matvec(a, BITS, b, slope=[-0.4, 0.0], dtype=torch.float64)

    assert torch.autograd.gradcheck(two_sided(Ours), (x, y))
    assert torch.autograd.gradcheck(product, (x, v))
    assert torch.autograd.gradgradcheck(product, (x, v))


@pytest.mark.parametrize("normalize", [False, True])
def test_derivatives_of_any_order_and_mode_are_those_of_the_reference(normalize):
    x, y, u = (rows_of(n, 3, seed, torch.float64) for n, seed in ((5, 0), (4, 1), (5, 2)))

    def third(library):
        z = doubles(5, 3)
        value = (library.npk_gram(z, BITS, slope=0.3, normalize=normalize, dtype=torch.float64) ** 3).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, z, create_graph=True)
            value = (grad**2).sum()
        return grad.detach()

    def tangent(library):
        return torch.func.jvp(lambda z: two_sided(library, normalize=normalize)(z, y), (x,), (u,))[1]

    def of_matvec(library):
        def value(a, b, c):
            return library.npk_matvec(a, BITS, c, b, Y_BITS, slope=-0.3, dtype=torch.float64).sin().sum()

        grads = torch.func.grad(value, argnums=(0, 1, 2))(x, y, rows_of(4, 2, 4, torch.float64))
        return torch.cat([grad.flatten() for grad in grads])

    for transform in (third, tangent, of_matvec):
        ours, truth = transform(Ours), transform(reference)
        assert truth.abs().max() > 0
        assert_close_in_float64(ours, truth)


def test_ops_pass_opcheck_and_compile_to_the_same_bits():
    x, v, grad = rows_of(5, 3).requires_grad_(), rows_of(5, 2).requires_grad_(), rows_of(5, 5).requires_grad_()
    layers, slopes = ([0, 8], [0, 8], [1, 1], [0.5, 0.25]), ([0.5, -1.0], [6, 9])
    words = BITS.words
    opcheck(OPS.npk_gram, (x, words, None, None, None, None, *layers, torch.float32, *slopes))
    opcheck(OPS.npk_matvec, (x, words, None, None, v, *layers, *slopes))
    opcheck(OPS.npk_gram_backward, (grad, words, x, None, *layers, *slopes))
    opcheck(OPS.npk_diag, (words, *layers[1:], torch.float32, *slopes))
    opcheck(OPS.gate_neighbors, (words, None, *layers, 2, torch.float32, *slopes))
    opcheck(OPS.npk_gram_out, (x.detach(), words, None, None, None, None, *layers, *slopes), {"out": torch.zeros(5, 5)})

    def loss(x, bits):
        return npk_gram(x, bits, slope=[0.1, -1.0]).sin().sum() + npk_diag(x, bits, slope=0.1).sum()

    torch._dynamo.reset()
    ours = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, BITS), x)[0]
    assert_same_bits(ours, torch.autograd.grad(loss(x, BITS), x)[0])
