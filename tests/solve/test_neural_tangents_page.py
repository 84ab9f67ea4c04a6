"""What docs/from_neural_tangents.md calls equivalent is: its example gives what formulas of neural-tangents give."""

from __future__ import annotations

import pytest
import torch
from pages import run_code, section_of

from gatedops import npk
from gatedops.solve import eigsh

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = "from_neural_tangents.md"


@pytest.fixture(scope="module")
def example():
    torch.manual_seed(0)
    return run_code(section_of(PAGE, "An example"), PAGE)


def test_ridge_is_the_relative_diag_reg(example):
    K, y = example["K"].double(), example["y"].double()
    regularised = K + 1e-3 * K.diagonal().mean() * torch.eye(len(K))
    expected = example["K_test"].double() @ torch.linalg.solve(regularised, y - y.mean()) + y.mean()
    torch.testing.assert_close(example["at_the_end"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(example["without_a_gram"], expected, atol=1e-5, rtol=0)


def test_time_is_steps_times_the_learning_rate_over_the_size_of_y(example):
    values, vectors = torch.linalg.eigh(example["K"].double())
    # predict.gradient_descent_mse weights each eigenvector by this factor.
    factor = -torch.expm1(-values * example["learning_rate"] * example["t"] / example["y"].numel())
    y = example["y"].double()
    alpha = vectors @ ((factor / values)[:, None] * (vectors.T @ (y - y.mean())))
    expected = example["K_test"].double() @ alpha + y.mean()
    torch.testing.assert_close(example["on_the_way"], expected, atol=1e-6, rtol=0)


def test_the_largest_learning_rate_is_where_gradient_descent_stops_shrinking_errors(example):
    rate = 2 * example["y"].numel() / eigsh(example["K"], 1).values[0]
    step = torch.eye(len(example["K"])) - rate * example["K"].double() / example["y"].numel()
    torch.testing.assert_close(torch.linalg.eigvalsh(step).abs().max(), torch.tensor(1.0, dtype=torch.float64))


def test_the_sum_of_the_parts_is_the_tangent_kernel(example):
    net, x = example["net"], example["x"][:50]
    rows = []
    for one in x:
        grads = torch.autograd.grad(net(one[None]).sum(), tuple(net.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(example["tangent_kernel"], jacobian @ jacobian.T, atol=1e-4, rtol=1e-4)


def test_the_npk_is_the_term_of_the_first_layer_in_the_tangent_kernel_of_a_wide_network():
    torch.manual_seed(0)
    x, width = torch.randn(8, 10), 8192
    net = torch.nn.Sequential(
        torch.nn.Linear(10, width, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 512, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 1, bias=False),
    )
    K = npk(net, x)
    roots = K.diagonal().sqrt()
    # Cho and Saul 2009: the expectations of gates and of ReLUs of two inputs, whose pre-activations have a correlation.
    rho = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    angle = rho.clamp(-1, 1).arccos()
    deeper = (angle.sin() + (torch.pi - angle) * angle.cos()) / torch.pi
    expected = rho * (1 - angle / torch.pi) * (1 - deeper.clamp(-1, 1).arccos() / torch.pi)
    torch.testing.assert_close(K / torch.outer(roots, roots), expected, atol=0.05, rtol=0)
