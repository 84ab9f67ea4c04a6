"""Gaussian processes with NPKKernel train and predict like those with the stored float64 Gram, by every solver."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from nets import mlp
from torch import nn

own = pytest.importorskip("gatedops.gpytorch")
gpytorch = pytest.importorskip("gpytorch")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # GPyTorch says so when it predicts at the points that it was trained with.
    pytest.mark.filterwarnings("ignore:The input matches the stored training data:UserWarning"),
]
N, TESTS = 30, 7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp().double()


class StoredKernel(gpytorch.kernels.Kernel):
    """The same kernel from gates that each call multiplies in float64."""

    def __init__(self, net):
        super().__init__()
        self.layers = [(net[0], net[2])]

    def gates(self, x):
        ((first, second),) = self.layers
        q = first(x)
        return [(q > 0).double().detach(), (second(q.relu()) > 0).double().detach()]

    def forward(self, x1, x2, diag=False, **params):
        gram = x1 @ x2.mT
        for one, other in zip(self.gates(x1), self.gates(x2), strict=True):
            gram = gram * (one @ other.mT) / one.shape[-1]
        return gram.diagonal(dim1=-1, dim2=-2) if diag else gram


class Process(gpytorch.models.ExactGP):
    def __init__(self, x, y, kernel):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood().double())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(kernel)
        self.double()

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def trained(kernel, steps=5):
    """Returns the loss of each step, and the mean, the variance and their gradient at other points."""
    x, tests = drawn(N, 6), drawn(TESTS, 6, seed=1).requires_grad_()
    model = Process(x, x[:, 0].sin() + 0.1 * drawn(N, seed=2), kernel)
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.1), []
    for step in range(steps):
        torch.manual_seed(step)  # Conjugate gradients estimate the determinant with random vectors.
        optimizer.zero_grad()
        loss = -marginal(model(x), model.train_targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    model.eval()
    predicted = model.likelihood(model(tests))
    (predicted.mean.sum() + predicted.variance.sum()).backward()
    return [torch.stack(losses), predicted.mean.detach(), predicted.variance.detach(), tests.grad]


@contextmanager
def iterating():
    """Makes GPyTorch use conjugate gradients and Lanczos, to the tolerance that its solver reaches in float64."""
    settings = gpytorch.settings
    with (
        settings.max_cholesky_size(0),
        settings.fast_computations(),  # The import of BoTorch turns them off.
        settings.cg_tolerance(1e-5),
        settings.eval_cg_tolerance(1e-5),
        settings.min_preconditioning_size(10),
        settings.max_root_decomposition_size(N),
        settings.max_lanczos_quadrature_iterations(N),
    ):
        yield


@pytest.mark.parametrize("way", [nullcontext, iterating], ids=["cholesky", "cg"])
def test_training_and_prediction_equal_those_of_the_stored_gram(net, way):
    with way():
        ours, stored = trained(own.NPKKernel(net)), trained(StoredKernel(net))
    assert ours[0][-1] < ours[0][0]
    for one, other in zip(ours, stored, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_conjugate_gradients_never_store_the_matrix(net, monkeypatch):
    def to_dense(self):
        raise AssertionError("the matrix was stored")

    monkeypatch.setattr(own.NPKLinearOperator, "to_dense", to_dense)
    x = drawn(N, 6)
    model = Process(x, x[:, 0].sin(), own.NPKKernel(net))
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with iterating():
        marginal(model(x), model.train_targets).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with pytest.raises(AssertionError, match="the matrix was stored"):
        marginal(model(x), model.train_targets)


def test_fast_predictions_and_samples(net):
    x, y = drawn(N, 6), drawn(N, seed=2)
    tests = drawn(TESTS, 6, seed=1)
    models = [Process(x, y, kernel).eval() for kernel in (own.NPKKernel(net), StoredKernel(net))]
    with gpytorch.settings.fast_pred_var(), torch.no_grad():
        ours, stored = (model(tests) for model in models)
        torch.testing.assert_close(ours.mean, stored.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.covariance_matrix, stored.covariance_matrix, rtol=1e-6, atol=1e-6)
    assert models[0](tests).rsample(torch.Size([3])).shape == (3, TESTS)


@pytest.mark.parametrize("options", [{}, {"input_shape": (6,)}], ids=["gates", "network"])
def test_no_test_points(net, options):
    x = drawn(N, 6)
    model = Process(x, x[:, 0].sin(), own.NPKKernel(net, **options)).eval()
    with torch.no_grad():
        predicted = model.likelihood(model(x[:0]))
    assert predicted.mean.shape == predicted.variance.shape == (0,)
    assert predicted.covariance_matrix.shape == (0, 0)


def test_float32(net):
    x, y, tests = drawn(N, 6).float(), drawn(N, seed=2).float(), drawn(TESTS, 6, seed=1).float()
    model = Process(x, y, own.NPKKernel(net)).float().eval()
    reference = Process(x.double(), y.double(), StoredKernel(net)).eval()
    with torch.no_grad():
        found, expected = model(tests).mean, reference(tests.double()).mean
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_model_of_botorch_fits_and_gives_acquisition_values(net):
    botorch = pytest.importorskip("botorch")
    x = drawn(12, 6).sigmoid()
    y = x.sum(1, keepdim=True).sin()
    candidates = drawn(3, 2, 6, seed=3).sigmoid().requires_grad_()
    found = []
    for kernel in (own.NPKKernel(net), StoredKernel(net)):
        torch.manual_seed(0)
        model = botorch.models.SingleTaskGP(x, y, covar_module=gpytorch.kernels.ScaleKernel(kernel))
        marginal = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        botorch.fit.fit_gpytorch_mll(marginal, optimizer_kwargs={"options": {"maxiter": 5}})
        posterior = model.posterior(candidates)
        assert posterior.mean.shape == (3, 2, 1)
        sampler = botorch.sampling.SobolQMCNormalSampler(torch.Size([16]), seed=0)
        acquired = botorch.acquisition.qLogExpectedImprovement(model, best_f=y.max(), sampler=sampler)(candidates)
        assert acquired.shape == (3,)
        (gradient,) = torch.autograd.grad(acquired.sum(), candidates)
        assert gradient.abs().max() > 0
        found.append([posterior.mean.detach(), posterior.variance.detach(), acquired.detach(), gradient])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
