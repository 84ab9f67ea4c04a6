"""Solvers work on the device of the kernel, whatever torch's default device is."""

from __future__ import annotations

import pytest
import torch
from kernels import gaussian, random_targets

from gatedops import GateBits, NPKOperator
from gatedops.solve import (
    eigsh,
    gradient_flow,
    kernel_ridge,
    logdet,
    loo,
    nystrom,
    pivots,
    ridge_path,
    select_ridge,
)

N = 40


def operator_of(form):
    if form == "npk":
        x = random_targets(N, 6).float()
        return NPKOperator(GateBits.pack([random_targets(N, 30, 1)]), x)
    kernel = gaussian(N)
    if form == "scipy":
        return pytest.importorskip("scipy.sparse.linalg").aslinearoperator(kernel.numpy())
    return kernel


def solved(kernel, targets):
    """What each solver returns, as tensors."""
    few = {"method": "cg", "rank": 10}
    solution = kernel_ridge(kernel, targets, 0.1, **few)
    return [
        solution.alpha,
        solution.predict(kernel),
        kernel_ridge(kernel, targets, 0.1, method="cholesky").alpha,
        *(path.alpha for path in ridge_path(kernel, targets, [0.1, 1.0], **few)),
        loo(solution, method="probes", probes=4),
        gradient_flow(kernel, targets, 5.0, method="lanczos").alpha,
        eigsh(kernel, 2, method="lanczos").values,
        torch.tensor(logdet(kernel, 0.1, method="lanczos", rank=10), device="cpu"),
        nystrom(kernel, targets, 0.1, centres=10).alpha,
        pivots(kernel, 3),
        torch.tensor(select_ridge(kernel, targets), device="cpu"),
    ]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("form", ["matrix", "scipy", "npk"])
def test_the_default_device_has_no_part_in_a_solve(form):
    kernel, targets = operator_of(form), random_targets(N, 2)
    expected = solved(kernel, targets)
    with torch.device("meta"):
        found = solved(kernel, targets)
    assert all(map(torch.equal, found, expected))
