"""Runs examples/mnist_regression.py and examples/conv_regression.py on few digits.

The tests check what they write and refuse, their figures against dense Grams, and that a run which was killed goes on.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from script_runs import EXAMPLES, STOPPING, Importer, environment, status_of
from torch import Tensor

import gatedops
from gatedops import GateBits, reference
from gatedops.operators.tiled import ModelOperator
from gatedops.path_kernels import regression

MNIST = ("--quick", "--epochs", "2", "--points", "60", "130", "--threads", "1", "--no-plot")
CONV = ("--points", "50", "--epochs", "1", "--threads", "1")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

Content = dict[str, Any]


@pytest.fixture
def mnist(example_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = example_module("mnist_regression")
    monkeypatch.setattr(script, "DENSE_POINTS", (50, 100))
    return script


@pytest.fixture
def conv(example_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = example_module("conv_regression")
    monkeypatch.setattr(example_module("_kernel_regression.tiles"), "TILE", 32)
    return script


@pytest.fixture(autouse=True)
def _threads() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def store_of(example_module: Importer, folder: Path) -> Any:
    return example_module("_common.store").Store(folder, {})


def lasting(found: Content) -> Content:
    """Returns the content of a JSON without what differs from run to run: seconds and memory."""
    left_out = ("machine", "options", "dense", "dense_extrapolated")
    found = {name: value for name, value in found.items() if name not in left_out}
    del found["network"]["seconds"]
    for of_gates in found.get("fits", {}).values():
        for one in of_gates:
            del one["cost"], one["predicted"]
    return found


# --- mnist_regression.py ---


def test_mnist_writes_what_it_says(
    mnist: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    options = [*MNIST[:-1], "--sigma", "--out", str(tmp_path)]
    assert status_of(mnist, options, monkeypatch) == 0
    printed = capsys.readouterr().out
    for words in ("digits: 1438 training and 359 test points", "extrapolated", "the network after 2 epochs", "wrote"):
        assert words in printed
    assert (tmp_path / "digits_regression.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((tmp_path / "digits_regression.json").read_text())
    assert (found["kernel"], found["points"]) == ("NPK", {"train": 1438, "test": 359})
    assert found["network"]["accuracy"] == found["network"]["by_epoch"][-1]
    assert len(found["network"]["by_epoch"]) == 2
    for of_gates in found["fits"].values():
        assert [one["n"] for one in of_gates] == [60, 130]
        for one in of_gates:
            assert one["curve"][-1] <= 1e-3 < one["curve"][0]
            assert one["residual"] <= 1e-3
            assert 0.5 < one["accuracy"] <= 1
    assert [one["n"] for one in found["dense"]] == [50, 100]
    (beyond,) = found["dense_extrapolated"]
    assert (beyond["n"], beyond["accuracy"]) == (130, None)
    assert beyond["solve_seconds"] == pytest.approx(1.3**3 * found["dense"][-1]["solve_seconds"])
    assert beyond["gram_seconds"] == pytest.approx(1.3**2 * found["dense"][-1]["gram_seconds"])
    # All that is left to do is the report.
    monkeypatch.setattr(gatedops, "NPKOperator", None)
    assert status_of(mnist, [*options, "--no-plot"], monkeypatch) == 0
    assert lasting(json.loads((tmp_path / "digits_regression.json").read_text())) == lasting(found)


@pytest.mark.usefixtures("mnist")
@pytest.mark.parametrize("sigma", [False, True])
def test_both_ways_are_the_regression_with_the_reference_gram(
    sigma: bool, example_module: Importer, tmp_path: Path
) -> None:
    fits, generator = example_module("_kernel_regression.fits"), torch.Generator().manual_seed(1)
    n, m, classes = 80, 200, 3

    def points(rows: int) -> tuple[GateBits, Tensor]:
        masks = [torch.rand(rows, width, generator=generator) > 0.5 for width in (33, 8)]
        return GateBits.pack(masks), torch.rand(rows, 5, generator=generator)

    (bits, inputs), (test_bits, test_inputs) = points(n), points(m)
    labels, test_labels = (torch.randint(0, classes, (rows,), generator=generator) for rows in (n, m))
    x, test_x = (inputs, test_inputs) if sigma else (None, None)
    problem = fits.Problem(bits, labels, x, test_bits, test_labels, test_x, classes, 0.3, 1e-6)
    rows = torch.randperm(n, generator=generator)[:70]
    problem = problem.of_rows(rows)
    gram = reference.npk_gram(None if x is None else x[rows], bits[rows], dtype=torch.float64)
    cross = reference.npk_gram(test_x, test_bits, None if x is None else x[rows], bits[rows], dtype=torch.float64)
    fitted = regression.fit(gram, regression.one_hot(labels[rows], classes), 0.3)
    expected = regression.accuracy(fitted.predict(cross), test_labels)
    store = store_of(example_module, tmp_path)
    found, dense = fits.fit(problem, store, "fit"), fits.dense_fit(problem, store, "dense")
    assert found.accuracy == dense.accuracy == expected
    assert found.residual <= 1e-6
    assert (found.n, dense.n) == (70, 70)
    assert fits.fit(problem, store, "fit") == found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.json", "fit.json", "options.json"]


@pytest.mark.usefixtures("mnist")
def test_mnist_goes_on_after_it_was_stopped_in_a_solve(
    mnist: ModuleType, example_module: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = example_module("_kernel_regression.fits")
    monkeypatch.setattr(fits, "CHECKPOINT_SECONDS", 0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert status_of(mnist, [*MNIST, "--out", str(whole)], monkeypatch) == 0
    seen: list[int] = []

    told = fits.Curve.__call__

    def stopping(self: object, iteration: int, residuals: Tensor) -> None:
        """Stops the run once, in the fifth iteration of the second solve."""
        told(self, iteration, residuals)
        seen.append(iteration)
        if seen.count(1) == 2 and iteration == 5 and seen.count(5) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fits.Curve, "__call__", stopping)
    assert status_of(mnist, [*MNIST, "--out", str(stopped)], monkeypatch) == 130
    assert seen[-1] == 5
    before = len(seen)
    assert status_of(mnist, [*MNIST, "--out", str(stopped)], monkeypatch) == 0
    # The solve went on, and did not begin anew.
    assert seen[before] in (5, 6)
    found = [json.loads((out / "digits_regression.json").read_text()) for out in (whole, stopped)]
    assert lasting(found[0]) == lasting(found[1])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    """The kill comes while the second checkpoint of the network is half written."""
    arguments = [*MNIST, "--out", str(tmp_path)]

    def run(*stopped: str) -> int:
        script = [*([str(STOPPING)] if stopped else []), str(EXAMPLES / "mnist_regression.py"), *stopped]
        return subprocess.run([sys.executable, *script, *arguments], env=environment(), timeout=200).returncode

    assert run("SIGKILL", "save", "1") == -signal.SIGKILL
    assert run() == 0
    assert (tmp_path / "digits_regression.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-dir", "nowhere"], "train-images-idx3-ubyte"),
        (["--data-dir", "nowhere", "--quick"], "argument --quick: not allowed with argument --data-dir"),
        (["--points", "9"], "argument --points: must be at least 10, got 9"),
        (["--points", "1439"], "--points 1439 is more than the 1438 training points"),
        (["--ridge", "-1"], "argument --ridge: must be above 0, got -1"),
        (["--tol", "1.5"], "argument --tol: must be above 0 and below 1, got 1.5"),
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--out", __file__], "is not a folder that can be written to"),
    ],
)
def test_bad_options_of_mnist(
    mnist: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(mnist, ["--out", str(tmp_path), *options], monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


# --- conv_regression.py ---


class InnerProducts:
    """Stands in for NPKOperator, which reads the network first."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    @staticmethod
    def of(_: object, x: Tensor, y: Tensor | None = None, **__: object) -> InnerProducts:
        return InnerProducts(x, x if y is None else y)

    def block(self, rows: slice, columns: slice) -> Tensor:
        return self.x[rows] @ self.y[columns].T


def test_conv_goes_on_after_it_was_stopped_and_computes_each_tile_once(
    conv: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    shapes: list[tuple[int, ...]] = []
    block = ModelOperator.block

    def counted(operator: ModelOperator, rows: slice, columns: slice) -> Tensor:
        if len(shapes) == 2:
            shapes.append(())
            raise KeyboardInterrupt
        tile = block(operator, rows, columns)
        shapes.append(tuple(tile.shape))
        return tile

    monkeypatch.setattr(ModelOperator, "block", counted)
    options = [*CONV, "--note", "a test", "--out", str(tmp_path)]
    assert status_of(conv, options, monkeypatch) == 130
    assert status_of(conv, options, monkeypatch) == 0
    # There are 40 training and 10 test points in tiles of 32.
    assert shapes == [(32, 32), (8, 32), (), (8, 8), (10, 32), (10, 8)]
    assert (tmp_path / "conv_regression_digits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((tmp_path / "conv_regression_digits.json").read_text())
    assert found["points"] == {"train": 40, "test": 10, "pairs": 40 * 41 // 2 + 400}
    assert sum(found["classes"].values()) == 40
    assert list(found["kernels"]) == list(found["pictures"]) == ["trained"]
    kernel = found["kernels"]["trained"]
    assert kernel["points"] == [5, 10, 20, 40]
    assert all(0 <= accuracy <= 1 for accuracy in [*kernel["accuracy"], *kernel["by_class"]])
    assert found["options"]["note"] == "a test"


@pytest.mark.usefixtures("conv")
def test_tiles_make_the_whole_kernel(example_module: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, generator = example_module("_kernel_regression.tiles"), torch.Generator().manual_seed(2)
    monkeypatch.setattr(tiles, "NPKOperator", InnerProducts)
    x, test_x = (torch.randint(-9, 10, (n, 4), generator=generator).float() for n in (75, 34))
    gram, cross = tiles.kernels_of(torch.nn.Identity(), x, test_x, store_of(example_module, tmp_path), "trained")
    assert torch.equal(gram, x @ x.T)
    assert torch.equal(cross, test_x @ x.T)


@pytest.mark.usefixtures("conv")
def test_the_plan_fills_the_time(example_module: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = example_module("_kernel_regression.tiles")
    monkeypatch.setattr(tiles, "NPKOperator", InnerProducts)
    times = iter([10.0, 10.0 + 32 * 32 * 0.5])
    monkeypatch.setattr(tiles.time, "perf_counter", lambda: next(times, 0.0))
    assert tiles.seconds_per_pair(torch.nn.Identity(), torch.rand(90, 4)) == 0.5
    plan = tiles.planned(0.5, 30.0, 2, 60.0 * 1000, 5000)
    assert 0.98 * 60_000 < 2 * 0.5 * plan.pairs + 30.0 * plan.n <= 60_000
    train = plan.n - plan.test
    assert plan.pairs == sum(1 for i in range(train) for _ in range(i + 1)) + train * plan.test
    assert tiles.planned(0.5, 30.0, 2, 60.0 * 1000, 100).n == 100
    assert tiles.Plan(1797).test == 359


@pytest.mark.usefixtures("conv")
def test_a_run_without_points_plans_them_and_keeps_its_plan(
    conv: ModuleType,
    example_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = example_module("_kernel_regression.network")
    monkeypatch.setattr(conv, "seconds_per_pair", lambda *_: 1e-9)
    # The clock says that an epoch on a few points takes 100 seconds.
    times = iter([0.0, 100.0])
    monkeypatch.setattr(network.time, "perf_counter", lambda: next(times, 0.0))
    options = ["--epochs", "1", "--minutes", "1", "--no-plot", "--threads", "1", "--out", str(tmp_path)]
    assert status_of(conv, options, monkeypatch) == 0
    found = json.loads((tmp_path / "conv_regression_digits.json").read_text())
    assert found["timed"] == {"seconds_per_pair": 1e-9, "seconds_per_point": 100.0 / conv.TIMED}
    assert found["points"]["train"] + found["points"]["test"] == 60 * conv.TIMED // 100 - 1
    assert "the training takes about 1 minutes" in capsys.readouterr().out
    monkeypatch.setattr(conv, "seconds_per_pair", None)
    assert status_of(conv, options, monkeypatch) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data-dir", "nowhere"], "data_batch_1.bin is missing"),
        (["--points", "19"], "argument --points: must be at least 20, got 19"),
        (["--points", "1798"], "--points 1798 is more than the 1797 points of digits"),
        (["--points", "30", "--minutes", "2"], "argument --minutes: not allowed with argument --points"),
        (["--minutes", "0"], "argument --minutes: must be at least 1, got 0"),
        (["--gates", "random"], "argument --gates: invalid choice"),
    ],
)
def test_bad_options_of_conv(
    conv: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(conv, ["--out", str(tmp_path), *options], monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
