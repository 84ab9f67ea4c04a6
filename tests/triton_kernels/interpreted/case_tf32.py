"""Operands of TF32 products in the interpreter are rounded exactly; cutting them off would not be precise enough."""

import math

import pytest
import torch
import triton
import triton.language as tl
from strategies import special_values

from gatedops.triton.gated_linear_tiles import as_operand

SIZE = 1024
BITS = 13  # TF32 has this many bits less than float32.


@triton.jit
def round_kernel(source, out, PRECISION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out + at, as_operand(tl.load(source + at), PRECISION))


def rounded(values, precision="tf32"):
    padded = torch.zeros(SIZE, dtype=values.dtype)
    padded[: len(values)] = values
    out = torch.empty_like(padded)
    round_kernel[(1,)](padded, out, PRECISION=precision, SIZE=SIZE)
    return out[: len(values)]


def exactly_rounded(value):
    """Rounds to 11 significant bits, ties away from 0, in Python's integers; value is finite."""
    if value == 0:
        return value
    exponent = max(math.frexp(value)[1] - 11, -126 - 10)  # It is that of the last place; subnormals share it.
    places = abs(value) * 2.0**-exponent  # This is exact in float64.
    return math.copysign(math.floor(places + 0.5) * 2.0**exponent, value)


def of_bits(*bits):
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def test_numbers_are_rounded_to_nearest_ties_away_from_zero():
    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 0x7F7FF000, (400,), generator=draw, dtype=torch.int32)
    ties = bits[:100] & -0x2000 | 0x1000
    values = torch.cat([bits, ties, ties - 1, ties + 1]).view(torch.float32)
    values = torch.cat([values[:350], -values[350:]])
    expected = torch.tensor([exactly_rounded(value) for value in values.double().tolist()], dtype=torch.float64)
    assert torch.equal(rounded(values).double(), expected)
    assert (rounded(values).view(torch.int32) & (1 << BITS) - 1 == 0).all()


def test_what_has_no_nearest_number():
    special = special_values(torch.float32)
    found = rounded(special)
    assert torch.equal(found.isnan(), special.isnan())
    # float32's largest number is nearer to infinity.
    assert torch.equal(found.isinf(), special.abs() > of_bits(0x7F7FEFFF))
    assert torch.equal(found.signbit(), special.signbit())
    payloads = of_bits(0x7FFFFFFF, 0xFFFFFFFF, 0x7FC01234, 0x7F801234)
    assert torch.equal(rounded(payloads).view(torch.int32), payloads.view(torch.int32))
    assert rounded(of_bits(0x7F7FEFFF)).item() == of_bits(0x7F7FE000).item()


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, "ieee"), (torch.float16, "tf32")], ids=str)
def test_other_products_take_their_operands_as_they_are(dtype, precision):
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(rounded(values, precision), values)


def test_rounded_operands_keep_the_rule_of_two_baselines_and_cut_ones_do_not():
    """Compares a product of TF32 operands, in float64, with torch's on a GPU, whose operands are rounded to nearest
    even."""
    draw = torch.Generator().manual_seed(2)
    x, weight = torch.randn(256, 512, generator=draw), torch.randn(200, 512, generator=draw)
    exact = x.double() @ weight.double().T

    def error(rounding):
        return (rounding(x).double() @ rounding(weight).double().T - exact).abs().max().item()

    def nearest_even(t):
        bits = t.view(torch.int32)
        return (bits + 0xFFF + (bits >> BITS & 1) & -(1 << BITS)).view(torch.float32)

    def cut(t):
        return (t.view(torch.int32) & -(1 << BITS)).view(torch.float32)

    def ours(t):
        return torch.cat([rounded(piece) for piece in t.flatten().split(SIZE)]).view_as(t)

    allowed = 2 * error(nearest_even)
    assert error(ours) <= 0.6 * allowed
    assert error(cut) > allowed
