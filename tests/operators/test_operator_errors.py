"""Wrong arguments of operators are refused in one sentence, before any work."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from strategies import dense, random_bits, rows_of
from torch import nn

import gatedops
from gatedops import NPKOperator

pytestmark = pytest.mark.usefixtures("one_thread")

BITS, Y_BITS = random_bits(6, dense(9, 5)), random_bits(4, dense(9, 5), seed=1)
X, Y = rows_of(6, 3), rows_of(4, 3)
OP, RECTANGLE = NPKOperator(BITS, X), NPKOperator(BITS, X, Y_BITS, Y)


def with_nan(x, value=float("nan")):
    x = x.clone()
    x[1, 2] = value
    return x


CONSTRUCTED = [
    (lambda: NPKOperator(X), TypeError, "bits: got Tensor, needs a GateBits"),
    (lambda: NPKOperator(BITS, X, X), TypeError, "y_bits: got Tensor, needs a GateBits"),
    (lambda: NPKOperator(BITS, [1.0]), TypeError, "x: got list, needs a tensor or a numpy array"),
    (lambda: NPKOperator(BITS, X[:5]), ValueError, r"x: got shape \(5, 3\), needs \(6, d\)"),
    (lambda: NPKOperator(BITS, X, Y_BITS), ValueError, "y: is missing, y_bits needs it"),
    (lambda: NPKOperator(BITS, X, None, Y), ValueError, "y_bits: is missing, y needs it"),
    (lambda: NPKOperator(BITS, X, Y_BITS, Y.double()), TypeError, "y: got torch.float64 beside x of torch.float32"),
    (lambda: NPKOperator(BITS, X.long()), TypeError, "x: got torch.int64, needs"),
    (lambda: NPKOperator(BITS, with_nan(X)), ValueError, "x: has infinite values or NaN, needs finite numbers"),
    (lambda: NPKOperator(BITS, with_nan(X, -float("inf"))), ValueError, "x: has infinite values or NaN"),
    (lambda: NPKOperator(BITS, X, Y_BITS, with_nan(Y)), ValueError, "y: has infinite values or NaN"),
    (lambda: NPKOperator(BITS, X, dtype=torch.float16), TypeError, "dtype: got torch.float16, needs"),
    (lambda: NPKOperator(BITS, X, scale="half"), ValueError, "scale: got 'half', needs 'width', 'none' or one"),
    (lambda: NPKOperator(BITS, X, scale=[1.0]), ValueError, "scale: got 1 numbers, needs one for each of 2 layers"),
    (lambda: NPKOperator(BITS, X, slope=[0.1]), ValueError, "slope: got 1 numbers"),
    (lambda: NPKOperator(BITS, X, cache="all"), ValueError, "cache: got 'all', needs 'auto', 'none' or a number of"),
    (lambda: NPKOperator(BITS, X, cache=-1), ValueError, "cache: got -1, needs at least 0 bytes"),
    (lambda: NPKOperator(BITS, X, cache=1e9), TypeError, "cache: got float, needs 'auto', 'none' or a whole number"),
    (lambda: NPKOperator(BITS, 1e30 * X, normalize=True), ValueError, "x: its rows have squared lengths around"),
    (lambda: NPKOperator(BITS, 1e60 * X.double(), normalize=True), ValueError, "x: its rows have squared lengths"),
    (lambda: NPKOperator(BITS, 1e-60 * X.double(), normalize=True), ValueError, "x: its rows have squared lengths"),
    (
        lambda: NPKOperator(BITS, X.double(), Y_BITS, 1e-60 * Y.double(), normalize=True),
        ValueError,
        "x: its rows have squared lengths around",
    ),
    (lambda: NPKOperator.soft([with_nan(X)]), ValueError, "gates, x: have infinite values or NaN in torch.float32"),
    (
        lambda: NPKOperator.soft([X], X, [Y], with_nan(Y)),
        ValueError,
        "y_gates, y: have infinite values or NaN in torch.float32, need finite numbers",
    ),
    (lambda: NPKOperator.soft([X], cache="all"), ValueError, "cache: got 'all'"),
    (lambda: NPKOperator.soft(X), TypeError, "gates: got a tensor, needs a list with one tensor per layer"),
    (lambda: NPKOperator.soft([X], Y), ValueError, r"x: got shape \(4, 3\), needs \(6, d\)"),
    (lambda: NPKOperator.of(nn.Linear(3, 2).eval(), X, cache="all"), ValueError, "cache: got 'all'"),
    (lambda: NPKOperator.of(X, X), TypeError, "model: got Tensor"),
    (lambda: NPKOperator.of(nn.Linear(3, 2).eval(), X, kernel="gram"), ValueError, "kernel: got 'gram', needs 'npk'"),
]
CALLED = [
    (lambda: OP @ [1.0], TypeError, "v: got list, needs a tensor or a numpy array"),
    (lambda: OP @ torch.ones(6).long(), TypeError, "v: got torch.int64, needs torch.float32 or torch.float64"),
    (lambda: OP @ torch.ones(6).half(), TypeError, "v: got torch.float16, needs torch.float32 or torch.float64"),
    (lambda: OP @ torch.ones(5), ValueError, r"v: got shape \(5,\), needs \(6,\) or \(6, c\): one row per column"),
    (lambda: RECTANGLE @ torch.ones(6, 2), ValueError, r"v: got shape \(6, 2\), needs \(4,\) or \(4, c\)"),
    (lambda: OP @ torch.ones(6, 1, 1), ValueError, r"v: got shape \(6, 1, 1\), needs"),
    (lambda: OP @ torch.ones(6, device="meta"), ValueError, "v: is on meta, the operator on cpu; use .to"),
    (lambda: np.ones((6, 6)) @ OP, TypeError, "unsupported operand"),
    (lambda: OP[1, 2, 3], IndexError, "index: got 3 indices, needs one for the rows and one for the columns"),
    (lambda: OP[6, 0], IndexError, "rows: index 6 is out of range for 6 inputs"),
    (lambda: RECTANGLE[:, -5], IndexError, "cols: index -5 is out of range for 4 inputs"),
    (lambda: OP["fc1"], TypeError, "rows: got str, needs an int, a slice, a list or a tensor of ints or bools$"),
    (lambda: OP[:, 1.5], TypeError, "cols: got float, needs an int, a slice, a list or a tensor of ints or bools$"),
    (lambda: OP[:, ["a"]], TypeError, r"cols: got \['a'\], needs ints or bools$"),
    (lambda: OP[torch.ones(5).bool()], IndexError, "rows: got a mask of 5, needs one bool for each of 6 inputs"),
    (lambda: OP[torch.ones(2, 2).long()], ValueError, r"rows: got shape \(2, 2\), needs one dimension"),
    (lambda: OP[torch.ones(2, device="meta").long()], ValueError, "rows: is on meta, the operator is on cpu"),
    (lambda: OP[[0, 6]], IndexError, "rows: index 6 is out of range for 6 inputs"),
    (lambda: RECTANGLE[:, torch.tensor([0, -5])], IndexError, "cols: index -5 is out of range for 4 inputs"),
    (lambda: OP.columns(6), IndexError, "index: index 6 is out of range for 6 inputs"),
    (lambda: OP.columns(torch.ones(1, dtype=torch.uint8)), TypeError, "index: got torch.uint8, needs int64 indices"),
    (lambda: OP.columns(torch.ones(2, 2).long()), ValueError, r"index: got shape \(2, 2\), needs one dimension"),
    (lambda: OP.columns(1.5), TypeError, "index: got float, needs an int, a slice, a list or a tensor"),
    (lambda: RECTANGLE.diag(), ValueError, "diag: the operator 6 x 4 has other columns than rows"),
    (lambda: OP.with_dtype(torch.float16), TypeError, "dtype: got torch.float16, needs"),
]


@pytest.mark.parametrize(("call", "error", "message"), [*CONSTRUCTED, *CALLED])
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("call", "error", "message"), CONSTRUCTED[:17])
def test_arguments_are_checked_before_any_product(call, error, message, monkeypatch):
    ran = []
    ops = SimpleNamespace(npk_diag=lambda *rest: ran.append("npk_diag"), npk_gram=lambda *rest: ran.append("npk_gram"))
    monkeypatch.setattr(torch.ops, "gatedops", ops)
    with pytest.raises(error, match=message):
        call()
    assert ran == []


def test_scipy_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    with pytest.raises(ModuleNotFoundError, match="as_scipy: scipy is not installed: pip install scipy"):
        OP.as_scipy()


def test_the_package_has_the_operator_and_the_solvers():
    assert gatedops.NPKOperator is NPKOperator
    assert gatedops.solve.__name__ == "gatedops.solve"
