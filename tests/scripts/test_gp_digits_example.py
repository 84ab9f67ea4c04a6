"""examples/gp_digits.py: what it writes, what it refuses, and that its figures are those of the predictions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from script_runs import EXAMPLES, Importer, run_as_main, status_of

pytest.importorskip("sklearn")
pytest.importorskip("gpytorch")

SMALL = ["--n", "30", "--width", "8", "--steps", "3"]


@pytest.mark.usefixtures("example_module")
def test_a_whole_run_writes_json_and_png(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    status = run_as_main(EXAMPLES / "gp_digits.py", [*SMALL, "--out", "results"], monkeypatch)
    told, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["gp_digits.json", "gp_digits.png"]
    assert (out / "gp_digits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / "gp_digits.json").read_text())
    names = ["RBF", "NPK, random net", "NPK, net of these digits", "NPK, net of others"]
    assert [one["kernel"] for one in found["kernels"]] == names
    assert all(name in told for name in names)
    for one in found["kernels"]:
        assert len(one["mean"]) == len(one["deviation"]) == 359
        assert min(one["deviation"]) > 0
        assert 0 < one["rmse"] < 2


def test_figures_are_those_of_the_predictions(example_module: Importer) -> None:
    gpytorch = pytest.importorskip("gpytorch")
    script = example_module("gp_digits")
    points, others, test = script.halves(30, 0)
    assert [tuple(one.x.shape) for one in (points, others, test)] == [(30, 33), (1408, 33), (359, 33)]
    assert abs(points.y.mean()) < 1e-12
    one = script.predict("RBF", gpytorch.kernels.RBFKernel(), points, test, 1)
    mean, deviation = torch.tensor(one.mean).double(), torch.tensor(one.deviation).double()
    z = (test.y - mean) / deviation
    assert one.rmse == pytest.approx(float((test.y - mean).square().mean().sqrt()), abs=1e-6)
    assert one.nlpd == pytest.approx(
        float((z.square() / 2 + deviation.log()).mean()) + math.log(2 * math.pi) / 2, abs=1e-6
    )
    assert one.covered == pytest.approx(float((z.abs() < 1.96).double().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "1"], "argument --n: must be at least 2, got 1"),
        (["--n", "1401"], "argument --n: must be at most 1400, got 1401"),
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
    ],
)
def test_bad_options(example_module: Importer, options: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of(example_module("gp_digits"), ["--out", ".", *options], monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
