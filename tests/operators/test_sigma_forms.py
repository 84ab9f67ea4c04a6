"""Each form of Sigma is found where it should be, and is as exact as products of float32."""

from __future__ import annotations

import pytest
import torch
from strategies import dense, generator, random_bits, rows_of
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits

from gatedops import NPKOperator, npk_gram, pack_gates

pytestmark = pytest.mark.usefixtures("one_thread")

N, D = 90, 30


def counts(n=N, d=D, seed=0, most=255):
    made = torch.randint(0, most + 1, (n, d), generator=generator(seed))
    return torch.where(torch.rand(n, d, generator=generator(seed + 1)) < 0.5, made, 0).float()


def low_rank(n=N, d=D, r=7, seed=0):
    return rows_of(n, r, seed) @ rows_of(r, d, 99)


def one_large(n=N, d=D):
    x = rows_of(n, d)
    x[torch.arange(n), torch.arange(n) % d] *= 3e4
    return x


MULTIPLES = {
    "ToTensor": (counts() / 255, 1 / 255),
    "halves": (counts() / 256, 1 / 256),
    "whole": (counts(), 1.0),
    "twice": (counts() / 255 * 2, 2 / 255),
    "rounded twice": (counts() / 255 * 0.3, 0.3 / 255),
    "times a rounded number": (counts() * torch.tensor(1 / 255), float(torch.tensor(1 / 255))),
    "float64": (counts().double() / 255, 1 / 255),
    "half precision": ((counts(most=7) / 8).half(), 1 / 8),
    "large": (counts() * 1000.0, 1000.0),
    "no 255": ((counts(most=101) / 255), 1 / 255),
    "binary": ((counts(most=1) * 0.7), 0.7),
    "one value": (torch.full((N, D), 0.3), 0.3),
    "few": (torch.eye(N)[:, :D] * 3 / 255, 3 / 255),
    "rare": (torch.where(torch.arange(N * D).view(N, D) == 997, 7.0, 14.0), 7.0),
    "empty columns": (torch.cat([counts() / 255, torch.zeros(N, 9)], 1), 1 / 255),
    "zeros": (torch.zeros(N, D), 1.0),
}
OTHERS = {
    "random": rows_of(N, D),
    "positive": rows_of(N, D).abs(),
    "negative": -counts(),
    "256": counts(most=256).clamp_min(1),
    "one off": torch.where(torch.arange(N * D).view(N, D) == 997, 3.00001 / 255, counts() / 255),
    "normalized": (counts() / 255 - 0.13) / 0.3,
    "large numbers": one_large(),
    "low rank": low_rank(),
    "nearly low rank": low_rank() + 1e-6 * rows_of(N, D, 5),
    "few rows of low rank": low_rank(n=20),
    "small": counts() * 1e-25,
}
KINDS = {"low rank": "factor", "nearly low rank": "factor"}
CASES = {name: (x, "multiples", scale) for name, (x, scale) in MULTIPLES.items()}
CASES |= {name: (x, KINDS.get(name, "floats"), 1.0) for name, x in OTHERS.items()}


def split(x, two):
    """The inputs of both sides, and gates that are all on, so that the kernel is Sigma, and others."""
    n = len(x) // 2 if two else len(x)
    for bits in (pack_gates(torch.ones(len(x), 1)), random_bits(len(x), dense(65, 30), density=0.8)):
        yield (bits[:n], x[:n], bits[n:], x[n:]) if two else (bits, x, None, None)


@pytest.mark.parametrize("two", [False, True], ids=["symmetric", "rectangular"])
@pytest.mark.parametrize("name", CASES)
def test_forms_are_found_and_as_exact_as_float32(name, two):
    x, kind, scale = CASES[name]
    before = x.clone()
    for bits, left, y_bits, right in split(x, two):
        op = NPKOperator(bits, left, y_bits, right)
        assert op.sigma.kind == kind
        assert op.sigma.scale == pytest.approx(scale, rel=2e-7)
        low, exact = (
            npk_gram(left.to(dtype), bits, None if right is None else right.to(dtype), y_bits, dtype=dtype)
            for dtype in (torch.float32, torch.float64)
        )
        assert_as_good_as_torch(op.to_dense(), low, exact)
        v = rows_of(op.shape[1], 3, 8)
        assert_as_good_as_torch(op @ v, low @ v, exact @ v.double())
        if not two:
            assert_as_good_as_torch(op.diag(), low.diagonal(), exact.diagonal())
    assert_same_bits(x, before)


def test_both_sides_share_one_number():
    # The rows alone are multiples of 1/255, and the columns of 2/255.
    x, y = counts() / 255, counts(40, seed=5).mul(2).clamp_max(254) / 255
    bits, y_bits = random_bits(N, dense(40)), random_bits(40, dense(40), seed=1)
    op = NPKOperator(bits, x, y_bits, y)
    assert op.sigma.scale == 1 / 255
    assert NPKOperator(y_bits, y).sigma.scale == pytest.approx(2 / 255, rel=2e-7)
    assert_close_in_float64(
        op.with_dtype(torch.float64) @ torch.ones(40, 1).double(),
        npk_gram(
            (255 * x.double()).round() / 255, bits, (255 * y.double()).round() / 255, y_bits, dtype=torch.float64
        ).sum(1, keepdim=True),
    )
    # One side that is not a multiple makes both sides floats.
    assert NPKOperator(bits, x, y_bits, rows_of(40, D)).sigma.kind == "floats"


def test_float64_results_need_inputs_that_are_multiples_in_float64():
    bits = random_bits(N, dense(40))
    assert NPKOperator(bits, counts() / 255, dtype=torch.float64).sigma.kind == "floats"
    op = NPKOperator(bits, counts().double() / 255, dtype=torch.float64)
    assert op.sigma.kind == "multiples"
    assert_close_in_float64(op.to_dense(), npk_gram(counts().double() / 255, bits, dtype=torch.float64))
    assert NPKOperator(bits, low_rank(), dtype=torch.float64).sigma.kind == "floats"


def test_bytes_and_no_inputs_stay_as_they_are():
    bits = random_bits(N, dense(40))
    assert NPKOperator(bits).sigma.kind == "none"
    x = counts().to(torch.uint8)
    op = NPKOperator(bits, x)
    assert op.sigma.kind == "bytes"
    assert op.sigma.x.data_ptr() == x.data_ptr()


def test_inputs_that_need_a_gradient_are_used_as_they_are():
    x = (counts() / 255).requires_grad_()
    op = NPKOperator(random_bits(N, dense(40)), x)
    assert op.sigma.kind == "floats"
    assert op.sigma.x is x


def test_digits_are_allowed_for_float32_results_alone(monkeypatch):
    seen = []
    from gatedops.operators import parts

    whole = parts.kernel_product
    monkeypatch.setattr(
        parts, "kernel_product", lambda *args, **options: seen.append(options["digits"]) or whole(*args, **options)
    )
    bits = random_bits(N, dense(40))
    for x, dtype in [
        (rows_of(N, D), torch.float32),
        (rows_of(N, D).double(), torch.float32),
        (low_rank(), torch.float32),
        (rows_of(N, D), torch.float64),
        (counts() / 255, torch.float32),
        (None, torch.float32),
    ]:
        op = NPKOperator(bits, x, dtype=dtype)
        op @ torch.ones(N)
        assert op.sigma.digits == seen[-1]
        if op.sigma.digits:
            assert op.sigma.x.dtype == torch.float32
    assert seen == [True, True, True, False, False, False]


def test_deep_kernels_near_the_end_of_the_range_keep_their_floats():
    # Lambda is around 1e-36 here, and times 1/255^2 it would lose digits.
    bits = random_bits(20, dense(*[64] * 60))
    x = counts(20) / 255 * 1e3
    assert NPKOperator(bits, x, scale=[1 / 16] * 60).sigma.kind == "multiples"
    assert NPKOperator(bits, x / 1e3, scale=[1 / 130] * 60).sigma.kind == "floats"
    assert NPKOperator(bits, x / 1e3, scale=[1 / 130] * 60, normalize=True).sigma.kind == "multiples"


@pytest.mark.parametrize("number", [1e-200, 1e200])
def test_numbers_whose_square_leaves_the_range_keep_their_floats(number):
    operator = NPKOperator(random_bits(N, dense(16)), number * counts().double(), dtype=torch.float64)
    assert operator.sigma.kind == "floats"


def test_the_representation_says_how_sigma_is_computed():
    bits = random_bits(N, dense(40, 7))
    told = {
        "none": (None, "Sigma: left out, the kernel is Lambda"),
        "bytes": (counts().to(torch.uint8), "Sigma: exact, from bytes"),
        "ToTensor": (counts() / 255, "Sigma: exact, from bytes times 1/255"),
        "whole": (counts(), "Sigma: exact, x holds whole numbers that are stored as bytes"),
        "other": (counts(most=1) * 0.7, "Sigma: exact, from bytes times 0.699999988"),
        "factor": (low_rank(), "Sigma: from floats, or digits of 8 bits, of a factor with 7 instead of 30 columns"),
        "floats": (rows_of(N, D), "Sigma: from floats, or digits of 8 bits"),
        "float64": (rows_of(N, D).requires_grad_(), "Sigma: from floats, or digits of 8 bits; x may change"),
    }
    for x, text in told.values():
        assert repr(NPKOperator(bits, x)) == (
            f"NPKOperator(90 x 90 symmetric float32 on cpu; layers: [40, 7]; scale: width; {text}; Gram: not stored)"
        )


def test_a_scale_keeps_memory(monkeypatch):
    """The search reads x in pieces, and looks at few numbers first."""
    from gatedops.operators import sigma

    monkeypatch.setattr(sigma, "_DIVIDED", 64)
    monkeypatch.setattr(sigma, "_MULTIPLIED", 64)
    monkeypatch.setattr(sigma, "_SAMPLED", 8)
    for x, kind, scale in CASES.values():
        found = sigma.sigma_of(x, None, torch.float32, lambda number: 1e-38 < number < 1e38)
        assert found.kind == kind
        assert found.scale == pytest.approx(scale, rel=2e-7)
