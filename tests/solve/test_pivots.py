"""Pivots of a kernel: what they represent, their bits, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernels import WatchedKernel, gaussian, laplacian, random_targets
from torch_threads import threads

from gatedops.solve import pivots
from gatedops.solve.pivoted_cholesky import pivoted_factor

pytestmark = pytest.mark.usefixtures("one_thread")


def left_out(kernel, chosen):
    """The diagonal of what the chosen columns leave of the kernel, by a dense solve."""
    columns = kernel[:, chosen]
    return kernel.diagonal() - (columns * torch.linalg.solve(kernel[chosen][:, chosen], columns.T).T).sum(1)


@given(
    n=st.integers(1, 80), seed=st.integers(0, 5), dtype=st.sampled_from([torch.float32, torch.float64]), data=st.data()
)
def test_the_factor_is_that_of_its_pivots(n, seed, dtype, data):
    """F F^T is the kernel's projection on the columns of the pivots, and `left` is what it leaves of the diagonal."""
    kernel = laplacian(n, seed).to(dtype)
    rank = data.draw(st.integers(1, n))
    factor = pivoted_factor(WatchedKernel(kernel, dtype=dtype), kernel.diagonal().double(), rank, seed)
    assert len(factor.index) == rank
    assert len(set(factor.index.tolist())) == rank
    expected = left_out(kernel.double(), factor.index)
    torch.testing.assert_close(
        factor.left, expected.clamp(min=0), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-9
    )
    dense = factor.tiles.reshape(-1, rank)
    assert not dense[n:].any()
    torch.testing.assert_close(
        (dense[:n] @ dense[:n].T)[factor.index], kernel.double()[factor.index], rtol=0, atol=1e-6
    )


def test_pivots_of_many_blocks():
    """More pivots than a block has are taken block by block."""
    kernel = laplacian(700)
    chosen = pivots(kernel, 300)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == 300
    factor = pivoted_factor(WatchedKernel(kernel), kernel.diagonal(), 300)
    assert chosen.tolist() == factor.index.tolist()
    torch.testing.assert_close(factor.left, left_out(kernel, chosen).clamp(min=0), rtol=0, atol=1e-9)


def test_pivots_find_every_cluster():
    """Uniform draws would miss small clusters."""
    centres = torch.cat([torch.zeros(500, 1), torch.arange(1, 11).reshape(-1, 1).repeat(1, 2).reshape(-1, 1)]).double()
    points = 10 * centres + 0.01 * random_targets(520, 1)
    kernel = torch.exp(-(points - points.T).square())
    chosen = pivots(kernel, 11)
    assert sorted(set(centres[chosen, 0].tolist())) == list(range(11))


def test_the_seed_decides_and_threads_do_not():
    kernel = gaussian(600)
    first = pivots(kernel, 50, seed=3)
    assert pivots(kernel, 50, seed=4).tolist() != first.tolist()
    for count in (1, 2, 3):
        with threads(count):
            assert pivots(kernel, 50, seed=3).tolist() == first.tolist()


def test_rows_of_zeros_are_no_pivots():
    kernel = torch.zeros(30, 30, dtype=torch.float64)
    kernel[10:, 10:] = gaussian(20)
    assert sorted(pivots(kernel, 20).tolist()) == list(range(10, 30))


def test_errors():
    kernel = gaussian(20)
    with pytest.raises(ValueError, match="k: got 21, needs a whole number from 1 to 20"):
        pivots(kernel, 21)
    with pytest.raises(TypeError, match=r"k: got 2.5, needs a whole number"):
        pivots(kernel, 2.5)
    with pytest.raises(TypeError, match="seed: got 'a', needs a whole number"):
        pivots(kernel, 5, seed="a")
    x = random_targets(30, 3)
    with pytest.raises(ValueError, match="k: got 5, but the rank of K is 3 in its precision"):
        pivots(x @ x.T, 5)
    with pytest.raises(ValueError, match="diagonal"):
        pivots(-kernel, 5)
