"""normalize=True is right for any depth, and a kernel that leaves the range of its dtype is reported."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import pytest
import torch
from gram_problems import FLOATS
from strategies import dense, generator, random_bits, rows_of
from tolerances import FLOAT32_KERNEL, assert_same_bits
from torch import Tensor

from gatedops import GateBits, gate_neighbors, gate_overlap, npk_diag, npk_gram, npk_matvec, reference, soft_npk_gram
from gatedops.ops import gram_range

LIMITS = {torch.float32: FLOAT32_KERNEL, torch.float64: 1e-12}


def alike(n: int, depth: int, width: int, low: float, high: float, seed: int = 0) -> GateBits:
    """Makes gates of inputs that share most of them. The first input has `low` of them on, and the last one `high`."""
    made = generator(seed)
    shares = torch.linspace(low, high, n)[:, None]
    gates = []
    for _ in range(depth):
        common = torch.rand(1, width, generator=made).expand(n, width)
        moved = torch.rand(n, width, generator=made) < 0.01
        gates.append(torch.where(moved, torch.rand(n, width, generator=made), common) < shares)
    return GateBits.pack(gates)


def cosines(bits: GateBits, y_bits: GateBits | None = None, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """Computes the normalized Gram from exact integers of any size."""
    y, y_bits = (x, bits) if y_bits is None else (y, y_bits)
    counts, rows, columns = (
        reference.gate_overlap(*pair).long().tolist() for pair in ((bits, y_bits), (bits, bits), (y_bits, y_bits))
    )
    found = torch.zeros(bits.n, y_bits.n, dtype=torch.float64)
    for i in range(bits.n):
        for j in range(y_bits.n):
            entry = math.prod(layer[i][j] for layer in counts)
            norm = math.prod(layer[i][i] for layer in rows) * math.prod(layer[j][j] for layer in columns)
            if entry and norm:
                cosine = math.sqrt(Fraction(entry**2, norm))
                found[i, j] = cosine if x is None else cosine * cosine_of(x[i], y[j])
    return found


def cosine_of(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm else 0.0


def assert_is(found: Tensor, expected: Tensor) -> None:
    limit = LIMITS[found.dtype]
    assert (found.double() - expected).abs().max() <= limit
    clear = expected.abs() > 1e-30  # Below this, float32 keeps fewer digits.
    assert ((found.double() - expected) / expected)[clear].abs().max() <= 10 * limit


NETS = {
    "60 layers, a tenth on": random_bits(6, dense(*[256] * 60), density=0.1),
    "60 layers, alike": alike(6, 60, 256, 0.1, 0.1),
    "300 layers, alike": alike(4, 300, 256, 0.1, 0.11),
    "300 layers, shares far apart": alike(4, 300, 64, 0.1, 0.9),
    "900 layers, shares far apart": alike(3, 900, 64, 0.15, 0.9),
    "12 wide layers": alike(4, 12, 70_000, 0.02, 0.9),
    "all on": random_bits(3, dense(*[1000] * 120), density=1.0),
    "widths of 1": random_bits(3, dense(*[1] * 300), density=1.0),
    "one layer": random_bits(6, dense(40)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("what", NETS)
def test_a_normalized_gram_of_any_depth_is_that_of_exact_integers(what, dtype):
    bits = NETS[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = npk_gram(None, bits, normalize=True, dtype=dtype)
    expected = cosines(bits)
    assert (expected.diagonal() == 1).all()
    assert_is(found, expected)
    assert_same_bits(found, found.T.contiguous())
    out = torch.empty(bits.n, bits.n, dtype=dtype)
    assert npk_gram(None, bits, normalize=True, dtype=dtype, out=out) is out
    assert_same_bits(out, found)
    part = npk_gram(None, bits, None, bits[:2], normalize=True, dtype=dtype)
    assert_is(part, expected[:, :2])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", ["60 layers, alike", "300 layers, shares far apart"])
def test_inputs_are_normalized_with_their_gates(what, x_dtype, dtype):
    bits = NETS[what]
    x, y = rows_of(bits.n, 9, dtype=x_dtype), rows_of(2, 9, 1, x_dtype)
    assert_is(npk_gram(x, bits, normalize=True, dtype=dtype), cosines(bits, x=x))
    assert_is(npk_gram(x, bits, y, bits[:2], normalize=True, dtype=dtype), cosines(bits, bits[:2], x, y))


@pytest.mark.parametrize("size", [1e-14, 1e-10, 1e10, 1e17])
@pytest.mark.parametrize("what", ["one layer", "60 layers, alike", "300 layers, shares far apart"])
def test_the_size_of_the_inputs_does_not_matter(what, size):
    bits = NETS[what]
    x = rows_of(bits.n, 9)
    assert_is(npk_gram(x * size, bits, normalize=True), cosines(bits, x=x))


@pytest.mark.parametrize("size", [1e-17, 1e25])
def test_inputs_whose_products_leave_the_dtype_are_refused(size):
    x, bits = rows_of(6, 9, dtype=torch.float64) * size, NETS["one layer"]
    message = r"x: its rows have squared lengths around 1e.*leave the range of torch.float32; divide x"
    with pytest.raises(ValueError, match=message):
        npk_gram(x, bits, normalize=True)
    assert_is(npk_gram(x, bits, normalize=True, dtype=torch.float64), cosines(bits, x=x))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_without_a_gate_in_a_layer_give_zeros(dtype):
    bits = alike(5, 60, 256, 0.1, 0.9)
    for row, layer in ((1, 0), (3, 59)):
        first = bits.layers[layer].first_word
        bits.words[row, first : first + 8] = 0
    found = npk_gram(None, bits, normalize=True, dtype=dtype)
    assert (found[[1, 3]] == 0).all()
    assert_is(found, cosines(bits))
    none = random_bits(4, dense(*[256] * 60), density=0.0)
    assert_same_bits(npk_gram(None, none, normalize=True, dtype=dtype), torch.zeros(4, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("what", ["60 layers, alike", "300 layers, shares far apart"])
def test_of_a_scale_the_signs_alone_matter(what, dtype):
    bits = NETS[what]
    depth, expected = len(bits.layers), npk_gram(None, bits, normalize=True, dtype=dtype)
    for numbers in ([1e-3] * depth, [1e3] * depth, [-2.0, *[0.1] * (depth - 2), -5.0]):
        assert_same_bits(npk_gram(None, bits, scale=numbers, normalize=True, dtype=dtype), expected)
    for name in ("none", "width"):  # The widths multiply to more than the dtype holds.
        assert_same_bits(npk_gram(None, bits, scale=name, normalize=True, dtype=dtype), expected)
    negative = npk_gram(None, bits, scale=[*[0.1] * (depth - 1), -2.0], normalize=True, dtype=dtype)
    assert_same_bits(negative, -expected)
    zero = npk_gram(None, bits, scale=[0.0, *[1.0] * (depth - 1)], normalize=True, dtype=dtype)
    assert_same_bits(zero, torch.zeros_like(expected))


def test_the_passes_by_widths_give_the_same_as_one_pass(monkeypatch):
    bits, x = NETS["60 layers, alike"], rows_of(6, 5, dtype=torch.float64)
    expected = npk_gram(x, bits, normalize=True, dtype=torch.float64)
    monkeypatch.setattr(gram_range, "can_be_read", lambda tensor: False)
    monkeypatch.setitem(gram_range._ROOM, torch.float64, 30)
    monkeypatch.setattr("gatedops.ops.gram._BLOCK", 7)
    assert_is(npk_gram(x, bits, normalize=True, dtype=torch.float64), expected)


@pytest.mark.parametrize("what", ["60 layers, alike", "300 layers, shares far apart"])
def test_derivatives_of_deep_normalized_grams_are_right(what):
    bits = NETS[what][:4]
    x, y = (rows_of(n, 3, seed, torch.float64).requires_grad_() for n, seed in ((4, 0), (2, 1)))

    def symmetric(x: Tensor) -> Tensor:
        return npk_gram(x, bits, normalize=True, dtype=torch.float64)

    def rectangular(x: Tensor, y: Tensor) -> Tensor:
        return npk_gram(x, bits, y, bits[:2], normalize=True, dtype=torch.float64)

    assert torch.autograd.gradcheck(symmetric, (x,), check_forward_ad=True)
    assert torch.autograd.gradcheck(rectangular, (x, y), check_forward_ad=True)
    single = x.detach().float().requires_grad_()
    npk_gram(single, bits, normalize=True).square().sum().backward()
    symmetric(x).square().sum().backward()
    assert (single.grad - x.grad).abs().max() <= 1e-4 * x.grad.abs().max() + 1e-6


@pytest.mark.parametrize("what", ["one layer", "60 layers, alike"])
def test_deep_normalized_grams_compile(what):
    bits, x = NETS[what], rows_of(6, 5)
    torch._dynamo.reset()
    found = torch.compile(lambda x: npk_gram(x, bits, normalize=True), fullgraph=True, backend="aot_eager")(x)
    assert_is(found, cosines(bits, x=x))


def test_meta_tensors_have_the_shape_of_the_gram():
    bits = GateBits(NETS["60 layers, alike"].words.to("meta"), NETS["60 layers, alike"].layers)
    x = torch.empty(6, 5, device="meta")
    for normalize in (False, True):
        assert npk_gram(x, bits, normalize=normalize).shape == (6, 6)
    assert npk_diag(x, bits).shape == (6,)


# --- what is said ------------------------------------------------------------------------------------------------

DEEP = NETS["60 layers, a tenth on"]
UNDERFLOWS = {
    "npk_gram": (lambda **o: npk_gram(None, DEEP, **o), "use normalize=True, dtype=torch.float64 or larger"),
    "out": (lambda **o: npk_gram(None, DEEP, out=torch.empty(6, 6, dtype=o.get("dtype")), **o), "use normalize=True"),
    "two sides": (lambda **o: npk_gram(None, DEEP, None, DEEP[:3], **o), "use normalize=True"),
    "with inputs": (lambda **o: npk_gram(rows_of(6, 5), DEEP, **o), "use normalize=True"),
    "scale": (lambda **o: npk_gram(None, DEEP, scale=[0.003] * 60, **o), "use normalize=True"),
    "tiny, then large": (lambda **o: npk_gram(None, DEEP, scale=[0.001] * 30 + [1.0] * 30, **o), "use normalize=True"),
    "npk_diag": (lambda **o: npk_diag(None, DEEP, **o), r"use npk_gram\(normalize=True\), dtype=torch.float64"),
    "npk_matvec": (lambda **o: npk_matvec(None, DEEP, torch.ones(6), **o), r"use npk_gram\(normalize=True\), dtype"),
    "gate_neighbors": (lambda **o: gate_neighbors(DEEP, 1, **o), r"dtype=torch\.float64 or larger numbers as scale"),
    "soft": (lambda **o: soft_npk_gram(None, [torch.full((4, 8), 1e-3)] * 8, **o), "use normalize=True, dtype=torch"),
}


@pytest.mark.parametrize("what", UNDERFLOWS)
def test_a_kernel_that_underflows_altogether_is_warned_of_once(what):
    call, message = UNDERFLOWS[what]
    with pytest.warns(
        UserWarning, match=f"largest value of the kernel is around 1e-.* the whole kernel underflows; .*{message}"
    ) as w:
        call(dtype=torch.float32)
    assert len(w) == 1
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(dtype=torch.float64)


SILENT = {
    "a deep Gram of float64": lambda: npk_gram(None, DEEP, dtype=torch.float64),
    "a layer off everywhere": lambda: npk_gram(None, random_bits(4, dense(*[256] * 60), density=0.0)),
    "a scale of zero": lambda: npk_gram(None, DEEP, scale=[0.0] * 60),
    "a shallow net": lambda: npk_gram(None, NETS["one layer"]),
    "a scale that fits": lambda: npk_gram(None, DEEP, scale=[1 / 26] * 60),
    "most rows underflow": lambda: npk_gram(
        None, GateBits.cat([DEEP, random_bits(1, dense(*[256] * 60), density=1.0)])
    ),
    "no rows": lambda: npk_gram(None, DEEP[:0]),
    "inputs of zero": lambda: npk_gram(torch.zeros(6, 2), DEEP["0"]),
    "soft gates of zero": lambda: soft_npk_gram(None, [torch.zeros(3, 4)] * 2),
    "no soft rows": lambda: soft_npk_gram(None, [torch.zeros(0, 4)] * 2),
}


@pytest.mark.parametrize("what", SILENT)
def test_nothing_is_said_where_nothing_is_lost(what):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SILENT[what]().isfinite().all()


def test_a_compiled_deep_gram_says_nothing():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        found = torch.compile(lambda: npk_gram(None, DEEP), fullgraph=True, backend="aot_eager")()
    assert (found == 0).all()


FULL = random_bits(4, dense(*[256] * 20), density=0.9)
SOFT = [torch.ones(6, 256)] * 20
OVERFLOWS = {
    "numbers": lambda **o: npk_gram(None, FULL, scale=[1.0] * 20, **o),
    "numbers of two sides": lambda **o: npk_gram(None, FULL, None, FULL[:2], scale=[1.0] * 20, **o),
    "numbers, then small ones": lambda **o: npk_gram(None, FULL, scale=[1.0] * 19 + [1e-30], **o),
    "numbers and the diagonal": lambda **o: npk_diag(None, FULL, scale=[1.0] * 20, **o),
    "numbers and a vector": lambda **o: npk_matvec(None, FULL, torch.ones(4), scale=[1.0] * 20, **o),
    "soft gates, none": lambda **o: soft_npk_gram(None, SOFT, scale="none", **o),
    "soft gates, numbers": lambda **o: soft_npk_gram(None, SOFT, scale=[1e20] * 20, **o),
    "large soft gates": lambda **o: soft_npk_gram(None, [torch.full((3, 4), 1e10)] * 3, **o),
    "large inputs": lambda **o: soft_npk_gram(torch.full((3, 4), 1e25), [torch.ones(3, 4)], **o),
    "inputs beyond float32": lambda **o: soft_npk_gram(
        torch.full((3, 4), 1e40, dtype=torch.float64), [torch.ones(3, 4)], **o
    ),
    "two sides of soft gates": lambda **o: soft_npk_gram(None, SOFT, None, SOFT, scale="none", **o),
}


@pytest.mark.parametrize("what", OVERFLOWS)
def test_a_kernel_that_overflows_is_refused(what):
    with pytest.raises(ValueError, match=r"scale: the kernel overflows torch.float32, .*use scale='width'.*float64"):
        OVERFLOWS[what]()
    if "numbers, then" not in what and "soft gates, numbers" not in what:
        assert OVERFLOWS[what](dtype=torch.float64) is not None


def test_numbers_that_fit_the_counts_are_taken_where_the_widths_would_overflow():
    bits = random_bits(5, dense(*[256] * 60), density=0.25)
    found = npk_gram(None, bits, scale=[1 / 64] * 60)
    assert found.isfinite().all()
    assert (found.diagonal() > 0).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_normalized_soft_grams_do_not_depend_on_the_size_of_the_gates(size):
    gates = [torch.rand(5, 30, generator=generator(seed), dtype=torch.float64) for seed in range(200)]
    found = soft_npk_gram(None, [gate * size for gate in gates], normalize=True)
    unit = [gate / gate.norm(dim=1, keepdim=True) for gate in gates]
    expected = torch.stack([one @ one.T for one in unit]).prod(0)
    assert (found - expected).abs().max() < LIMITS[torch.float32]
    assert (found.diagonal() - 1).abs().max() < LIMITS[torch.float32]


def test_the_sign_of_a_scale_stays_in_a_normalized_soft_gram():
    gates = [torch.rand(5, 30, generator=generator(seed)) for seed in range(3)]
    expected = soft_npk_gram(None, gates, normalize=True)
    assert_same_bits(soft_npk_gram(None, gates, scale=[1.0, -2.0, 3.0], normalize=True), -expected)
    assert_same_bits(soft_npk_gram(None, gates, scale=[-1.0, -2.0, 3.0], normalize=True), expected)


def test_overlaps_of_deep_nets_are_those_of_exact_integers():
    bits = NETS["300 layers, shares far apart"]
    counts = gate_overlap(bits)
    assert_same_bits(counts, reference.gate_overlap(bits))
