"""Arguments take numbers of Python and numpy, and tensors without dimensions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from gatedops import (
    DGN,
    GateCache,
    SoftReLU,
    gate_neighbors,
    gated_twin,
    naswot_score,
    npk,
    npk_gram,
    ntk,
    path_norm,
    record_gates,
)
from gatedops.nn import fc_spec
from gatedops.scalars import positive_number, real_number, whole_number
from gatedops.stats import GateRecorder, npk_alignment

pytestmark = pytest.mark.usefixtures("exported_once")

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
X = torch.randn(7, 4)
BITS = record_gates(NET, X)
OTHER = record_gates(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()), X)
SOFT = DGN(fc_spec(4, [6, 5], 2), "FR-II")

WHOLE: dict[str, Callable[[Any], Any]] = {
    "npk": lambda k: npk(NET, X, batch_size=k),
    "ntk": lambda k: ntk(NET, X, batch_size=k),
    "record_gates": lambda k: record_gates(NET, X, batch_size=k).words,
    "build": lambda k: GateCache.build(SOFT, X, batch_size=k).bits.words,
    "naswot_score": lambda k: naswot_score(BITS, batch_size=k),
    "gate_neighbors": lambda k: gate_neighbors(BITS, k),
    "npk_alignment": lambda k: npk_alignment(BITS, OTHER, block=k),
    "recorder": lambda k: GateRecorder(NET, X, batch_size=k).record(0),
    "step": lambda k: GateRecorder(NET, X).record(k),
}
REAL: dict[str, Callable[[Any], Any]] = {
    "sigma": lambda p: npk(NET, X, sigma=p),
    "path_norm": lambda p: path_norm(NET, p),
    "scale": lambda p: npk_gram(X, BITS, scale=[p, p]),
    "slope": lambda p: npk_gram(X, BITS, slope=p),
    "slopes": lambda p: npk_gram(X, BITS, slope=[p, p]),
    "beta": lambda p: SoftReLU(beta=p).beta,
    "gain": lambda p: SoftReLU(gain=p).gain,
    "twin": lambda p: gated_twin(NET, gate="soft", beta=p, gain=p).soft,
    "dgn": lambda p: repr(DGN(fc_spec(4, [6], 2), "DL", beta=p, gain=p)),
}


def same(a: Any, b: Any) -> bool:
    """Whether two results hold the same numbers, bit for bit, with the same types."""
    pairs = list(zip(tree_leaves(a), tree_leaves(b), strict=True))
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else repr(x) == repr(y) for x, y in pairs)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_numpy_and_torch_give_what_ints_give(name):
    expected = WHOLE[name](2)
    for two in (np.int64(2), np.uint8(2), torch.tensor(2), np.array(2)):
        assert same(WHOLE[name](two), expected)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [True, 2.0, np.float64(2), "2", np.bool_(True), torch.tensor(True)], ids=repr)
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=r"needs (a whole number|an int)"):
        WHOLE[name](value)


@pytest.mark.parametrize("name", REAL)
def test_numbers_of_numpy_and_torch_give_what_floats_give(name):
    expected = REAL[name](2.0)
    for two in (2, np.float32(2), np.int64(2), torch.tensor(2.0), torch.tensor(2), np.array(2.0), Fraction(2)):
        assert same(REAL[name](two), expected)


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [True, "2", None, 2j, np.bool_(True), torch.tensor(True)], ids=repr)
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=r"needs .*number"):
        REAL[name](value)


def test_only_single_numbers_are_numbers():
    for value in (torch.tensor([2]), np.array([2]), torch.tensor(2j), np.complex64(2), [2], None):
        assert whole_number(value) is None
        assert real_number(value) is None
    assert real_number(torch.tensor(0.5, requires_grad=True)) == 0.5
    assert type(whole_number(np.int64(2))) is int
    assert type(real_number(np.float64(2))) is float


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_positive_numbers(value):
    with pytest.raises(ValueError, match=r"beta: got .*, needs a positive number"):
        positive_number(value, "beta")
