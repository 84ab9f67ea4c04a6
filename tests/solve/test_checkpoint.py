"""A killed solve goes on bit for bit; a checkpoint of other data is refused."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch
from kernels import WatchedKernel, gaussian, random_targets
from tolerances import assert_same_bits

from gatedops.solve import kernel_ridge

pytestmark = pytest.mark.usefixtures("one_thread")
GIVEN = {"method": "cg", "rank": 40, "tol": 1e-6}


def killed_after(steps: int, path, kernel, targets) -> None:
    """Solves in a child process that is killed by SIGKILL after some steps, wherever it is then."""
    child = os.fork()
    if child == 0:
        try:

            def kill(step, residuals):
                if step >= steps:
                    os.kill(os.getpid(), signal.SIGKILL)

            kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path, checkpoint_every=0, callback=kill)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_solve_goes_on(tmp_path):
    kernel, targets, path = gaussian(300), random_targets(300, 3), tmp_path / "solve.pt"
    expected = kernel_ridge(kernel, targets, 1e-3, **GIVEN)
    drawn, steps = random.Random(0), 0
    while (steps := steps + drawn.randint(1, 8)) < expected.iterations:
        killed_after(steps, path, kernel, targets)
    assert steps > 8
    seen = []
    found = kernel_ridge(
        kernel, targets, 1e-3, **GIVEN, checkpoint=path, callback=lambda step, residuals: seen.append(step)
    )
    assert seen[0] > 1
    assert seen[-1] == found.iterations == expected.iterations
    assert_same_bits(found.alpha, expected.alpha)
    assert_same_bits(found.residuals, expected.residuals)
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_checkpoint_returns_at_once(tmp_path):
    kernel, targets, path = WatchedKernel(gaussian(200)), random_targets(200, 2), str(tmp_path / "solve.pt")
    first = kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path)
    kernel.products.clear()
    again = kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path)
    assert kernel.products == [(2, torch.float64)]
    assert_same_bits(again.alpha, first.alpha)
    assert_same_bits(again.residuals, first.residuals)
    assert (again.reason, again.iterations, again.seconds) == (first.reason, first.iterations, first.seconds)


def test_a_finished_checkpoint_of_a_kernel_that_changed_where_nobody_looks(tmp_path):
    """A checkpoint knows the diagonal and 64 columns. Other entries show in the residuals."""
    kernel, targets, path = gaussian(200) + 20 * torch.eye(200), random_targets(200, 2), tmp_path / "solve.pt"
    known = torch.linspace(0, 199, 64, dtype=torch.float64).round().long()
    other = torch.ones(200, dtype=torch.bool)
    other[known] = False
    changed = torch.where(other[:, None] & other & ~torch.eye(200, dtype=torch.bool), 0.9 * kernel, kernel)
    kernel_ridge(kernel, targets, 0.1, **GIVEN, checkpoint=path)
    found = kernel_ridge(changed, targets, 0.1, **GIVEN, checkpoint=path)
    b = targets - targets.mean(0)
    left = b - changed @ found.alpha - 0.1 * 21 * found.alpha
    assert found.converged
    assert float((left.norm(dim=0) / b.norm(dim=0)).max()) <= 1e-6


def test_a_finished_checkpoint_goes_on_to_a_smaller_tolerance(tmp_path):
    kernel, targets, path = gaussian(200), random_targets(200, 2), tmp_path / "solve.pt"
    first = kernel_ridge(kernel, targets, 1e-3, method="cg", rank=40, tol=1e-3, checkpoint=path)
    seen = []
    better = kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path, callback=lambda *step: seen.append(step))
    assert better.iterations == first.iterations + len(seen) > first.iterations
    assert float(better.residuals.max()) <= 1e-6


def test_more_steps_than_max_iter_in_a_second_call(tmp_path):
    kernel, targets, path = gaussian(300), random_targets(300, 2), tmp_path / "solve.pt"
    with pytest.warns(RuntimeWarning, match="stopped after 5 steps"):
        kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path, max_iter=5)
    found = kernel_ridge(kernel, targets, 1e-3, **GIVEN, checkpoint=path)
    assert_same_bits(found.alpha, kernel_ridge(kernel, targets, 1e-3, **GIVEN).alpha)


def test_seldom_written(tmp_path, monkeypatch):
    """The file is written when the time has come, and at the end."""
    now, written = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    real = torch.save
    monkeypatch.setattr("torch.save", lambda *given: (written.append(now[0]), real(*given)))

    def tick(step, residuals):
        now[0] += 25

    kernel_ridge(gaussian(200), random_targets(200, 2), 1e-3, **GIVEN, checkpoint=tmp_path / "solve.pt", callback=tick)
    assert written[:2] == [75, 150]
    assert written[-1] == now[0]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ridge": 1e-2}, "differs in the ridge"),
        ({"targets": random_targets(200, 2, seed=1)}, "differs in the targets"),
        ({"K": gaussian(200, seed=1)}, "differs in the entries of K"),
        ({"K": gaussian(200, dtype=torch.float32)}, "differs in the entries of K"),
        ({"rank": 50}, "differs in the rank"),
        (
            {"K": gaussian(190), "targets": random_targets(190, 2)},
            "the number of points, the targets, the entries of K",
        ),
    ],
)
def test_other_problems_are_refused(tmp_path, changed, named):
    path = tmp_path / "solve.pt"
    given = {"K": gaussian(200), "targets": random_targets(200, 2), "ridge": 1e-3, "checkpoint": path, **GIVEN}
    kernel_ridge(**given)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"is of another problem, which .*{named}"):
        kernel_ridge(**(given | changed))
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "tensor", "cut", "without a state"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "solve.pt"
    if content == "tensor":
        torch.save(torch.zeros(3), path)
    elif content == "cut":
        kernel_ridge(gaussian(50), random_targets(50, 1), 1e-3, method="cg", checkpoint=path)
        path.write_bytes(path.read_bytes()[:-10])
    elif content == "without a state":
        torch.save({"format": "gatedops solve 1"}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a checkpoint of a solve: name another file"):
        kernel_ridge(gaussian(50), random_targets(50, 1), 1e-3, method="cg", checkpoint=path)


@pytest.mark.parametrize("method", ["cg", "cholesky"])
def test_a_missing_folder_is_refused_before_any_work(tmp_path, method):
    kernel = WatchedKernel(gaussian(50))
    with pytest.raises(ValueError, match=r"checkpoint: .* lies in no existing folder"):
        kernel_ridge(kernel, random_targets(50, 1), 1e-3, method=method, checkpoint=tmp_path / "none" / "solve.pt")
    assert kernel.products == []


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path, monkeypatch):
    def refused(**given):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gatedops.solve.checkpoint.tempfile.TemporaryFile", refused)
    kernel = WatchedKernel(gaussian(50))
    with pytest.raises(ValueError, match=r"checkpoint: .* cannot be written to \(.*Permission denied\): use another"):
        kernel_ridge(kernel, random_targets(50, 1), 1e-3, method="cg", checkpoint=tmp_path / "solve.pt")
    assert kernel.products == []
