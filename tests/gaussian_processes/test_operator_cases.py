"""The operators of gatedops.gpytorch pass the tests that linear_operator has for its own operators.

The reference, `dense_of`, multiplies unpacked gates. It is differentiable in the tensors that an operator holds.
"""

from __future__ import annotations

from unittest import TestCase

import pytest
import torch

from gatedops import GateBits, NPKOperator

gpytorch = pytest.importorskip("gatedops.gpytorch")
cases = pytest.importorskip("linear_operator.test.linear_operator_test_case")

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS = (40, 33)
COLUMNS = 9


@pytest.fixture(autouse=True)
def _fast_computations():
    """Turns on what the import of BoTorch turns off for all: conjugate gradients and Lanczos."""
    with pytest.importorskip("linear_operator").settings.fast_computations():
        yield


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def side(rows, seed, *batch):
    """Returns inputs, words and layers of a batch of inputs."""
    total = rows * torch.Size(batch).numel()
    bits = GateBits.pack([drawn(total, width, seed=seed + width) for width in WIDTHS])
    return drawn(*batch, rows, COLUMNS, seed=seed), bits.words.reshape(*batch, rows, -1), bits.layers


def dense_of(operator):
    flat = [held.reshape(operator.batch_shape.numel(), *held.shape[-2:]) for held in operator.representation()]
    layers = operator._kwargs["layers"]
    found = []
    for sides in zip(*flat, strict=True):
        x, y = sides[0], sides[-2]
        gates, others = (GateBits(words, layers).unpack() for words in (sides[1], sides[-1]))
        gram = x @ y.mT if x.shape[1] else 1 + x @ y.mT
        for one, other in zip(gates, others, strict=True):
            gram = gram * (one.to(x.dtype) @ other.to(x.dtype).mT) / one.shape[1]
        found.append(gram)
    return torch.stack(found).reshape(operator.shape)


class Square(cases.LinearOperatorTestCase):
    seed = 0  # It draws the right sides, and the vectors with which the library estimates determinants.
    batch: tuple[int, ...] = ()

    def create_linear_op(self):
        x, words, layers = side(5, 3, *self.batch)
        return gpytorch.NPKLinearOperator(x.requires_grad_(True), words, layers=layers)

    def evaluate_linear_op(self, linear_op):
        return dense_of(linear_op)


class TestOneMatrix(Square, TestCase):
    pass


class TestBatch(Square, TestCase):
    batch = (2,)


class TestBatchOfBatches(Square, TestCase):
    batch = (3, 2)


class TestWithoutInputs(Square, TestCase):
    def create_linear_op(self):
        _, words, layers = side(5, 3)
        return gpytorch.NPKLinearOperator.of(NPKOperator(GateBits(words, layers)))


class TestOpaque(cases.LinearOperatorTestCase, TestCase):
    """An opaque operator times a number that needs a gradient, because it has no gradient of its own."""

    seed = 0

    def create_linear_op(self):
        soft = NPKOperator.soft([drawn(5, 7, seed=1).abs(), drawn(5, 8, seed=2).abs()], drawn(5, COLUMNS))
        return gpytorch.OpaqueLinearOperator(soft) * torch.tensor(1.5, requires_grad=True)

    def evaluate_linear_op(self, linear_op):
        (number,) = linear_op.representation()
        return linear_op.base_linear_op.kernel_operator.to_dense() * number


class Rectangle(cases.RectangularLinearOperatorTestCase):
    seed = 0
    batch: tuple[int, ...] = ()

    def create_linear_op(self):
        x, words, layers = side(5, 3, *self.batch)
        y, y_words, _ = side(7, 4, *self.batch)
        return gpytorch.NPKLinearOperator(x, words, y, y_words, layers=layers)

    def evaluate_linear_op(self, linear_op):
        return dense_of(linear_op)


class TestTwoSides(Rectangle, TestCase):
    pass


class TestBatchOfTwoSides(Rectangle, TestCase):
    batch = (2,)


class TestOpaqueTwoSides(cases.RectangularLinearOperatorTestCase, TestCase):
    seed = 0

    def create_linear_op(self):
        soft = NPKOperator.soft([drawn(5, 7, seed=1).abs()], drawn(5, 3), [drawn(6, 7, seed=2).abs()], drawn(6, 3))
        return gpytorch.OpaqueLinearOperator(soft) * torch.tensor(1.5, requires_grad=True)

    def evaluate_linear_op(self, linear_op):
        (number,) = linear_op.representation()
        return linear_op.base_linear_op.kernel_operator.to_dense() * number
