"""logdet against torch's dense determinant, and the error that it states."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, gaussian, laplacian
from torch_threads import threads

from gatedops.solve import logdet
from gatedops.solve.logdet import _InverseRoot
from gatedops.solve.preconditioner import preconditioner_of

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(kernel, ridge):
    kernel = kernel.double()
    return float(torch.logdet(kernel + ridge * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=torch.float64)))


@given(
    n=st.integers(1, 50),
    ridge=st.sampled_from([1e-2, 1.0]),
    method=st.sampled_from(["auto", "cholesky"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_exact_for_few_points(n, ridge, method, dtype):
    kernel = 3 * gaussian(n, seed=n, dtype=dtype)
    found = logdet(kernel, ridge, method=method)
    assert found.value == pytest.approx(exact(kernel, ridge), abs=1e-10 * n)
    assert found.error == 0


@given(n=st.integers(10, 40), probes=st.integers(8, 50), ridge=st.sampled_from([1e-2, 1.0]), data=st.data())
def test_any_shape_of_probes(n, probes, ridge, data):
    """With as many probes as points, one product exhausts the space."""
    kernel = laplacian(n, seed=n)
    found = logdet(kernel, ridge, method="lanczos", probes=probes, rank=data.draw(st.integers(1, n)))
    expected = exact(kernel, ridge)
    assert abs(found.value - expected) <= 8 * found.error + 1e-9 * n


def test_the_error_is_true():
    kernel = WatchedKernel(laplacian(300))
    expected = exact(kernel.entries, 0.1)
    found = [logdet(kernel.entries, 0.1, method="lanczos", probes=16, rank=30, seed=seed) for seed in range(20)]
    off = torch.tensor([(one.value - expected) / one.error for one in found])
    assert 0.6 < float(off.square().mean().sqrt()) < 1.6
    assert abs(float(off.mean())) < 0.8
    more = logdet(kernel, 0.1, method="lanczos", probes=256, rank=30)
    assert 2.5 < found[0].error / more.error < 6  # About the root of 16.
    assert len(kernel.products) < 15


def test_the_preconditioner_takes_most_of_the_error():
    errors = [logdet(gaussian(200), 0.1, method="lanczos", rank=rank).error for rank in (1, 100)]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_root_of_the_preconditioner(shift):
    kernel = WatchedKernel(laplacian(120))
    preconditioner = preconditioner_of(kernel, kernel.diag(), 20)
    factor = preconditioner.tiles.flatten(0, 1)[:120]
    dense = factor @ factor.T + (shift + preconditioner.tail) * torch.eye(120, dtype=torch.float64)
    root = _InverseRoot(preconditioner, shift)
    twice = root.times(root.times(dense))
    torch.testing.assert_close(twice, torch.eye(120, dtype=torch.float64), rtol=0, atol=1e-10)
    assert root.logdet(120) == pytest.approx(float(torch.logdet(dense)), abs=1e-8)


def test_auto_takes_probes_for_many_points(monkeypatch):
    monkeypatch.setattr(sys.modules["gatedops.solve.logdet"], "_FACTORED", 59)
    assert logdet(laplacian(59), 0.1).error == 0
    assert logdet(laplacian(60), 0.1).error > 0


def test_says_that_products_did_not_suffice():
    with pytest.warns(RuntimeWarning, match="logdet: 2 products did not suffice"):
        logdet(laplacian(300), 1e-6, method="lanczos", rank=1, max_products=2)


def test_same_number_for_any_number_of_threads():
    found = []
    for count in (1, 2):
        with threads(count):
            kernel = WatchedKernel(laplacian(520), dtype=torch.float32)
            found.append(logdet(kernel, 1.0, method="lanczos", probes=4, rank=20))
    assert found[0] == found[1]
    assert logdet(kernel, 1.0, method="lanczos", probes=4, rank=20, seed=1) != found[0]


@pytest.mark.parametrize("method", ["cholesky", "lanczos"])
def test_not_positive_definite(method):
    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"K: is not positive definite|ridge: got 0, but the rank of K is at most"):
        logdet(x @ x.T - 1e-9 * torch.eye(30), 0.0, method=method)
    indefinite = gaussian(30) - 0.5 * torch.eye(30)
    with pytest.raises(ValueError, match="K: is not positive definite with"):
        logdet(indefinite, 0.0, method=method, rank=1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ridge": -1.0}, ValueError, "ridge: got -1"),
        ({"ridge": "a"}, TypeError, "ridge: got 'a'"),
        ({"probes": 1}, ValueError, "probes: got 1, needs a whole number of at least 2"),
        ({"max_products": 0}, ValueError, "max_products: got 0"),
        ({"seed": "a"}, TypeError, "seed: got 'a', needs a whole number"),
        ({"rank": 6}, ValueError, "rank: got 6"),
        ({"method": "lu"}, ValueError, "method: got 'lu'"),
        ({"K": torch.eye(5)[:3]}, ValueError, r"K: has shape \(3, 5\)"),
        ({"K": torch.zeros(5, 5)}, ValueError, "K: its diagonal is all zeros"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        logdet(**{"K": torch.eye(5), "ridge": 0.1, **arguments})
