"""nystrom against the same least squares problem solved densely, and against kernel ridge regression."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, exact_alpha, gaussian, laplacian, random_targets
from tolerances import assert_same_bits
from torch_threads import threads

from gatedops.operators.base import KernelOperator
from gatedops.solve import kernel_ridge, nystrom, pivots

# The package has a function of the same name.
MODULE = sys.modules["gatedops.solve.nystrom"]
pytestmark = pytest.mark.usefixtures("one_thread")


def least_squares(kernel, targets, ridge, centres):
    """The training scores of the minimum of the sum of squares plus lambda alpha^T K_mm alpha, by a QR factorisation of
    the problem with the root of K_mm."""
    kernel, targets = kernel.double(), targets.double()
    values, vectors = torch.linalg.eigh(kernel[centres][:, centres])
    root = vectors * values.clamp(min=1e-30).rsqrt()
    features = kernel[:, centres] @ root
    shift = ridge * float(kernel.diagonal().mean())
    below = shift**0.5 * torch.eye(len(centres), dtype=torch.float64)
    right = torch.cat([targets - targets.mean(0), targets.new_zeros(len(centres), targets.shape[1])])
    return features @ torch.linalg.lstsq(torch.cat([features, below]), right).solution + targets.mean(0)


@given(
    n=st.integers(2, 60),
    columns=st.integers(1, 3),
    ridge=st.sampled_from([1e-3, 0.1, 10.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_any_shape(n, columns, ridge, dtype, data):
    m = data.draw(st.integers(1, n))
    kernel, targets = 3 * laplacian(n, seed=n).to(dtype), random_targets(n, columns) + 2
    solution = nystrom(kernel, targets, ridge, centres=m)
    assert solution.alpha.shape == (m, columns)
    assert len(set(solution.centres.tolist())) == m
    assert solution.jitter == 0
    expected = least_squares(kernel, targets, ridge, solution.centres)
    torch.testing.assert_close(solution.predict(kernel[:, solution.centres]), expected, rtol=0, atol=1e-8)
    assert float(solution.residuals.max()) < 1e-10


@pytest.mark.parametrize("kernel", [gaussian(150), laplacian(150)], ids=["gaussian", "laplacian"])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_with_all_points_as_centres_it_is_kernel_ridge(kernel, ridge):
    """The ridge is the same, and so small that K_mn K_nm would lose it."""
    targets, order = random_targets(150, 2), torch.randperm(150, generator=torch.Generator().manual_seed(1))
    solution = nystrom(kernel, targets, ridge, centres=order)
    expected = kernel @ exact_alpha(kernel, targets, ridge) + targets.mean(0)
    assert torch.equal(solution.centres, order)
    torch.testing.assert_close(solution.predict(kernel[:, order]), expected, rtol=0, atol=1e-7)


class Blocks(KernelOperator):
    """A stored kernel that keeps the sizes of the blocks that are asked for, and multiplies nothing."""

    def __init__(self, kernel):
        self.kernel, self.sizes = kernel, []
        self.shape, self.dtype, self.device, self.symmetric = tuple(kernel.shape), kernel.dtype, kernel.device, True

    def product(self, v):
        raise AssertionError("a product with all of K")

    def diag(self):
        return self.kernel.diagonal()

    def block(self, rows, cols):
        found = self.kernel[rows][:, cols]
        self.sizes.append(tuple(found.shape))
        return found

    @property
    def T(self):
        return self


@pytest.mark.parametrize(("n", "m", "entries"), [(531, 67, 512 * 64), (100, 100, 1), (801, 530, 1024 * 100)])
def test_rows_are_streamed(monkeypatch, n, m, entries):
    """Each row of K_nm is computed once, in blocks, and whole panels of columns give the same as one."""
    monkeypatch.setattr(MODULE, "_ENTRIES", entries)
    operator, targets = Blocks(laplacian(n)), random_targets(n, 2)
    solution = nystrom(operator, targets, 0.1, centres=m)
    assert operator.sizes[0] == (m, m)
    assert sum(rows for rows, _ in operator.sizes[1:]) == n
    assert max(rows for rows, _ in operator.sizes[1:]) <= max(2, entries // m)
    expected = least_squares(operator.kernel, targets, 0.1, solution.centres)
    torch.testing.assert_close(solution.predict(operator.kernel[:, solution.centres]), expected, rtol=0, atol=1e-9)


def test_pivots_as_centres_are_better_than_random_ones():
    # Most points are in one dense cluster, which random centres sample again and again.
    x = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:360] *= 0.02
    kernel, targets = torch.exp(-torch.cdist(x, x)), x[:, :1]
    errors = []
    for centres in (12, pivots(kernel, 12)):
        solution = nystrom(kernel, targets, 1e-3, centres=centres)
        errors.append(float((solution.predict(kernel[:, solution.centres]) - targets).norm()))
    assert errors[1] < errors[0]


def test_centres_that_are_alike_get_a_jitter():
    x = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = (x @ x.T).to(torch.float32)  # The rank is 3.
    targets = x[:, :1] + 1
    solution = nystrom(kernel, targets, 1e-3, centres=20)
    assert 0 < solution.jitter < 1e-3
    assert "jitter" in repr(solution)
    alpha = exact_alpha(kernel, targets, 1e-3)
    expected = kernel.double() @ alpha + targets.mean(0)
    torch.testing.assert_close(solution.predict(kernel[:, solution.centres]), expected, rtol=0, atol=1e-3)


def test_centres_in_every_form():
    kernel, targets = laplacian(30), random_targets(30, 1)
    index = torch.tensor([3, 29, 0, 11])
    expected = nystrom(kernel, targets, 0.1, centres=index)
    for same in (index.tolist(), index.numpy(), index.to(torch.int32), (3, 29, 0, 11)):
        assert_same_bits(nystrom(kernel, targets, 0.1, centres=same).alpha, expected.alpha)
    assert_same_bits(
        nystrom(kernel, targets, 0.1, centres=np.int64(4)).alpha, nystrom(kernel, targets, 0.1, centres=4).alpha
    )
    assert not torch.equal(
        nystrom(kernel, targets, 0.1, centres=4, seed=1).centres, nystrom(kernel, targets, 0.1, centres=4).centres
    )


def test_kernel_ridge_has_it_as_a_method():
    kernel, targets = laplacian(40), random_targets(40, 1)
    assert_same_bits(
        kernel_ridge(kernel, targets, 0.1, method="nystrom", rank=7).alpha,
        nystrom(kernel, targets, 0.1, centres=7).alpha,
    )


def test_same_bits_for_any_number_of_threads():
    found = []
    for count in (1, 2):
        with threads(count):
            kernel = WatchedKernel(laplacian(700), dtype=torch.float32)
            found.append(nystrom(kernel, random_targets(700, 3), 1e-3, centres=300).alpha)
    assert_same_bits(*found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"centres": 0}, ValueError, "centres: got 0, needs a whole number from 1 to 5"),
        ({"centres": 6}, ValueError, "centres: got 6, needs a whole number from 1 to 5"),
        ({"centres": [0, 5]}, ValueError, r"centres: got \[0, 5\], needs indices from 0 to 4"),
        ({"centres": [-1]}, ValueError, r"centres: got \[-1\], needs indices from 0"),
        ({"centres": torch.zeros(0).long()}, ValueError, r"centres: got \[\], needs indices"),
        ({"centres": [1, 1]}, ValueError, "centres: some index occurs twice"),
        ({"centres": torch.ones(5, dtype=torch.bool)}, TypeError, "centres: got torch.bool"),
        ({"centres": 2.5}, TypeError, "centres: got float"),
        ({"ridge": -1.0}, ValueError, "ridge: got -1"),
        ({"ridge": None}, TypeError, "ridge: got None, needs a number"),
        ({"seed": None}, TypeError, "seed: got None, needs a whole number"),
        ({"targets": torch.zeros(4)}, ValueError, r"targets: got shape \(4,\)"),
        ({"K": torch.zeros(5, 5)}, ValueError, "K: its diagonal is all zeros"),
        ({"K": torch.eye(5)[:3]}, ValueError, r"K: has shape \(3, 5\)"),
        ({"K": torch.eye(5) + 2 * torch.eye(5).flip(0)}, ValueError, "K: the kernel of the centres is not positive"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        nystrom(**{"K": torch.eye(5), "targets": torch.arange(5.0), "ridge": 0.1, "centres": 5, **arguments})


def test_entries_that_are_not_finite():
    kernel, targets = laplacian(20), random_targets(20, 1)
    kernel[3, 19] = float("inf")
    for centres in ([3, 19], [19, 0]):
        with pytest.raises(ValueError, match="K: has entries that are not finite"):
            nystrom(Blocks(kernel), targets, 0.1, centres=centres)


def test_too_many_centres_for_the_memory(monkeypatch):
    monkeypatch.setattr("gatedops.solve.checks.available", lambda device: 10_000)
    with pytest.raises(ValueError, match=r"centres: a system of 20 needs .* GiB, but .* are free: use fewer"):
        nystrom(laplacian(20), random_targets(20, 1), 0.1, centres=20)


def test_a_bad_test_kernel():
    solution = nystrom(laplacian(20), random_targets(20, 1), 0.1, centres=3)
    with pytest.raises(ValueError, match=r"K_test: has shape \(4, 20\), needs \(q, 3\), a column for each centre"):
        solution.predict(torch.zeros(4, 20))
