"""Compares kernel regression with scikit-learn, and tests its invariances and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gatedops.path_kernels.regression import KernelRegression, accuracy, fit, one_hot


def blobs(n: int, seed: int, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Makes n points in the plane around three centres, float64 (n, 2), and the index of each point's centre."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]], dtype=torch.float64)
    noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * noise, labels


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Computes a Gaussian kernel of width 1."""
    return torch.exp(-0.5 * torch.cdist(a, b).square())


def test_equals_kernel_ridge_of_scikit_learn() -> None:
    sklearn_ridge = pytest.importorskip("sklearn.kernel_ridge")
    (x, labels), (z, _) = blobs(60, 0), blobs(25, 1)
    k, ridge = kernel(x, x), 1e-2
    targets = one_hot(labels, 3)
    peer = sklearn_ridge.KernelRidge(alpha=ridge * k.trace().item() / len(k), kernel="precomputed")
    peer.fit(k.numpy(), (targets - targets.mean(0)).numpy())
    expected = torch.from_numpy(peer.predict(kernel(z, x).numpy())) + targets.mean(0)
    torch.testing.assert_close(fit(k, targets, ridge).predict(kernel(z, x)), expected, rtol=1e-10, atol=1e-12)


def test_solves_its_equation_and_leaves_the_gram_alone() -> None:
    x, labels = blobs(40, 2)
    k, targets = kernel(x, x), one_hot(labels, 3)
    before = k.clone()
    fitted = fit(k, targets, 0.3)
    assert torch.equal(k, before)
    left = (k + 0.3 * k.trace() / 40 * torch.eye(40, dtype=torch.float64)) @ fitted.alpha
    torch.testing.assert_close(left, targets - targets.mean(0), rtol=1e-10, atol=1e-12)


def test_without_a_ridge_it_interpolates() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    k, y = features @ features.T, torch.randn(12, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fit(k, y, 0.0).predict(k).squeeze(1), y, rtol=1e-8, atol=1e-8)


def test_a_factor_of_the_kernel_changes_nothing() -> None:
    (x, labels), (z, _) = blobs(50, 3), blobs(20, 4)
    targets = one_hot(labels, 3)
    scores = fit(kernel(x, x), targets, 0.1).predict(kernel(z, x))
    scaled = fit(2.0**40 * kernel(x, x), targets, 0.1).predict(2.0**40 * kernel(z, x))
    torch.testing.assert_close(scaled, scores, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_works_in_float64_whatever_the_gram(dtype: torch.dtype) -> None:
    x, labels = blobs(30, 5)
    fitted = fit(kernel(x, x).to(dtype), one_hot(labels, 3), 1e-2)
    assert fitted.alpha.dtype == fitted.predict(kernel(x, x).to(dtype)).dtype == torch.float64
    assert accuracy(fitted.predict(kernel(x, x)), labels) > 0.9


def test_accuracy_and_one_hot() -> None:
    labels = torch.tensor([2, 0, 1, 1])
    assert one_hot(labels, 4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert accuracy(one_hot(labels, 4), labels) == 1
    assert accuracy(one_hot(labels, 4), torch.tensor([2, 0, 0, 3])) == 0.5


def test_not_positive_definite() -> None:
    k = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"k_train is not positive definite with ridge=0\.001"):
        fit(k, torch.tensor([0.0, 1.0]))


NAN = float("nan")


@pytest.mark.parametrize(
    ("k", "targets", "message"),
    [
        (torch.zeros(0, 0), torch.zeros(0), r"k_train must have shape \(n, n\) with n > 0"),
        (torch.eye(3)[:2], torch.zeros(2), r"k_train must have shape \(n, n\) with n > 0, got \(2, 3\)"),
        (torch.ones(3), torch.zeros(3), r"k_train must have shape \(n, n\)"),
        (torch.eye(3), torch.zeros(2), "targets must have 3 rows"),
        (torch.eye(3), torch.zeros(3, 1, 1), "targets must have 3 rows"),
        (torch.eye(2), torch.tensor([0.0, NAN]), "must be finite"),
        (torch.eye(2) * float("inf"), torch.zeros(2), "must be finite"),
        (torch.zeros(2, 2), torch.zeros(2), "no positive diagonal"),
    ],
)
def test_bad_arguments_of_fit(k: Tensor, targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(k, targets)


@pytest.mark.parametrize("ridge", [-1.0, NAN])
def test_bad_ridge(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        fit(torch.eye(2), torch.zeros(2), ridge)


def test_bad_test_kernel() -> None:
    fitted = KernelRegression(torch.zeros(3, 2), torch.zeros(2), 0.1)
    for shape in ((3,), (4, 2)):
        with pytest.raises(ValueError, match=r"k_test_train must have shape \(m, 3\)"):
            fitted.predict(torch.zeros(shape))


def test_arrays_of_numpy_are_taken_for_tensors():
    made = np.random.default_rng(0)
    rows = made.standard_normal((20, 30))
    k, labels = rows @ rows.T, made.integers(0, 3, 20)
    tensors = torch.from_numpy(k), torch.from_numpy(labels)
    targets = one_hot(labels, 3)
    fitted = fit(k, targets.numpy())
    assert torch.equal(fitted.alpha, fit(tensors[0], targets).alpha)
    assert torch.equal(fitted.predict(k), fitted.predict(tensors[0]))
    assert accuracy(fitted.predict(k).numpy(), labels) == accuracy(fitted.predict(k), tensors[1])
    with pytest.raises(TypeError, match="k_train: got list, needs a tensor or a numpy array"):
        fit(k.tolist(), targets)


def test_lists_are_taken_for_labels_and_targets():
    rows = torch.randn(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k, labels, targets = rows @ rows.T, [0, 1, 2] * 4, [0.1 * i for i in range(12)]
    assert torch.equal(one_hot(labels, 3), one_hot(torch.tensor(labels), 3))
    assert torch.equal(fit(k, targets).alpha, fit(k, torch.tensor(targets, dtype=torch.float64)).alpha)
    assert torch.equal(fit(k, one_hot(labels, 3).tolist()).alpha, fit(k, one_hot(labels, 3)).alpha)
    scores = fit(k, one_hot(labels, 3)).predict(k)
    assert accuracy(scores, labels) == accuracy(scores, torch.tensor(labels))
    for given in (["a"] * 12, [[1.0], [1.0, 2.0]], [None] * 12):
        with pytest.raises(TypeError, match="targets: got a list of other things, needs a list of numbers"):
            fit(k, given)
