"""eigsh against torch's dense eigenvalues: both methods, restarts, invariant spaces, and the Lanczos relation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, gaussian, laplacian
from tolerances import assert_same_bits
from torch_threads import threads

from gatedops.solve import eigen, eigsh
from gatedops.solve.lanczos import BlockKrylov

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_largest(kernel, found, k, tol=1e-6):
    """Compares with all eigenvalues, and tests that the vectors are orthonormal and have these values."""
    expected = torch.linalg.eigvalsh(kernel.double()).flip(0)
    largest = float(expected[0])
    assert found.values.shape == (k,)
    torch.testing.assert_close(found.values, expected[:k], rtol=0, atol=1e-9 * largest)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-12)
    left = (kernel.double() @ found.vectors - found.vectors * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, left, rtol=1e-3, atol=1e-12 * largest)
    assert float(left.max()) <= tol * largest


@given(
    n=st.integers(1, 60),
    method=st.sampled_from(["auto", "dense", "lanczos"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_any_shape(n, method, dtype, data):
    k = data.draw(st.integers(1, n))
    kernel = gaussian(n, seed=n, dtype=dtype)
    assert_largest(kernel, eigsh(kernel, k, method=method), k)


@pytest.mark.parametrize("k", [3, 20])
def test_restarts(k, monkeypatch):
    """A slowly falling spectrum needs more vectors than are stored."""
    monkeypatch.setattr(eigen, "_BLOCK", 8)
    kernel = WatchedKernel(torch.diag(1 + torch.linspace(0, 1, 200, dtype=torch.float64) ** 3))
    found = eigsh(kernel, k, method="lanczos")
    assert sum(columns for columns, _ in kernel.products[:-1]) > 2 * k + 8 * 8
    assert_largest(kernel.entries, found, k)


def test_more_equal_eigenvalues_than_a_block_has_columns():
    kernel = torch.diag(torch.tensor([3.0] * 20 + [1.0] * 80, dtype=torch.float64))
    assert_largest(kernel, eigsh(kernel, 20, method="lanczos"), 20)
    identity = torch.eye(50, dtype=torch.float64)
    assert_largest(identity, eigsh(identity, 45, method="lanczos"), 45)


def test_of_low_rank():
    rows = torch.randn(80, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_largest(rows @ rows.T, eigsh(rows @ rows.T, 6, method="lanczos"), 6)


def test_auto_takes_few_products(monkeypatch):
    monkeypatch.setattr(eigen, "_SMALL", 300)
    kernel = WatchedKernel(laplacian(400))
    assert_largest(kernel.entries, eigsh(kernel, 10), 10)
    assert 2 < len(kernel.products) < 20
    # More than a fifth of the eigenvalues, or a small kernel: only the residuals take a product.
    for k, n in ((81, 400), (10, 300)):
        kernel = WatchedKernel(laplacian(n))
        eigsh(kernel, k)
        assert len(kernel.products) == 1


def test_a_decomposition_has_no_products_to_say(recwarn):
    eigsh(gaussian(40), 3, tol=1e-13)
    assert not len(recwarn)


def test_says_that_products_did_not_suffice():
    kernel = torch.diag(torch.linspace(1, 1.01, 300, dtype=torch.float64))
    with pytest.warns(
        RuntimeWarning, match=r"eigsh: residuals are up to .* not tol=1.0e-06: use a larger max_products"
    ):
        found = eigsh(kernel, 4, method="lanczos", max_products=3)
    assert found.values.shape == (4,)


def test_same_bits_for_any_number_of_threads():
    # Products of a watched kernel have the same bits for any number of threads.
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(eigsh(WatchedKernel(laplacian(520)), 2, method="lanczos", tol=1e-2))
    for ours, expected in zip(*found, strict=True):
        assert_same_bits(ours, expected)
    assert not torch.equal(eigsh(laplacian(520), 2, method="lanczos", tol=1e-2, seed=1).vectors, found[0].vectors)


@given(n=st.integers(1, 40), columns=st.integers(1, 5), rank=st.integers(1, 40), seed=st.integers(0, 3))
def test_the_lanczos_relation(n, columns, rank, seed):
    """A V = V T + W C E^T with orthonormal (V, W), and V spans the start."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, rank, dtype=torch.float64, generator=made)
    matrix, start = rows @ rows.T, torch.randn(n, columns, dtype=torch.float64, generator=made)
    start[:, -1] = start[:, :-1].sum(1) if columns > 1 else start[:, -1]
    space = BlockKrylov(lambda v: matrix @ v, start)
    assert len(space.head) == min(n, max(1, columns - 1))
    while not space.exhausted:
        space.extend()
        basis = space.combine(torch.eye(space.size, dtype=torch.float64))
        width = space.coupling.shape[1]
        following = space._following.flatten(0, 1)[:n]
        both = torch.cat([basis, following], 1)
        torch.testing.assert_close(both.T @ both, torch.eye(both.shape[1], dtype=torch.float64), rtol=0, atol=1e-9)
        left = matrix @ basis - basis @ space.projected
        left[:, -width:] -= following @ space.coupling
        assert float(left.norm()) <= 1e-10 * float(matrix.norm())
    torch.testing.assert_close(basis[:, : len(space.head)] @ space.head, start, rtol=0, atol=1e-10)
    assert space.size <= n


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: got 0, needs a whole number from 1 to 5"),
        ({"k": 6}, ValueError, "k: got 6, needs a whole number from 1 to 5"),
        ({"k": 1.5}, TypeError, "k: got 1.5, needs a whole number"),
        ({"K": torch.eye(5)[:3]}, ValueError, r"K: has shape \(3, 5\), needs \(n, n\)"),
        ({"K": torch.zeros(5, 5)}, ValueError, "K: its diagonal is all zeros"),
        ({"method": "arpack"}, ValueError, "method: got 'arpack', needs one of"),
        ({"tol": 0.0}, ValueError, "tol: got 0, needs a number from"),
        ({"max_products": 0}, ValueError, "max_products: got 0"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5, needs a whole number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        eigsh(**{"K": torch.eye(5), "k": 2, **arguments})


def test_products_that_are_not_finite():
    kernel = WatchedKernel(torch.eye(40, dtype=torch.float64))
    kernel.entries[3, 4] = float("nan")
    with pytest.raises(ValueError, match="K: a product with it is not finite"):
        eigsh(kernel, 2, method="lanczos")
    with pytest.raises(ValueError, match="K: has entries that are not finite"):
        eigsh(kernel, 2, method="dense")
