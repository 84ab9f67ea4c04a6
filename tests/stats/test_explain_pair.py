"""What two inputs share, layer by layer, against gates counted one by one and the entries of npk_gram."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from strategies import random_bits, rows_of

from gatedops import GateBits, npk_gram
from gatedops.stats import explain_pair

SPECS = [((40,), "gate"), ((3, 5, 2), "gate"), ((4, 5, 1, 2), "select"), ((33,), "gate")]
BITS, Y_BITS = random_bits(6, SPECS), random_bits(4, SPECS, seed=1)
X, Y = rows_of(6, 5, dtype=torch.float64), rows_of(4, 5, dtype=torch.float64, seed=3)


def counted(left, right):
    """What is counted of two lists of bools, one gate after another."""
    pairs = list(zip(left.flatten().tolist(), right.flatten().tolist(), strict=True))
    return {
        "width": len(pairs),
        "on_i": sum(a for a, _ in pairs),
        "on_j": sum(b for _, b in pairs),
        "both": sum(a and b for a, b in pairs),
        "only_i": sum(a and not b for a, b in pairs),
        "only_j": sum(b and not a for a, b in pairs),
        "agreement": sum(a == b for a, b in pairs) / len(pairs),
    }


@pytest.mark.parametrize(("i", "j"), [(0, 1), (4, 4), (-1, 2)])
@pytest.mark.parametrize("two", [False, True])
def test_counts(i, j, two):
    j = min(j, 3)
    found = explain_pair(BITS, i, j, Y_BITS if two else None)
    assert (found.i, found.j) == (i % 6, j)
    left, right = BITS.unpack(), (Y_BITS if two else BITS).unpack()
    assert [layer.name for layer in found.layers] == [layer.name for layer in BITS.layers]
    for layer, a, b in zip(found.layers, left, right, strict=True):
        expected = counted(a[i], b[j])
        assert {name: getattr(layer, name) for name in expected} == pytest.approx(expected, rel=1e-15)
    for place, (a, b) in enumerate(zip(left, right, strict=True)):
        expected = [k for k, both in enumerate((a[i] & b[j]).flatten().tolist()) if both]
        assert found.shared(place).tolist() == found.shared(BITS.layers[place].name).tolist() == expected


@pytest.mark.parametrize("scale", ["width", "none", [0.5, -2.0, 1.0, 0.1]])
@pytest.mark.parametrize("slope", [0.0, [0.01, -1.0, 0.0, 0.5]])
@pytest.mark.parametrize("inputs", ["none", "floats", "bytes"])
def test_the_product_is_the_entry_of_the_gram(scale, slope, inputs):
    x, y = {"none": (None, None), "floats": (X, Y), "bytes": ((9 * X.abs()).byte(), (9 * Y.abs()).byte())}[inputs]
    options = {"scale": scale, "slope": slope}
    gram = npk_gram(x, BITS, dtype=torch.float64, **options)
    cross = npk_gram(x, BITS, y, Y_BITS, dtype=torch.float64, **options)
    cosines = npk_gram(None, BITS, normalize=True, slope=slope, dtype=torch.float64)
    for i in range(6):
        for j in range(4):
            one, two = explain_pair(BITS, i, j, x=x, **options), explain_pair(BITS, i, j, Y_BITS, x=x, y=y, **options)
            assert one.kernel == pytest.approx(float(gram[i, j]), rel=1e-14)
            assert two.kernel == pytest.approx(float(cross[i, j]), rel=1e-14)
            assert one.cosine == pytest.approx(float(cosines[i, j]), rel=1e-12)
            product = math.prod(layer.factor for layer in one.layers)
            assert one.kernel == pytest.approx(product * (1 if one.sigma is None else one.sigma), rel=1e-15)
            if x is not None:
                assert one.sigma == pytest.approx(float((x[i].double() * x[j].double()).sum()), rel=1e-14)


def test_lambda_has_the_bits_of_the_gram():
    gram = npk_gram(None, BITS, dtype=torch.float64)
    assert [explain_pair(BITS, 2, j).kernel for j in range(6)] == gram[2].tolist()


def test_shares_of_the_logarithm():
    found = explain_pair(BITS, 0, 1)
    logs = [
        math.log(layer.both / math.sqrt(layer.on_i * layer.on_j)) / math.log(found.cosine) for layer in found.layers
    ]
    assert [layer.share for layer in found.layers] == pytest.approx(logs, rel=1e-12)
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)


def test_no_shares_where_there_is_no_logarithm():
    """The pairs are an input with itself, two without a common gate, one whose gates are off, and one with a negative
    cosine."""
    bits = GateBits.pack([torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()])
    for i, j, slope, cosine in ((0, 0, 0.0, 1.0), (0, 1, 0.0, 0.0), (0, 2, 0.0, 0.0), (0, 1, -1.0, -1.0)):
        (layer,) = explain_pair(bits, i, j, slope=slope).layers
        assert (layer.cosine, layer.share) == (cosine, None)
    assert repr(explain_pair(bits, 0, 0)).splitlines()[2].split()[-1] == "-"


def test_numbers_of_other_libraries():
    expected = repr(explain_pair(BITS, 1, 2, x=X))
    assert repr(explain_pair(BITS, np.int64(1), torch.tensor(2), x=X.numpy())) == expected


def test_the_table():
    bits = GateBits.pack([torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]]).bool()] * 2, names=["a", "b"])
    lines = repr(explain_pair(bits, 0, 1, x=torch.tensor([[2.0], [3.0]]))).splitlines()
    assert lines[0] == "PairExplanation of inputs 0 and 1: Sigma 6, kernel 1.5"
    assert lines[2].split() == ["a", "4", "3", "2", "2", "1", "0", "75.0", "0.5", "0.816", "50.0"]
    assert lines[4].split() == ["net", "0.25", "0.667"]
    assert "<table>" in explain_pair(bits, 0, 1)._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, 0, 1), TypeError, "bits: got NoneType, needs a GateBits"),
        ((BITS[:0], 0, 1), ValueError, "bits: has no inputs"),
        ((BITS, 6, 1), IndexError, "i: index 6 is out of range for 6 inputs"),
        ((BITS, 0, 4, Y_BITS), IndexError, "j: index 4 is out of range for 4 inputs"),
        ((BITS, [0], 1), TypeError, r"i: got \[0\], needs the number of an input"),
        ((BITS, 0, True), TypeError, "j: got True, needs the number of an input"),
        ((BITS, 0, 1, BITS["0"]), ValueError, "y_bits: has 1 layer, bits has 4"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        explain_pair(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": X[:5]}, ValueError, r"x: got shape \(5, 5\), needs \(6, d\)"),
        ({"x": [1.0]}, TypeError, "x: got list, needs a tensor or a numpy array"),
        ({"x": X, "y_bits": Y_BITS}, ValueError, "y: is missing"),
        ({"y": Y}, ValueError, "x: is missing"),
        ({"scale": "depth"}, ValueError, "scale: got 'depth'"),
        ({"slope": 0.1}, ValueError, "slope: got 0.1 for layer 2 .*max-pool"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        explain_pair(BITS, 0, 1, **options)
    with pytest.raises(IndexError, match="layer 9 is out of range"):
        explain_pair(BITS, 0, 1).shared(9)
