"""Runs examples/ntk_vs_npk.py on few points, and checks what it writes, what it refuses and how it computes figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import EXAMPLES, Importer, run_as_main, run_script, status_of
from tolerances import assert_close_in_float64

import gatedops

SMALL = ("--n", "4", "--widths", "5", "21", "--draws", "3", "--depth", "3")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture
def draws(example_module: Importer) -> ModuleType:
    return example_module("_ntk_vs_npk.draws")


def test_a_whole_run_writes_json_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_script("ntk_vs_npk.py", *SMALL, "--out", "results", cwd=tmp_path, folder=EXAMPLES)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["ntk_vs_npk.json", "ntk_vs_npk.png"]
    assert (out / "ntk_vs_npk.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / "ntk_vs_npk.json").read_text())
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["options"]["widths"] == [5, 21]
    assert [(one["width"], one["draws"], one["parameters"]) for one in found["widths"]] == [
        (5, 12, 64 * 5 + 5 * 5 + 5),
        (21, 3, 64 * 21 + 21 * 21 + 21),
    ]
    for one in found["widths"]:
        assert one["pairs"] == 10
        assert one["std_over_mean"] > 0
        assert one["distance"] > 0
        assert one["its_standard_error"] > 0
    for words in ("mean / expected", "std / mean", "wrote"):
        assert words in done.stdout


@pytest.mark.usefixtures("draws")
def test_without_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*SMALL, "--data", "random", "--no-plot", "--out", "."]
    assert run_as_main(EXAMPLES / "ntk_vs_npk.py", options, monkeypatch) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ntk_vs_npk.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "1"], "argument --n: must be at least 2, got 1"),
        (["--widths", "0"], "argument --widths: must be at least 1, got 0"),
        (["--depth", "1"], "argument --depth: must be at least 2, got 1"),
        (["--draws", "1"], "argument --draws: must be at least 2, got 1"),
        (["--quick", "--widths", "4"], "argument --widths: not allowed with argument --quick"),
        (["--data", "cifar10"], "data_dir is needed for cifar10"),
        (["--widths", "1000000"], "GiB of memory"),
        (["--out", "file"], "--out file is not a folder that can be written to"),
    ],
)
def test_bad_options(
    draws: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    script = importlib.import_module("ntk_vs_npk")
    assert status_of(script, ["--out", ".", *options], monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_drawn_is_the_tangent_kernel_and_its_expectation(draws: ModuleType) -> None:
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    drawn = draws.draw_kernels(x, 7, 3, 400, seed=0)
    assert drawn.kernels.shape == (400, 3, 3)
    assert not torch.equal(drawn.kernels[0], drawn.kernels[1])
    z = (drawn.kernels.mean(0) - drawn.expected) / (drawn.kernels.std(0) / 20)
    assert z.abs().max() < 4
    again = draws.draw_kernels(x, 7, 3, 2, seed=0)
    assert torch.equal(again.kernels, drawn.kernels[:2])


def test_figures(draws: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    expected = torch.tensor([[2.0, 0.0], [0.0, 4.0]]).double()
    kernels = expected * (1 + 0.1 * torch.randn(50, 2, 2, generator=generator).double())
    found = draws.concentration(draws.Drawn(9, 100, kernels, expected))
    a, b = kernels[:, 0, 0], kernels[:, 1, 1]
    assert found.pairs == 2
    figures = [found.mean_over_expected, found.its_standard_error, found.largest_z, found.std_over_mean, found.distance]
    totals = (a + b) / 6
    z = torch.stack([(a.mean() - 2).abs() / a.std(), (b.mean() - 4).abs() / b.std()]) * 50**0.5
    by_hand = [
        totals.mean(),
        totals.std() / 50**0.5,
        z.max(),
        torch.stack([a.std() / a.mean(), b.std() / b.mean()]).min(),  # torch's median takes the lower of two.
        (((a - 2) ** 2 + (b - 4) ** 2) / 20).sqrt().median(),
    ]
    assert_close_in_float64(torch.tensor(figures, dtype=torch.float64), torch.stack(by_hand))
