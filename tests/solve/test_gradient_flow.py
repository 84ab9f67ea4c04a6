"""gradient_flow against the matrix exponential, small steps of gradient descent, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, gaussian, laplacian, random_targets
from tolerances import assert_same_bits
from torch_threads import threads

from gatedops.solve import gradient_flow, kernel_ridge

pytestmark = pytest.mark.usefixtures("one_thread")


def exact(kernel, targets, t):
    """alpha(t), from the exponential of the matrix of the equations d alpha / ds = y - K alpha, d y / ds = 0."""
    n, unit = len(kernel), float(kernel.diagonal().mean())
    both = torch.zeros(2 * n, 2 * n, dtype=torch.float64)
    both[:n, :n] = -kernel.double() * t / unit
    both[:n, n:] = torch.eye(n) * (t / unit)
    return torch.matrix_exp(both)[:n, n:] @ (targets - targets.mean(0))


@given(
    n=st.integers(2, 40),
    columns=st.integers(1, 4),
    t=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    method=st.sampled_from(["auto", "eigen", "lanczos"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_shape(n, columns, t, method, dtype):
    kernel, targets = 3 * gaussian(n, seed=n, dtype=dtype), random_targets(n, columns)
    solution = gradient_flow(kernel, targets, t, method=method, tol=1e-10)
    expected = exact(kernel, targets, t)
    assert solution.alpha.shape == (n, columns)
    assert solution.converged
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))
    torch.testing.assert_close(solution.mean, targets.mean(0))


@pytest.mark.parametrize("tol", [1e-2, 1e-5])
@pytest.mark.parametrize("t", [1.0, 300.0])
def test_the_residual_bounds_what_it_says(tol, t):
    kernel, targets = laplacian(300), random_targets(300, 3)
    coarse = gradient_flow(kernel, targets, t, method="lanczos", tol=tol)
    fine = gradient_flow(kernel, targets, t, method="eigen")
    size = (targets - targets.mean(0)).norm(dim=0)
    assert coarse.converged
    assert 0 < coarse.rank < 300
    wrong = (kernel @ (coarse.alpha - fine.alpha)).norm(dim=0) / size
    assert float((wrong / coarse.residuals).max()) < 2
    torch.testing.assert_close(coarse.residuals, coarse.recursive, rtol=1e-6, atol=1e-12)
    assert float(coarse.residuals.max()) <= tol
    assert float(fine.residuals.max()) < 1e-11


def test_it_is_the_limit_of_gradient_descent():
    kernel, targets = gaussian(30), random_targets(30, 2)
    alpha, steps = torch.zeros(30, 2, dtype=torch.float64), 20_000
    y, rate = targets - targets.mean(0), 5.0 / 20_000
    for _ in range(steps):
        alpha += rate * (y - kernel @ alpha)
    # t = steps * rate * mean(diag K), which is 1.
    torch.testing.assert_close(gradient_flow(kernel, targets, 5.0).alpha, alpha, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["eigen", "lanczos"])
def test_at_an_eigenvalue_of_zero_it_grows_with_the_time(method):
    """The targets are orthogonal to a kernel of rank 2, so alpha = t y / unit."""
    rows = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows -= rows.mean(0)
    basis, _ = torch.linalg.qr(torch.cat([rows, torch.ones(40, 1, dtype=torch.float64)], 1))
    targets = random_targets(40, 1)
    targets -= basis @ (basis.T @ targets)
    kernel = rows @ rows.T
    solution = gradient_flow(kernel, targets, 7.0, method=method)
    torch.testing.assert_close(solution.alpha, 7.0 / kernel.diagonal().mean() * targets, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["eigen", "lanczos"])
def test_after_a_long_time_it_interpolates(method):
    kernel, targets = laplacian(60), random_targets(60, 2)
    solution = gradient_flow(kernel, targets, 1e6, method=method, tol=1e-10)
    torch.testing.assert_close(solution.predict(kernel), targets, rtol=0, atol=1e-8)


def test_it_resembles_the_ridge_one_over_t():
    """In every eigenvector the prediction is 1 to 1.3 times that of the ridge, because (1 - exp(-s)) (1 + s) / s is."""
    kernel, targets = laplacian(100), random_targets(100, 1)
    vectors = torch.linalg.eigh(kernel)[1]
    for t in (0.1, 1.0, 10.0):
        flow, ridge = gradient_flow(kernel, targets, t), kernel_ridge(kernel, targets, 1 / t)
        ratio = (vectors.T @ flow.alpha) / (vectors.T @ ridge.alpha)
        assert 1 <= float(ratio.min()) < float(ratio.max()) < 1.3


@pytest.mark.parametrize("method", ["eigen", "lanczos"])
def test_several_times_share_the_products(method):
    kernel, targets, times = WatchedKernel(laplacian(150)), random_targets(150, 2), [0.0, 2.0, 50.0]
    solutions = gradient_flow(kernel, targets, times, method=method)
    assert [solution.time for solution in solutions] == times
    assert not solutions[0].alpha.any()
    for solution in solutions[1:]:
        expected = gradient_flow(kernel.entries, targets, solution.time, method="eigen")
        size = float((targets - targets.mean(0)).norm(dim=0).min())
        assert float((kernel.entries @ (solution.alpha - expected.alpha)).norm(dim=0).max()) < 2e-3 * size
    assert len(kernel.products) == solutions[0].iterations + 1
    for given_times in (torch.tensor(times), np.array(times), tuple(times)):
        again = gradient_flow(kernel.entries, targets, given_times, method=method)
        torch.testing.assert_close(again[2].alpha, solutions[2].alpha)


def test_a_factor_of_the_kernel_changes_no_prediction():
    kernel, targets = laplacian(80), random_targets(80, 2)
    scores = gradient_flow(kernel, targets, 4.0).predict(kernel)
    scaled = gradient_flow(2.0**30 * kernel, targets, 4.0).predict(2.0**30 * kernel)
    torch.testing.assert_close(scaled, scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["eigen", "lanczos"])
def test_constant_targets_need_nothing(method):
    targets = torch.ones(30, 2, dtype=torch.float64) * torch.tensor([3.0, -1.0])
    solution = gradient_flow(gaussian(30), targets, 5.0, method=method)
    assert not solution.alpha.any()
    torch.testing.assert_close(solution.predict(gaussian(30)[:4]), targets[:4])


def test_says_that_products_did_not_suffice():
    with pytest.warns(RuntimeWarning, match="gradient_flow: residuals are up to .* after 3 products.*max_products"):
        solution = gradient_flow(laplacian(200), random_targets(200, 1), 1e4, method="lanczos", max_products=3)
    assert not solution.converged
    assert "use a larger max_products or a smaller t" in solution.reason


def test_same_bits_for_any_number_of_threads():
    found = []
    for count in (1, 2):
        with threads(count):
            kernel = WatchedKernel(laplacian(520), dtype=torch.float32)
            found.append(gradient_flow(kernel, random_targets(520, 3), 1.0, method="lanczos").alpha)
    assert_same_bits(*found)


def test_a_table():
    text = repr(gradient_flow(gaussian(20), random_targets(20, 2), 3.5))
    assert text.startswith("FlowSolution")
    assert "time" in text
    assert "3.5" in text
    assert "ridge" not in text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"t": -1.0}, ValueError, "t: got -1, needs finite times of at least 0"),
        ({"t": float("inf")}, ValueError, "t: got inf, needs finite times"),
        ({"t": [1.0, float("nan")]}, ValueError, "t: got nan, needs finite times"),
        ({"t": []}, ValueError, "t: got no time"),
        ({"t": "1"}, TypeError, "t: got '1', needs a number"),
        ({"targets": torch.zeros(3)}, ValueError, r"targets: got shape \(3,\), needs \(5,\)"),
        ({"targets": torch.arange(5)}, TypeError, "could be labels"),
        ({"K": torch.eye(5)[:3]}, ValueError, r"K: has shape \(3, 5\)"),
        ({"K": torch.eye(5) + 2 * torch.eye(5).flip(0)}, ValueError, "K: is not positive semidefinite"),
        ({"method": "cg"}, ValueError, "method: got 'cg'"),
        ({"max_products": 0}, ValueError, "max_products: got 0"),
        ({"tol": 2.0}, ValueError, "tol: got 2"),
    ],
)
@pytest.mark.parametrize("method", ["eigen", "lanczos"])
def test_bad_arguments(arguments, error, message, method):
    given_arguments = {"K": torch.eye(5), "targets": torch.arange(5.0), "t": 1.0, "method": method, **arguments}
    with pytest.raises(error, match=message):
        gradient_flow(**given_arguments)
