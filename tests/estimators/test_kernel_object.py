"""npk_kernel in the estimators of scikit-learn, against the same estimators on dense kernels."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from dense_kernels import dense_npk, relu_chain
from sklearn.base import clone
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.svm import SVC
from torch import nn

import gatedops
from gatedops.sklearn import npk_kernel

NET = relu_chain(5, 24, 16, 2)
# Its first call looks into the net, which takes a tenth of a second.
KERNEL = npk_kernel(NET)
DRAWN = np.random.default_rng(0)
X, OTHERS = DRAWN.normal(size=(30, 5)), DRAWN.normal(size=(7, 5))
LABELS = (X[:, 0] * X[:, 1] > 0).astype(int)
NUMBERS = np.sin(X[:, 0]) + X[:, 1] + 0.3 * DRAWN.normal(size=30)


def normalized(net, x, y, **options):
    roots = [np.sqrt(np.diag(dense_npk(net, side, **options))) for side in (x, y)]
    return dense_npk(net, x, y, **options) / np.outer(*roots)


@pytest.mark.parametrize("sigma", [True, False])
def test_equals_the_dense_kernel(sigma):
    kernel = npk_kernel(NET, sigma)
    square = kernel(X)
    assert square.dtype == np.float64
    assert np.array_equal(square, square.T)
    np.testing.assert_allclose(square, dense_npk(NET, X, sigma=sigma), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(kernel(X, OTHERS), dense_npk(NET, X, OTHERS, sigma=sigma), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(kernel.diag(X), np.diag(square), rtol=1e-12)
    unit = npk_kernel(NET, sigma, normalize=True)
    np.testing.assert_allclose(unit(X, OTHERS), normalized(NET, X, OTHERS, sigma=sigma), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.diag(unit(X)), unit.diag(X), rtol=1e-12)


def test_one_row_gives_a_number():
    assert isinstance(KERNEL(X[0], X[1]), float)
    assert KERNEL(X[0], X[1]) == pytest.approx(dense_npk(NET, X[:1], X[1:2])[0, 0], rel=1e-12)
    assert KERNEL(X[0]) == pytest.approx(dense_npk(NET, X[:1])[0, 0], rel=1e-12)


def test_a_convolutional_net_has_the_kernel_of_npk():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 1)
    ).double()
    images = DRAWN.normal(size=(6, 16))
    expected = gatedops.npk(net, torch.from_numpy(images).reshape(6, 1, 4, 4), dtype=torch.float64).numpy()
    found = npk_kernel(net, input_shape=(1, 4, 4))(images)
    # Single images may have no gate on before the output.
    np.testing.assert_allclose(found / found.trace(), expected / expected.trace(), rtol=1e-12, atol=1e-15)
    assert np.log2(found.trace() / expected.trace()) % 1 == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match=r"sigma: got False.*fully connected"):
        npk_kernel(net, sigma=False, input_shape=(1, 4, 4))(images)


def test_inputs_without_a_gate_have_the_kernel_0():
    dead = relu_chain(5, 8, 2)
    with torch.no_grad():
        dead[0].bias.fill_(-1.0)
    zeros = np.zeros((2, 5))
    for normalize in (False, True):
        kernel = npk_kernel(dead, normalize=normalize)
        assert not kernel(np.vstack([zeros, X]), zeros).any()
        assert not kernel.diag(zeros).any()


@pytest.mark.parametrize(
    "form", [lambda x: pd.DataFrame(x, columns=list("abcde")), np.asfortranarray, np.ndarray.tolist]
)
def test_takes_other_forms(form):
    np.testing.assert_allclose(KERNEL(form(X), form(OTHERS)), KERNEL(X, OTHERS))


def test_takes_bytes_and_read_only_arrays():
    pixels = DRAWN.integers(0, 255, (9, 5), dtype=np.uint8)
    pixels.flags.writeable = False
    np.testing.assert_allclose(KERNEL(pixels), dense_npk(NET, pixels), rtol=1e-12)


def called_with(kernel, monkeypatch):
    """Lists the number of dimensions of X for each call of a kernel."""
    calls = []
    call = type(kernel).__call__

    def counted(self, X, *others, **options):
        calls.append(np.ndim(X))
        return call(self, X, *others, **options)

    monkeypatch.setattr(type(kernel), "__call__", counted)
    return calls


@pytest.mark.parametrize(
    "made",
    [
        lambda kernel: SVC(kernel=kernel),
        lambda kernel: KernelRidge(kernel=kernel),
        lambda kernel: Nystroem(kernel=kernel, n_components=5, random_state=0),
        lambda kernel: KernelPCA(n_components=2, kernel=kernel),
    ],
    ids=["SVC", "KernelRidge", "Nystroem", "KernelPCA"],
)
def test_estimators_call_it_with_matrices(made, monkeypatch):
    calls = called_with(KERNEL, monkeypatch)
    made(KERNEL).fit(X, LABELS)
    assert calls == [2]


def test_kernel_ridge_calls_a_function_once_per_pair(monkeypatch):
    """What the docstring warns of; the numbers are right."""
    calls = called_with(KERNEL, monkeypatch)
    few, targets = X[:5], NUMBERS[:5]
    slow = KernelRidge(kernel=lambda x, y: KERNEL(x, y)).fit(few, targets).predict(OTHERS[:2])
    assert calls == [1] * (15 + 10)
    np.testing.assert_allclose(slow, KernelRidge(kernel=KERNEL).fit(few, targets).predict(OTHERS[:2]), rtol=1e-10)


def test_svc_equals_the_dense_one():
    ours = SVC(kernel=KERNEL).fit(X, LABELS)
    dense = SVC(kernel="precomputed").fit(dense_npk(NET, X), LABELS)
    expected = dense.decision_function(dense_npk(NET, OTHERS, X))
    np.testing.assert_allclose(ours.decision_function(OTHERS), expected, rtol=1e-9)


def test_kernel_pca_equals_the_dense_one_in_threads_too():
    dense = KernelPCA(3, kernel="precomputed", eigen_solver="dense").fit_transform(dense_npk(NET, X))
    for n_jobs in (1, 2):
        ours = KernelPCA(3, kernel=KERNEL, eigen_solver="dense", n_jobs=n_jobs).fit_transform(X)
        np.testing.assert_allclose(np.abs(ours), np.abs(dense), rtol=1e-8, atol=1e-10)


def test_a_gaussian_process_trains_and_predicts_as_the_dense_one():
    composed = ConstantKernel(1.0) * KERNEL + WhiteKernel(0.1)
    ours = GaussianProcessRegressor(composed, random_state=0).fit(X, NUMBERS)
    scale, noise = np.exp(ours.kernel_.theta)

    def covariance(x, y=None):
        return scale * dense_npk(NET, x, y)

    def likelihood(scale, noise):
        covariance = scale * dense_npk(NET, X) + noise * np.eye(len(X))
        logdet = np.linalg.slogdet(covariance)[1]
        return -0.5 * (NUMBERS @ np.linalg.solve(covariance, NUMBERS) + logdet + len(X) * np.log(2 * np.pi))

    assert ours.log_marginal_likelihood_value_ == pytest.approx(likelihood(scale, noise), rel=1e-7)
    # Training has found the largest likelihood.
    assert all(likelihood(scale * a, noise * b) < likelihood(scale, noise) for a, b in [(1.1, 1), (0.9, 1), (1, 1.1)])
    noisy = covariance(X) + noise * np.eye(len(X))
    cross = covariance(OTHERS, X)
    mean, deviation = ours.predict(OTHERS, return_std=True)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(noisy, NUMBERS), rtol=1e-6, atol=1e-9)
    variance = np.diag(covariance(OTHERS)) + noise - np.einsum("ij,ji->i", cross, np.linalg.solve(noisy, cross.T))
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-6)


def test_the_protocol_of_kernels():
    kernel = npk_kernel(NET, normalize=True)
    matrix, gradient = kernel(X, eval_gradient=True)
    assert gradient.shape == (*matrix.shape, 0)
    assert kernel.theta.shape == (0,)
    assert kernel.n_dims == 0
    assert not kernel.is_stationary()
    assert repr(kernel) == "NPKKernel(sigma=True, normalize=True)"
    assert kernel.get_params().keys() == {"net", "sigma", "normalize", "input_shape"}
    for copy in (clone(kernel), pickle.loads(pickle.dumps(kernel)), kernel.clone_with_theta([])):
        assert copy is not kernel
        assert np.array_equal(copy(X), matrix)


def test_it_is_the_kernel_of_the_net_as_it_was():
    net = relu_chain(5, 8, 2)
    kernel = npk_kernel(net.train())
    before = dense_npk(net, X)
    with torch.no_grad():
        net[0].weight.neg_()
    np.testing.assert_allclose(kernel(X), before, rtol=1e-12, atol=1e-14)
    assert net.training
    np.testing.assert_allclose(kernel.set_params(net=net)(X), dense_npk(net, X), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: npk_kernel(None), "net: got NoneType, needs a torch.nn.Module"),
        (lambda: npk_kernel(NET)(X[:, :4]), "net: got one that does not take inputs of shape .4,.*first layer needs 5"),
        (lambda: KERNEL(X, X[:, :4]), "Y: has 4 features, needs those of X, 5"),
        (lambda: KERNEL(X * np.nan), "Input X contains NaN"),
        (lambda: KERNEL(X, np.full_like(X, np.inf)), "Input Y contains infinity"),
        (lambda: KERNEL(X, X, eval_gradient=True), "eval_gradient: got True and Y"),
        (lambda: KERNEL(X[None]), "Found array with dim 3"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
