"""Leave-one-out against n refits, its estimate by probes, and the choice of a ridge."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, gaussian, laplacian, random_targets
from tolerances import assert_same_bits
from torch_threads import threads

from gatedops.path_kernels import regression
from gatedops.solve import gradient_flow, kernel_ridge, loo, nystrom, select_ridge
from gatedops.solve.loo import RIDGES

# The package has a function of the same name.
MODULE = sys.modules["gatedops.solve.loo"]
pytestmark = pytest.mark.usefixtures("one_thread")


def refits(kernel, targets, ridge, intercept):
    """Residuals of n solves, each without one point, with the lambda (and the means) of all points."""
    n, kernel = len(kernel), kernel.double()
    shift = ridge * kernel.diagonal().mean()
    found = torch.zeros_like(targets)
    for i in range(n):
        kept = torch.arange(n) != i
        system = torch.ones(n, n, dtype=torch.float64)
        system[:-1, :-1] = kernel[kept][:, kept] + shift * torch.eye(n - 1, dtype=torch.float64)
        system[-1, -1] = 0
        if intercept == "free":
            right = torch.cat([targets[kept], targets.new_zeros(1, targets.shape[1])])
            solved = torch.linalg.solve(system, right)
            prediction = kernel[i, kept] @ solved[:-1] + solved[-1]
        else:
            mean = targets.mean(0)
            prediction = kernel[i, kept] @ torch.linalg.solve(system[:-1, :-1], targets[kept] - mean) + mean
        found[i] = targets[i] - prediction
    return found


@given(
    n=st.integers(2, 25),
    columns=st.integers(1, 3),
    ridge=st.sampled_from([1e-2, 1.0]),
    intercept=st.sampled_from(["fixed", "free"]),
    method=st.sampled_from(["cholesky", "cg"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_refits(n, columns, ridge, intercept, method, dtype):
    kernel, targets = 2 * gaussian(n, seed=n, dtype=dtype) + 1, random_targets(n, columns) + 5
    solution = kernel_ridge(kernel, targets, ridge, method=method, tol=1e-11)
    residuals, error = loo(solution, intercept=intercept, return_error=True)
    assert_same_bits(residuals, loo(solution, intercept=intercept))
    torch.testing.assert_close(residuals, refits(kernel, targets, ridge, intercept), rtol=1e-7, atol=1e-7)
    assert error.shape == residuals.shape
    assert not error.any()


@pytest.mark.parametrize("intercept", ["fixed", "free"])
@pytest.mark.parametrize("solved_by", ["cholesky", "cg"])
def test_probes_say_how_far_off_they_are(intercept, solved_by):
    kernel, targets = laplacian(300), random_targets(300, 2) + 1
    solution = kernel_ridge(kernel, targets, 0.1, method=solved_by, tol=1e-8)
    exact = loo(solution, intercept=intercept)
    off = []
    for probes in (16, 256):
        residuals, error = loo(
            solution, intercept=intercept, method="probes", probes=probes, tol=1e-6, return_error=True
        )
        assert 0.8 < float(((residuals - exact) / error).square().mean().sqrt()) < 1.25
        off.append(float((residuals - exact).norm() / exact.norm()))
    assert off[0] < 0.1
    assert 2 < off[0] / off[1] < 8  # About the root of 16.


def test_the_preconditioner_takes_most_of_the_error():
    """Without it, the probes also estimate what it knows."""
    kernel, targets = gaussian(200), random_targets(200, 1)
    errors = []
    for rank in (1, 150):
        solution = kernel_ridge(kernel, targets, 0.1, method="cg", rank=rank)
        errors.append(float(loo(solution, method="probes", return_error=True)[1].mean()))
    assert errors[1] < errors[0] / 4


def test_estimates_stay_within_bounds():
    """An entry of the inverse is at least 1 / (K_ii + lambda) and at most 1 / lambda, whatever two probes say."""
    kernel, targets = laplacian(100), random_targets(100, 1)
    solution = kernel_ridge(kernel, targets, 1e-2, method="cg", rank=1)
    diagonal = solution.alpha / loo(solution, method="probes", probes=2)
    assert float(diagonal.min()) >= 1 / 1.01 - 1e-12
    assert float(diagonal.max()) <= 100 + 1e-9


def test_auto_takes_probes_for_many_points(monkeypatch):
    solution = kernel_ridge(laplacian(60), random_targets(60, 1), 0.1)
    assert not loo(solution, return_error=True)[1].any()
    monkeypatch.setattr(MODULE, "_FACTORED", 59)
    assert loo(solution, return_error=True)[1].all()


def test_warns_of_inexact_solves():
    kernel = WatchedKernel(laplacian(60))
    solution = kernel_ridge(kernel, random_targets(60, 1), 1e-3, method="cg")
    exact = kernel.product
    kernel.product = lambda v: exact(v) * (1 + 1e-3 * torch.rand(1))
    with pytest.warns(RuntimeWarning, match="loo: the solves for the probes ended with residuals of up to"):
        loo(solution, method="probes", tol=1e-8)


def test_same_bits_for_any_number_of_threads():
    found = []
    for count in (1, 2):
        with threads(count):
            kernel = WatchedKernel(laplacian(520), dtype=torch.float32)
            solution = kernel_ridge(kernel, random_targets(520, 1), 1.0, method="cg", rank=20)
            found.append(loo(solution, method="probes", probes=4))
    assert_same_bits(*found)
    assert not torch.equal(loo(solution, method="probes", probes=4, seed=1), found[0])


def test_bad_arguments_of_loo():
    kernel, targets = gaussian(20), random_targets(20, 1)
    solution = kernel_ridge(kernel, targets, 0.1)
    with pytest.raises(TypeError, match="solution: got Tensor, needs what kernel_ridge returns"):
        loo(targets)
    for other in (gradient_flow(kernel, targets, 1.0), nystrom(kernel, targets, 0.1, centres=5)):
        with pytest.raises(ValueError, match=f"solution: its method is '{other.method}', needs 'cholesky' or 'cg'"):
            loo(other)
    for name, value, message in (
        ("intercept", "none", "intercept: got 'none', needs 'fixed' or 'free'"),
        ("method", "exact", "method: got 'exact'"),
        ("probes", 1, "probes: got 1, needs a whole number of at least 2"),
        ("tol", 0.0, "tol: got 0"),
        ("seed", -1, "seed: got -1, needs a whole number from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            loo(solution, **{name: value})
    with pytest.raises(ValueError, match="intercept: got 'free' for one point, needs two"):
        loo(kernel_ridge(kernel[:1, :1], targets[:1], 0.1), intercept="free")
    system = dataclasses.replace(solution.system, operator=WatchedKernel(-kernel))
    with pytest.raises(ValueError, match=r"K: is not positive definite with ridge=0\.1"):
        loo(dataclasses.replace(solution, system=system))


def blobs(n, seed, spread=0.5):
    """n points in the plane around three centres, float64 (n, 2), and the index of each point's centre."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]], dtype=torch.float64)
    return centres[labels] + spread * torch.randn(n, 2, generator=generator, dtype=torch.float64), labels


def kernel_of(a, b):
    return torch.exp(-0.5 * torch.cdist(a, b).square())


@given(n=st.integers(4, 60), seed=st.integers(0, 5), real=st.booleans())
def test_select_ridge_takes_the_best_of_all_residuals(n, seed, real):
    x, labels = blobs(n, seed, spread=1.5)
    labels[:2] = torch.tensor([0, 1])
    kernel, ridges = kernel_of(x, x), (1e-3, 0.1, 1.0, 30.0)
    targets = torch.stack([x.sum(1), x[:, 0]], 1) if real else regression.one_hot(labels, int(labels.max()) + 1)
    best = []
    for ridge in ridges:
        residuals = loo(kernel_ridge(kernel, targets, ridge))
        hits = 0 if real else int((targets - residuals).argmax(1).eq(labels).sum())
        best.append((hits, -float(residuals.square().sum()), ridge))
    assert select_ridge(kernel, targets if real else labels, ridges) == max(best)[2]


def test_select_ridge_takes_the_better_one():
    x, labels = blobs(150, 6, spread=1.5)
    kernel = kernel_of(x, x) + 1e-9 * torch.eye(150, dtype=torch.float64)
    assert select_ridge(kernel, labels, (1e-8, 0.3)) == 0.3
    assert select_ridge(kernel, labels) == select_ridge(kernel, labels, iter(RIDGES))
    assert select_ridge(kernel, labels) in RIDGES


def test_select_ridge_leaves_out_what_is_not_positive_definite():
    x, labels = blobs(40, 7)
    features = torch.cat([x, x], 0)
    # The rank is 2 of 80, and float32 rounds it, so it is not positive definite without a ridge.
    kernel, doubled = (features @ features.T).float(), torch.cat([labels, labels])
    assert select_ridge(kernel, doubled, (0.0, 0.5)) == 0.5
    with pytest.raises(
        ValueError, match="K is not positive definite with any of the ridges: use a larger ridge, or a float64"
    ):
        select_ridge(kernel, doubled, (0.0,))


def test_select_ridge_takes_arrays_and_lists():
    x, labels = blobs(30, 8)
    kernel = kernel_of(x, x)
    expected = select_ridge(kernel, labels)
    assert select_ridge(kernel.numpy(), labels.numpy()) == expected
    assert select_ridge(kernel, labels.tolist()) == expected
    assert select_ridge(WatchedKernel(kernel), labels.to(torch.uint8)) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ridges": (1.0, -1.0)}, ValueError, "ridge: got -1, needs a finite number of at least 0"),
        ({"ridges": (float("nan"),)}, ValueError, "ridge: got nan"),
        ({"ridges": ()}, ValueError, "ridges: is empty"),
        ({"ridges": 0.1}, TypeError, r"ridges: got 0\.1, needs a sequence of numbers"),
        ({"ridges": (0.1, "a")}, TypeError, "ridge: got 'a', needs a number"),
        ({"targets": torch.arange(10) * 10**14}, ValueError, "targets: one-hot targets of 900,000,000,000,001 classes"),
        ({"targets": torch.zeros(10).long()}, ValueError, "targets: got the same for every point"),
        ({"targets": torch.ones(10, 2)}, ValueError, "targets: got the same for every point"),
        ({"targets": torch.arange(10) - 1}, ValueError, "targets: got the label -1, needs labels from 0"),
        ({"targets": torch.arange(9)}, ValueError, r"targets: got shape .*9.*, needs \(10,\)"),
        ({"targets": ["a"] * 10}, TypeError, "targets"),
        ({"targets": [[1.0], [1.0, 2.0]] * 5}, TypeError, "targets: got a list of other things"),
        ({"targets": torch.tensor([float("nan")] * 10)}, ValueError, "targets: has numbers that are not finite"),
        ({"K": torch.eye(10)[:4]}, ValueError, r"K: has shape \(4, 10\)"),
        ({"K": torch.zeros(10, 10)}, ValueError, "K: its diagonal is all zeros"),
        ({"K": "gram"}, TypeError, "K: got str"),
    ],
)
def test_bad_arguments_of_select_ridge(arguments, error, message):
    with pytest.raises(error, match=message):
        select_ridge(**{"K": torch.eye(10), "targets": torch.arange(10), **arguments})


def test_select_ridge_names_another_way_for_many_points(monkeypatch):
    monkeypatch.setattr(MODULE, "_MOST_DECOMPOSED", 9)
    with pytest.raises(ValueError, match=r"K: got 10 points, needs at most 9 .*loo of each solution of ridge_path"):
        select_ridge(torch.eye(10), torch.arange(10))


def test_the_old_name_says_what_to_use():
    x, labels = blobs(40, 9)
    kernel = kernel_of(x, x)
    with pytest.warns(
        DeprecationWarning, match=r"regression\.select_ridge is deprecated: use gatedops\.solve\.select_r"
    ):
        found = regression.select_ridge(kernel, labels, validation=0.3, seed=4)
    assert found == select_ridge(kernel, labels)
    with pytest.warns(DeprecationWarning, match="deprecated"):
        assert regression.select_ridge(kernel.numpy(), labels.tolist(), np.array([0.5])) == 0.5
    assert RIDGES == regression.RIDGES
