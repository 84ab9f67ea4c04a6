"""kernel_ridge against dense solves in float64: both methods, the tail of the preconditioner, what stops a solve."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import WatchedKernel, exact_alpha, gaussian, laplacian, random_targets
from tolerances import assert_same_bits
from torch_threads import threads

from gatedops import GateBits, NPKOperator, npk_gram
from gatedops.solve import kernel_ridge, ridge_path
from gatedops.solve.pivoted_cholesky import pivoted_factor
from gatedops.solve.preconditioner import Preconditioner, preconditioner_of

pytestmark = pytest.mark.usefixtures("one_thread")


def true_residuals(kernel, targets, solution):
    b = targets - targets.mean(0)
    kernel = kernel.double()
    return (b - kernel @ solution.alpha - solution.ridge * kernel.diagonal().mean() * solution.alpha).norm(
        dim=0
    ) / b.norm(dim=0)


@given(
    n=st.integers(2, 70),
    columns=st.integers(1, 5),
    ridge=st.sampled_from([1e-3, 0.1, 10.0]),
    method=st.sampled_from(["cg", "cholesky"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_any_shape(n, columns, ridge, method, dtype, data):
    kernel, targets = gaussian(n, seed=n, dtype=dtype), random_targets(n, columns)
    rank = data.draw(st.none() | st.integers(1, n))
    solution = kernel_ridge(kernel, targets, ridge, method=method, tol=1e-9, rank=rank)
    expected = exact_alpha(kernel, targets, ridge)
    assert solution.converged
    assert solution.alpha.shape == (n, columns)
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(solution.residuals, true_residuals(kernel, targets, solution), rtol=1e-2, atol=1e-12)
    assert float(solution.residuals.max()) <= 1e-9


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_float32_products_reach_any_tolerance(tol):
    """The directions are float32, so the recursive residuals stay true."""
    kernel, targets = WatchedKernel(gaussian(300), dtype=torch.float32), random_targets(300, 2)
    solution = kernel_ridge(kernel, targets, 1e-3, method="cg", tol=tol, rank=40)
    assert float(solution.residuals.max()) <= tol
    torch.testing.assert_close(solution.recursive, solution.residuals, rtol=1e-2, atol=1e-12)
    assert kernel.products[-1] == (2, torch.float64)
    assert {dtype for _, dtype in kernel.products[:-1]} == {torch.float32}
    assert len(kernel.products) == solution.iterations + 1


def test_columns_leave_when_they_converge():
    kernel = WatchedKernel(gaussian(200))
    targets = torch.cat([kernel.exact[:, :1] * 5, random_targets(200, 1)], 1)
    solution = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=60, tol=1e-6)
    counts = [count for count, _ in kernel.products[:-1]]
    assert counts[0] == 2
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)
    assert solution.converged


def test_the_tail_saves_steps(monkeypatch):
    """Without the mean of what the factor leaves out, the preconditioner is worse than with it."""
    kernel, targets = laplacian(400), random_targets(400, 2)

    def steps() -> int:
        return kernel_ridge(kernel, targets, 1e-4, method="cg", rank=40).iterations

    with_tail = steps()

    def without(*given):
        return dataclasses.replace(preconditioner_of(*given), tail=0.0)

    monkeypatch.setattr("gatedops.solve.iterate.preconditioner_of", without)
    assert with_tail <= 14
    assert steps() >= 1.6 * with_tail


def test_a_full_factor_solves_at_once():
    kernel = gaussian(100)
    solution = kernel_ridge(kernel, random_targets(100, 2), 1e-3, method="cg", rank=100, tol=1e-8)
    assert solution.iterations <= 2


@given(n=st.integers(1, 40), shift=st.sampled_from([1e-6, 1e-2, 1.0]), data=st.data())
def test_the_preconditioner_is_the_inverse_it_says(n, shift, data):
    kernel = gaussian(n, seed=n)
    rank = data.draw(st.integers(1, n))
    factor = pivoted_factor(WatchedKernel(kernel), kernel.diagonal(), rank)
    made = preconditioner_of(WatchedKernel(kernel), kernel.diagonal(), rank)
    dense = made.tiles.reshape(-1, made.rank)[:n]
    assert made.tail == pytest.approx(float((kernel - dense @ dense.T).trace()) / n, abs=1e-12)
    assert made.index.tolist() == factor.index.tolist()
    v = random_targets(n, 2)
    scale = torch.tensor([shift, 3 * shift], dtype=torch.float64)
    solved = made.at(scale).solve(v)
    for column in range(2):
        s = float(scale[column]) + made.tail
        system = dense @ dense.T / s + torch.eye(n, dtype=torch.float64)
        torch.testing.assert_close(system @ solved[:, column], v[:, column], rtol=0, atol=1e-7)


def test_same_bits_for_any_number_of_threads():
    kernel, targets = gaussian(600), random_targets(600, 3)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(kernel_ridge(WatchedKernel(kernel), targets, 1e-3, method="cg", rank=150))
    for solution in found[1:]:
        assert_same_bits(solution.alpha, found[0].alpha)
        assert solution.iterations == found[0].iterations


@pytest.mark.parametrize("ridge", [1e-2, 1e-9])
def test_the_neural_path_kernel(ridge):
    """The kernel of gates, with the same bits for any number of threads. The second ridge takes it to float64."""
    bits, x = GateBits.pack([random_targets(260, 40, 1), random_targets(260, 30, 2)]), random_targets(260, 6, 3).float()
    exact, targets = npk_gram(x.double(), bits, dtype=torch.float64), random_targets(260, 2)
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(kernel_ridge(NPKOperator(bits, x), targets, ridge, method="cg", rank=200, tol=1e-6))
    assert_same_bits(found[0].alpha, found[1].alpha)
    assert ("float64" in found[0].reason) == (ridge == 1e-9)
    expected = exact_alpha(exact, targets, ridge)
    torch.testing.assert_close(found[0].alpha, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


def test_float32_factor_of_a_large_problem(monkeypatch):
    """A factor that takes much memory is kept in float32; the steps stay as few."""
    kernel, targets = gaussian(500), random_targets(500, 2)
    small = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=100)
    monkeypatch.setattr("gatedops.solve.pivoted_cholesky._LARGE", 0)
    large = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=100)
    assert large.system.preconditioner.tiles.dtype == torch.float32
    assert abs(large.iterations - small.iterations) <= 1


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_scales_do_not_matter(scale):
    kernel, targets = gaussian(200, dtype=torch.float32), random_targets(200, 2)
    plain = kernel_ridge(kernel, targets, 1e-2, method="cg", tol=1e-6)
    scaled = kernel_ridge(kernel * scale, targets / scale, 1e-2, method="cg", tol=1e-6)
    torch.testing.assert_close(
        scaled.alpha * scale * scale, plain.alpha, rtol=0, atol=1e-3 * float(plain.alpha.abs().max())
    )
    assert scaled.converged


def test_predictions_add_the_mean_and_interpolate():
    kernel, targets = gaussian(150), random_targets(150, 2) + 7
    solution = kernel_ridge(kernel[:100, :100], targets[:100].numpy(), 1e-9)
    assert solution.method == "cholesky"
    torch.testing.assert_close(solution.predict(kernel[:100, :100]), targets[:100], rtol=0, atol=0.05)
    torch.testing.assert_close(
        solution.predict(kernel[100:, :100]), kernel[100:, :100] @ solution.alpha + targets[:100].mean(0)
    )
    with pytest.raises(ValueError, match=r"K_test: has shape \(50, 50\), needs \(m, 100\)"):
        solution.predict(kernel[100:, 100:])


def test_lists_and_single_columns():
    solution = kernel_ridge(np.eye(3), [1.0, 2.0, 3.0], 1.0)
    torch.testing.assert_close(solution.alpha, torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64))
    assert "solved by Cholesky" in repr(solution)
    assert "<table>" in solution._repr_html_()


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_one_point(method):
    solution = kernel_ridge(torch.full((1, 1), 2.0), torch.tensor([3.0]), 0.1, method=method)
    assert solution.converged
    assert solution.alpha.tolist() == [[0]]
    assert solution.predict(torch.ones(2, 1)).tolist() == [[3], [3]]


def test_warm_starts_save_steps():
    kernel, targets = gaussian(300), random_targets(300, 2)
    first = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=30, tol=1e-6)
    again = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=30, tol=1e-6, x0=first.alpha)
    nearer = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=30, tol=1e-9, x0=first.alpha)
    fresh = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=30, tol=1e-9)
    assert again.iterations == 0
    assert_same_bits(again.alpha, first.alpha)
    assert nearer.iterations < fresh.iterations
    torch.testing.assert_close(nearer.alpha, fresh.alpha, rtol=0, atol=1e-5)


def test_callback_and_bar(capsys):
    seen: list[tuple[int, torch.Tensor]] = []
    solution = kernel_ridge(
        gaussian(200),
        random_targets(200, 3),
        1e-3,
        method="cg",
        rank=30,
        callback=lambda step, residuals: seen.append((step, residuals)),
        progress=True,
    )
    assert [step for step, _ in seen] == list(range(1, solution.iterations + 1))
    assert_same_bits(seen[-1][1], solution.recursive)
    assert "residual" in capsys.readouterr().err


def test_max_iter_warns_and_bounds_the_predictions():
    kernel, targets = gaussian(300), random_targets(300, 2)
    with pytest.warns(RuntimeWarning, match=r"kernel_ridge stopped after 3 steps: .* Use a larger max_iter"):
        solution = kernel_ridge(kernel, targets, 1e-4, method="cg", rank=20, max_iter=3)
    assert not solution.converged
    assert solution.iterations == 3
    torch.testing.assert_close(solution.residuals, true_residuals(kernel, targets, solution))
    change = kernel @ (exact_alpha(kernel, targets, 1e-4) - solution.alpha)
    bound = float(solution.reason.split("within ")[1].split()[0])
    assert 0 < float(change.square().mean(0).sqrt().max()) <= bound


def test_a_stall_is_said():
    """Products that are rounded more than the kernel says give no residual below their error."""

    class Coarse(WatchedKernel):
        def product(self, v):
            exact = super().product(v)
            return exact + 1e-5 * exact.abs().max() * torch.sin(1e7 * exact)

    with pytest.warns(
        RuntimeWarning, match="kernel_ridge stalled after .* use a larger tol, or a float64 kernel if K is float32"
    ):
        solution = kernel_ridge(Coarse(gaussian(200)), random_targets(200, 2), 1e-2, method="cg", tol=1e-10)
    assert float(solution.residuals.max()) < 1e-2


def test_a_drifting_residual_is_mended():
    """If the true residual is above the recursive one, the steps begin anew from the true one."""

    class Rounded(WatchedKernel):
        def product(self, v):
            return super().product(v).to(torch.float32).double() if v.dtype == torch.float32 else super().product(v)

    kernel = Rounded(gaussian(300), dtype=torch.float32)
    solution = kernel_ridge(kernel, random_targets(300, 2), 1e-3, method="cg", rank=40, tol=1e-8)
    assert solution.converged
    assert float(solution.residuals.max()) <= 1e-8
    assert sum(dtype == torch.float64 for _, dtype in kernel.products) >= 2


@pytest.mark.parametrize("ridges", [[1.0], [1e-2, 10.0, 1e-1, 1e-2]])
@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_path_is_the_single_solutions(ridges, method):
    kernel, targets = gaussian(150), random_targets(150, 3)
    path = ridge_path(kernel, targets, ridges, method=method, tol=1e-8)
    assert [solution.ridge for solution in path] == ridges
    for solution in path:
        expected = exact_alpha(kernel, targets, solution.ridge)
        torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        torch.testing.assert_close(solution.residuals, true_residuals(kernel, targets, solution), rtol=1e-2, atol=1e-13)


@settings(max_examples=5)
@given(columns=st.sampled_from([1, 40, 100]), count=st.integers(1, 5))
def test_path_of_many_columns(columns, count):
    """Up to 96 columns share a product; the others start from a neighbour."""
    kernel, targets = WatchedKernel(gaussian(60)), random_targets(60, columns)
    ridges = [10.0**-place for place in range(count)]
    path = ridge_path(kernel, targets, ridges, method="cg", tol=1e-6, rank=20)
    assert max(width for width, _ in kernel.products) <= max(96, columns)
    for solution in path:
        expected = exact_alpha(kernel.exact, targets, solution.ridge)
        torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


def test_path_takes_the_passes_of_its_smallest_ridge():
    kernel, targets = WatchedKernel(gaussian(300)), random_targets(300, 3)
    ridges = [10.0**-place for place in range(5)]
    ridge_path(kernel, targets, ridges, method="cg", rank=40)
    together = len(kernel.products)
    hardest = kernel_ridge(kernel.exact, targets, ridges[-1], method="cg", rank=40)
    assert together <= hardest.iterations + 2


def test_the_rank_of_a_preconditioner_stops_at_that_of_the_kernel():
    x = random_targets(100, 3)
    solution = kernel_ridge(x @ x.T, random_targets(100, 1), 1e-2, method="cg", rank=50, tol=1e-8)
    assert solution.rank == 3
    assert isinstance(solution.system.preconditioner, Preconditioner)
    assert solution.iterations <= 2
