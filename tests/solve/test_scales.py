"""Targets and kernels of any size: squares of numbers below 1e-162 or above 1e154 leave the range of float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from kernels import gaussian, random_targets

from gatedops.solve import eigsh, gradient_flow, kernel_ridge, logdet, loo, nystrom, select_ridge
from gatedops.solve.row_tiles import norms, powers_of_two
from gatedops.solve.solution import change_of_predictions

pytestmark = pytest.mark.usefixtures("one_thread")
N = 60
SOLVERS = {
    "cg": partial(kernel_ridge, ridge=1e-2, method="cg", tol=1e-9, rank=10),
    "cholesky": partial(kernel_ridge, ridge=1e-2, method="cholesky"),
    "eigen": partial(gradient_flow, t=100.0, method="eigen"),
    "lanczos": partial(gradient_flow, t=100.0, method="lanczos", tol=1e-9),
    "nystrom": partial(nystrom, ridge=1e-2, centres=20),
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("scales", [(1e-170, 1e-170), (1e160, 1e160), (1e-170, 1e160), (1.0, 1e-20)])
def test_solutions_are_proportional_to_targets(name, scales):
    kernel, targets, scale = gaussian(N), random_targets(N, 2), torch.tensor(scales, dtype=torch.float64)
    plain, scaled = SOLVERS[name](kernel, targets), SOLVERS[name](kernel, targets * scale)
    largest = float(plain.alpha.abs().max())
    torch.testing.assert_close(scaled.alpha / scale, plain.alpha, rtol=0, atol=1e-6 * largest)
    torch.testing.assert_close(scaled.residuals, plain.residuals, rtol=1e-2, atol=1e-9)
    assert scaled.converged


@pytest.mark.parametrize("scale", [1e-170, 1e170])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_factor_of_the_kernel_divides_alpha(name, scale):
    kernel, targets = gaussian(N), random_targets(N, 2)
    plain, scaled = SOLVERS[name](kernel, targets), SOLVERS[name](kernel * scale, targets)
    largest = float(plain.alpha.abs().max())
    torch.testing.assert_close(scaled.alpha * scale, plain.alpha, rtol=0, atol=1e-6 * largest)
    assert scaled.converged


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_a_factor_of_the_kernel_scales_eigenvalues_and_determinants(scale):
    kernel = gaussian(N)
    plain, scaled = (eigsh(kernel * factor, 3, method="lanczos", tol=1e-9) for factor in (1.0, scale))
    torch.testing.assert_close(scaled.values / scale, plain.values, rtol=1e-9, atol=0)
    for method in ("cholesky", "lanczos"):
        plain, scaled = (logdet(kernel * factor, 0.1, method=method) for factor in (1.0, scale))
        assert scaled.value == pytest.approx(plain.value + N * math.log(scale), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-170, 1e170])
@pytest.mark.parametrize("intercept", ["fixed", "free"])
@pytest.mark.parametrize("method", ["cholesky", "probes"])
def test_a_factor_of_the_kernel_changes_no_residual(scale, intercept, method):
    kernel, targets = gaussian(N), random_targets(N, 2)
    plain, scaled = (
        loo(kernel_ridge(kernel * factor, targets, 0.1), intercept=intercept, method=method) for factor in (1.0, scale)
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-170, 1e160])
def test_the_best_ridge_is_that_of_targets_of_size_1(scale):
    kernel = gaussian(N)
    targets = kernel[:, :2] + 0.1 * random_targets(N, 2)
    assert select_ridge(kernel, targets * scale) == select_ridge(kernel, targets)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1.0, 1e200, 1e305])
def test_norms(scale):
    v = torch.tensor([[3.0, 0.0, -3.0], [-4.0, 0.0, 0.0]], dtype=torch.float64) * scale
    expected = torch.tensor([5.0, 0.0, 3.0], dtype=torch.float64) * scale
    torch.testing.assert_close(norms(v), expected, rtol=1e-15, atol=0)


def test_powers_of_two_are_exact():
    exact = torch.tensor([[2.0**k for k in range(-1074, 1024)]], dtype=torch.float64)
    assert torch.equal(powers_of_two(exact), exact[0])
    assert torch.equal(powers_of_two(torch.nextafter(2 * exact[:, :-1], exact[:, :-1])), exact[0, :-1])


def test_the_change_of_predictions_scales():
    targets = random_targets(N, 2)
    residuals = torch.tensor([1e-3, 2e-3], dtype=torch.float64)
    plain = change_of_predictions(residuals, targets)
    assert change_of_predictions(residuals, targets * 1e-170) == pytest.approx(plain * 1e-170, rel=1e-9, abs=0)


def test_targets_whose_sum_overflows_are_refused():
    targets = torch.full((N, 1), 1e307, dtype=torch.float64)
    with pytest.raises(ValueError, match="targets: their sum is not finite: divide them by a number"):
        kernel_ridge(gaussian(N), targets, 0.1)
