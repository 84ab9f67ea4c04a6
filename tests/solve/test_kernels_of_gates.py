"""All functions on neural path kernels that are not stored, against the same functions on their Grams."""

from __future__ import annotations

import pytest
import torch
from kernels import random_targets

from gatedops import GateBits, NPKOperator, npk_gram
from gatedops.solve import eigsh, gradient_flow, kernel_ridge, logdet, loo, nystrom, select_ridge

pytestmark = pytest.mark.usefixtures("one_thread")

N = 150


def gates(seed: int, rows: int) -> tuple[torch.Tensor, GateBits]:
    bits = GateBits.pack([random_targets(rows, 40, seed), random_targets(rows, 30, seed + 1)])
    return random_targets(rows, 6, seed + 2).float(), bits


@pytest.fixture(scope="module")
def problem():
    (x, bits), (z, test_bits) = gates(0, N), gates(5, 20)
    return {
        "operator": NPKOperator(bits, x),
        "gram": npk_gram(x.double(), bits, dtype=torch.float64),
        "bits": bits,
        "x": x,
        "test": lambda index: NPKOperator(test_bits, z, bits[index], x[index]),
        "cross": npk_gram(z.double(), test_bits, x.double(), bits, dtype=torch.float64),
        "targets": random_targets(N, 3),
    }


def assert_near(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_scores(problem):
    operator, gram, targets, everything = *(problem[name] for name in ("operator", "gram", "targets")), torch.arange(N)
    for method in ("eigen", "lanczos"):
        ours = gradient_flow(operator, targets, 5.0, method=method, tol=1e-8)
        expected = gradient_flow(gram, targets, 5.0)
        assert_near(ours.predict(problem["test"](everything)), expected.predict(problem["cross"]))
    centres = torch.tensor([5, 140, 17, 99, 3])
    ours, expected = (nystrom(kernel, targets, 0.1, centres=centres) for kernel in (operator, gram))
    assert_near(ours.predict(problem["test"](centres)), expected.predict(problem["cross"][:, centres]))


@pytest.mark.parametrize("method", ["cholesky", "probes"])
def test_residuals(problem, method):
    ours, expected = (
        loo(kernel_ridge(problem[name], problem["targets"], 0.1, method="cg", tol=1e-8), method=method, tol=1e-8)
        for name in ("operator", "gram")
    )
    assert_near(ours, expected)


def test_numbers(problem):
    operator, gram = problem["operator"], problem["gram"]
    assert_near(eigsh(operator, 8, method="lanczos").values, torch.linalg.eigvalsh(gram).flip(0)[:8])
    for method in ("cholesky", "lanczos"):
        ours, expected = (logdet(kernel, 0.1, method=method) for kernel in (operator, gram))
        assert ours == pytest.approx(expected, rel=1e-4)
    labels = torch.arange(N) % 3
    assert select_ridge(operator, labels) == select_ridge(gram, labels)


def test_too_little_memory(monkeypatch, problem):
    """It is known before the work, for every function that stores blocks of vectors."""
    operator, targets = problem["operator"], problem["targets"]
    solution = kernel_ridge(operator, targets, 0.1, method="cg")
    monkeypatch.setattr("gatedops.solve.checks.available", lambda device: 100)
    for call, message in (
        (lambda: gradient_flow(operator, targets, [1.0, 2.0]), r"targets: alpha at 2 times needs .* GiB, but"),
        (lambda: loo(solution, method="probes"), "probes: a block of 64 for 150 points needs"),
        (lambda: loo(solution, method="cholesky"), "K: Cholesky of 150 points needs .*use method='probes'"),
        (lambda: logdet(operator, 0.1, method="lanczos"), "probes: a block of 32 for 150 points needs"),
        (lambda: logdet(operator, 0.1, method="cholesky"), "K: Cholesky of 150 points needs .*use method='lanczos'"),
        (lambda: eigsh(operator, 3, method="dense"), "K: an eigendecomposition of 150 points needs"),
        (lambda: select_ridge(operator, targets), "K: an eigendecomposition of 150 points needs .*use fewer points"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
