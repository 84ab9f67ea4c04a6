"""npk_product multiplies float32 Grams with vectors and sums in float64; Sigma of bytes and of digits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from instruction_sets import every_set
from strategies import dense, examples, nets, random_bits, rows, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch_threads import threads

from gatedops import GateBits, backends, npk_gram
from gatedops.ops.gram_product import kernel_product

LAYERS = dense(128, 70, 300)
# Digits are used from 128 columns on, and a step of the registers has 64 of them.
DEPTHS = (128, 200, 784)


def product(x, bits, v, y=None, y_bits=None, **options) -> torch.Tensor:
    return kernel_product(x, bits, v, y, y_bits, factors=[1 / width for width in bits.widths], **options)


def vectors(n: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, columns, dtype=dtype, generator=torch.Generator().manual_seed(columns))


def bytes_of(n: int, depth: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, depth), dtype=torch.uint8, generator=torch.Generator().manual_seed(depth))


@given(data=seeds, layers=nets, n=rows, m=rows)
@examples(25)
def test_products_sum_the_float32_gram_in_float64(data, layers, n, m):
    """Lambda has the same bits everywhere, so only the order of the float64 sums is free."""
    bits, y_bits = random_bits(n, layers, data), random_bits(m, layers, data + 1)
    for right in (None, y_bits):
        gram = npk_gram(None, bits, None, right).double()
        v = vectors(gram.shape[1], 3)
        for _ in every_set():
            for dtype in (torch.float32, torch.float64):
                given_v = v.to(dtype)
                assert_close_in_float64(product(None, bits, given_v, None, right), gram @ given_v.double())


@pytest.mark.parametrize("columns", [0, 1, 10, 11, 96, 97, 200])
def test_any_number_of_columns(columns):
    bits = random_bits(300, LAYERS)
    gram, v = npk_gram(None, bits).double(), vectors(300, columns)
    assert_close_in_float64(product(None, bits, v), gram @ v)
    side = v.float()
    found, truth = product(None, bits, side), gram @ side.double()
    if columns <= 24:
        assert_close_in_float64(found, truth)
    else:  # A tile's sums are in float32.
        baseline = npk_gram(None, bits) @ side
        assert_as_good_as_torch(found.float(), baseline, truth)


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 784, 2100, 33_000])
def test_sigma_of_bytes_is_exact(depth):
    """33,000 products of bytes do not fit int32."""
    n, m = (90, 40) if depth > 2048 else (300, 100)
    bits, y_bits, x, y = random_bits(n, LAYERS), random_bits(m, LAYERS, 1), bytes_of(n, depth), bytes_of(m, depth)
    x[0], y[0] = 255, 255
    whole = (x.double() @ y.double().T).float() * npk_gram(None, bits, None, y_bits)
    v = vectors(m, 2, torch.float32)
    found = []
    for _ in every_set():
        assert_same_bits(npk_gram(x, bits, y, y_bits), whole)
        assert_same_bits(npk_gram(x.T.contiguous().T, bits, y, y_bits), whole)
        found.append(product(x, bits, v, y, y_bits))
    assert_close_in_float64(found[0], whole.double() @ v.double())
    for other in found[1:]:
        assert_same_bits(other, found[0])


def digits_bound(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Returns how far an entry of Sigma may be off by digits alone (docs/math.md, section 15)."""
    x, y = x.double().abs(), y.double().abs()
    largest, other = x.amax(1)[:, None], y.amax(1)
    rounded = 2.0**-22.98 * (largest * y.sum(1) + x.sum(1)[:, None] * other)
    return rounded + x.shape[1] * 2.0**-30 * largest * other


def rows_of_any_size(n: int, depth: int, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, depth, generator=made) * 10.0 ** torch.randint(-6, 6, (n, 1), generator=made)
    x[1] = 0.0
    x[2] = torch.randn(depth, generator=made) * 10.0 ** torch.randint(-9, 9, (depth,), generator=made)
    x[3], x[4], x[5] = 1.0, -1.0, 0.99999994
    x[6] = torch.randn(depth, generator=made) * 1e-41
    # Equal numbers have equal digits, whose products add up.
    x[7] = 2.0**-9 * (1 + 100 / 2**14)
    x[8] = x[7]
    x[8, 3] = 1.0
    return x


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_sigma_of_digits_is_within_its_bound(depth, symmetric):
    n, m = 300, 300 if symmetric else 130
    everything = GateBits.pack([torch.ones(n, 1, dtype=torch.bool)])
    x = rows_of_any_size(n, depth, 0)
    y = x if symmetric else rows_of_any_size(m, depth, 1)
    sides = (None, None) if symmetric else (y, everything[:m])
    unit = torch.eye(m)
    truth = x.double() @ y.double().T
    allowed = digits_bound(x, y) + 2.0**-24 * truth.abs()
    for _ in every_set():
        error = (product(x, everything, unit, *sides, digits=True) - truth).abs()
        # Products of floats, which other sets use, have an error of their own.
        floats = (npk_gram(x, everything, *sides).double() - truth).abs()
        assert (error <= torch.maximum(allowed, floats)).all()


@pytest.mark.skipif("amx" not in backends.available_isas(), reason="only AMX multiplies digits")
@pytest.mark.cpu_kernels
def test_digits_are_used_where_they_can_be():
    """With whole numbers of three digits the products differ from those of floats, which round them."""
    x = torch.full((64, 128), 8_355_711.0)
    bits = GateBits.pack([torch.ones(64, 1, dtype=torch.bool)])
    exact = 128 * 8_355_711**2
    unit = torch.eye(64)
    with backends.force_cpu("amx"):
        found = product(x, bits, unit, digits=True)
        assert 0 < (found - exact).abs().max() <= digits_bound(x, x).max()
        assert not torch.equal(found, product(x, bits, unit))
        assert_same_bits(product(x[:, :127], bits, unit, digits=True), product(x[:, :127], bits, unit))
        x[3, 7] = torch.inf
        assert_same_bits(product(x, bits, unit, digits=True), product(x, bits, unit))


@pytest.mark.parametrize("digits", [False, True])
def test_the_bits_do_not_depend_on_threads(digits):
    bits, x, v = random_bits(700, LAYERS), torch.randn(700, 200), vectors(700, 5)
    with threads(1):
        alone = product(x, bits, v, digits=digits)
    with threads(2):
        assert_same_bits(product(x, bits, v, digits=digits), alone)


def test_float64_keeps_the_digits_of_v():
    bits = random_bits(50, LAYERS)
    v = 1 + 2.0**-40 * torch.arange(50, dtype=torch.float64)[:, None]
    gram = npk_gram(None, bits).double()
    assert ((product(None, bits, v) - gram @ v).abs() < 1e-14 * (gram @ v)).all()


@pytest.mark.parametrize("size", [1e-300, 1e-45, 1e-38, 1.0, 1e39, 1e290])
def test_float64_vectors_of_any_size(size):
    """One column is so much smaller than another that float32 could not hold both."""
    bits = random_bits(50, LAYERS)
    gram, v = npk_gram(None, bits).double(), vectors(50, 2) * torch.tensor([size, 1.0], dtype=torch.float64)
    found = product(None, bits, v)
    for column in range(2):
        assert_close_in_float64(found[:, column], gram @ v[:, column])


def test_vectors_that_are_not_finite_give_nan():
    v = vectors(50, 2)
    v[3, 0] = torch.inf
    found = product(None, random_bits(50, dense(9)), v)
    assert not found[:, 0].isfinite().any()
    assert found[:, 1].isfinite().all()
