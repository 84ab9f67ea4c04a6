"""Bad input is refused in one sentence, before any product with the kernel if it can be known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernels import WatchedKernel, exact_alpha, gaussian, random_targets

from gatedops.solve import kernel_ridge, ridge_path

pytestmark = pytest.mark.usefixtures("one_thread")
N = 60


def with_entry(value, row, column):
    kernel = gaussian(N)
    kernel[row, column] = value
    return kernel


def faulty_targets(value):
    targets = random_targets(N, 2)
    targets[5, 1] = value
    return targets


CASES = {
    "labels": (
        {"targets": torch.arange(N)},
        TypeError,
        r"targets: got torch.int64 \(60,\), which could be labels.*one_hot",
    ),
    "list of labels": ({"targets": [0, 1] * (N // 2)}, TypeError, "could be labels"),
    "booleans": ({"targets": torch.zeros(N, dtype=torch.bool)}, TypeError, "could be labels"),
    "complex": ({"targets": torch.zeros(N, dtype=torch.complex64)}, TypeError, "targets: .* needs real numbers"),
    "text": ({"targets": "abc"}, TypeError, "targets: got str"),
    "NaN target": ({"targets": faulty_targets(float("nan"))}, ValueError, "targets: has numbers that are not finite"),
    "infinite target": (
        {"targets": faulty_targets(float("inf"))},
        ValueError,
        "targets: has numbers that are not finite",
    ),
    "few targets": ({"targets": random_targets(N - 1, 2)}, ValueError, r"targets: got shape \(59, 2\), needs \(60,\)"),
    "no columns": ({"targets": random_targets(N, 0)}, ValueError, r"targets: got shape \(60, 0\)"),
    "cube": ({"targets": torch.zeros(N, 2, 2)}, ValueError, "targets: got shape"),
    "negative ridge": ({"ridge": -1e-3}, ValueError, "ridge: got -0.001, needs a finite number of at least 0"),
    "NaN ridge": ({"ridge": float("nan")}, ValueError, "ridge: got nan"),
    "infinite ridge": ({"ridge": float("inf")}, ValueError, "ridge: got inf"),
    "no ridge": ({"ridge": None}, TypeError, "ridge: got None, needs a number"),
    "ridge 0": ({"ridge": 0}, ValueError, "ridge: got 0, needs at least .*: use a larger ridge, or method='cholesky'"),
    "tiny ridge": (
        {"ridge": 1e-9, "K": gaussian(N, dtype=torch.float32)},
        ValueError,
        "ridge: got 1e-09, needs at least .*, because the rounding of K to torch.float32 can make it indefinite",
    ),
    "method": ({"method": "lu"}, ValueError, "method: got 'lu', needs one of"),
    "tol 0": ({"tol": 0}, ValueError, "tol: got 0, needs a number from 1e-13, what float64 sums can give, to 1"),
    "tol 1": ({"tol": 1.0}, ValueError, "tol: got 1"),
    "max_iter": ({"max_iter": 0}, ValueError, "max_iter: got 0, needs a whole number of at least 1"),
    "rank 0": ({"rank": 0}, ValueError, "rank: got 0, needs a whole number from 1 to 60"),
    "rank": ({"rank": N + 1}, ValueError, "rank: got 61, needs a whole number from 1 to 60"),
    "x0": ({"x0": torch.zeros(N, 3)}, ValueError, r"x0: got shape \(60, 3\), needs \(60, 2\), like alpha"),
    "huge x0": (
        {"x0": torch.full((N, 2), 1e308, dtype=torch.float64)},
        ValueError,
        "x0: is so large that its residual is not finite",
    ),
    "x0 NaN": ({"x0": torch.full((N, 2), float("nan"))}, ValueError, "x0: has numbers that are not finite"),
    "callback": ({"callback": 3}, TypeError, "callback: got int, needs a function of the steps and the residuals"),
    "seconds": ({"checkpoint_every": -1}, ValueError, "checkpoint_every: got -1"),
    "rectangle": ({"K": gaussian(N)[:, :50]}, ValueError, r"K: .*\(60, 50\)"),
    "empty": ({"K": torch.zeros(0, 0), "targets": torch.zeros(0, 1)}, ValueError, r"K: .*\(0, 0\)"),
    "zeros": ({"K": torch.zeros(N, N)}, ValueError, "K: its diagonal is all zeros"),
    "NaN": ({"K": with_entry(float("nan"), 3, 3)}, ValueError, "K"),
    "NaN aside": ({"K": with_entry(float("nan"), 3, 7)}, ValueError, "K"),
    "infinite": ({"K": with_entry(float("inf"), 3, 3)}, ValueError, "K"),
    "negative diagonal": (
        {"K": with_entry(-1.0, 3, 3)},
        ValueError,
        "K: is not positive definite: its diagonal entry 3 is -1",
    ),
    "symmetric up to rounding": (
        {"K": with_entry(0.5, 3, 7).float()},
        ValueError,
        r"K: is not symmetric, .* use \(K \+ K.T\) / 2 if only rounding makes it differ from its transpose",
    ),
    "not symmetric": ({"K": torch.triu(gaussian(N))}, ValueError, "K: .*symmetric"),
}


# Cholesky takes these ridges, and ignores a start.
OF_CG = ("ridge 0", "tiny ridge", "huge x0")


@pytest.mark.parametrize(
    ("case", "method"), [(case, "cg") for case in CASES] + [(case, "cholesky") for case in CASES if case not in OF_CG]
)
def test_errors(case, method):
    changed, error, message = CASES[case]
    given = {"K": gaussian(N), "targets": random_targets(N, 2), "ridge": 1e-3, "method": method} | changed
    with pytest.raises(error, match=message) as found:
        kernel_ridge(**given)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_an_indefinite_kernel(method):
    signs = torch.linspace(-1, 1, N, dtype=torch.float64)
    basis = torch.linalg.qr(random_targets(N, N))[0]
    kernel = basis @ torch.diag(signs) @ basis.T
    kernel = (kernel + kernel.T) / 2
    kernel.diagonal().add_(0.3)
    with pytest.raises(ValueError, match=r"K: is not positive definite with .*use a larger ridge, or a float64 kernel"):
        kernel_ridge(kernel, random_targets(N, 2), 1e-3, method=method, rank=3)


def test_the_least_ridge_of_a_message_suffices():
    for n in range(20, 30):
        kernel, targets = gaussian(n, dtype=torch.float32), random_targets(n, 1)
        with pytest.raises(ValueError, match="use a larger ridge, a float64 kernel, or method='cholesky'") as found:
            kernel_ridge(kernel, targets, 1e-9, method="cg")
        least = float(str(found.value).split("needs at least ")[1].split(",")[0])
        kernel_ridge(kernel, targets, least, method="cg", tol=0.1)


def test_cholesky_takes_ridge_0():
    kernel, targets = torch.eye(N, dtype=torch.float64) + gaussian(N), random_targets(N, 2)
    solution = kernel_ridge(kernel, targets, 0, method="cholesky")
    torch.testing.assert_close(solution.alpha, exact_alpha(kernel, targets, 0))


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_constant_targets(method):
    """One class has nothing to learn: the solution is 0, and says so."""
    targets = torch.tensor([[2.0, 5.0]]).repeat(N, 1)
    solution = kernel_ridge(gaussian(N), targets, 1e-3, method=method)
    assert not solution.alpha.any()
    assert "targets are constant, so alpha is 0" in solution.reason
    assert solution.predict(gaussian(N)[:2]).tolist() == [[2, 5], [2, 5]]
    targets[0, 0] = 3
    solution = kernel_ridge(gaussian(N), targets, 1e-3, method=method, x0=torch.ones(N, 2))
    assert not solution.alpha[:, 1].any()
    assert solution.alpha[:, 0].all()


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_a_constant_column_whose_mean_is_rounded(method):
    targets = random_targets(N, 2)
    targets[:, 1] = 0.1
    solution = kernel_ridge(gaussian(N), targets, 1e-2, method=method)
    assert not bool(solution.alpha[:, 1].any())
    assert float(solution.mean[1]) == 0.1
    assert float(solution.residuals[1]) == 0


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_rows_of_zeros(method):
    """Such rows are solved by the ridge alone, and are named."""
    kernel, targets = gaussian(N), random_targets(N, 2)
    kernel[:3], kernel[:, :3] = 0, 0
    solution = kernel_ridge(kernel, targets, 0.5, method=method, tol=1e-10)
    assert "3 of 60 rows of K are zero" in solution.reason
    torch.testing.assert_close(solution.alpha, exact_alpha(kernel, targets, 0.5), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_a_tiny_ridge_takes_the_kernel_to_float64(method):
    """If the kernel has float64 entries to offer, they are taken, and the solution says so."""
    exact, targets = gaussian(N), random_targets(N, 2)
    kernel = WatchedKernel(exact, twin=True, dtype=torch.float32)
    solution = kernel_ridge(kernel, targets, 1e-8, method=method, tol=1e-6)
    assert "entries of K taken to float64, because float32 needs a ridge of at least" in solution.reason
    assert kernel.products == []
    expected = exact_alpha(exact, targets, 1e-8)
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
    assert "float64" not in kernel_ridge(kernel, targets, 1e-3, method=method).reason


def test_memory(monkeypatch):
    monkeypatch.setattr("gatedops.solve.checks.available", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"K: Cholesky of 60 points needs .* GiB, .*use method='cg'"):
        kernel_ridge(gaussian(N), random_targets(N, 2), 1e-3, method="cholesky")
    kernel = WatchedKernel(gaussian(N))
    with pytest.raises(ValueError, match=r"targets: a solve of 2,000 columns with rank 15 for 60 points needs .* GiB"):
        kernel_ridge(kernel, random_targets(N, 2000), 1e-3, method="cg")
    assert kernel.products == []


def test_paths():
    kernel, targets = gaussian(N), random_targets(N, 2)
    with pytest.raises(ValueError, match="ridges: is empty, needs at least one ridge"):
        ridge_path(kernel, targets, [])
    with pytest.raises(TypeError, match=r"ridges: got 0.1, needs a sequence of numbers"):
        ridge_path(kernel, targets, 0.1)
    with pytest.raises(ValueError, match="ridge: got -1"):
        ridge_path(kernel, targets, [1, -1])
    with pytest.raises(ValueError, match="method: got 'nystrom'"):
        ridge_path(kernel, targets, [1], method="nystrom")


def test_numpy_and_lists():
    kernel, targets = gaussian(N), random_targets(N, 2)
    plain = kernel_ridge(kernel, targets, 1e-2)
    for given in (targets.numpy(), targets.tolist()):
        assert torch.equal(kernel_ridge(kernel.numpy(), given, np.float64(1e-2)).alpha, plain.alpha)
