"""examples/sklearn_digits.py: a small run prints a row for each estimator and writes one picture."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from script_runs import Importer, status_of

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

QUICK = ("--n", "60", "--width", "16")


@pytest.fixture
def script(example_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = example_module("sklearn_digits")
    monkeypatch.setattr(script, "RIDGES", [1e-2])
    return script


def test_a_run_prints_a_table_and_writes_a_picture(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert status_of(script, [*QUICK, "--out", str(tmp_path)], monkeypatch) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    (picture,) = tmp_path.iterdir()
    assert picture.name == "sklearn_digits.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lines = told.splitlines()
    assert lines[0] == "60 training digits, 359 test digits, 3 folds, width 16"
    rows = {line.split("  ")[0]: line for line in lines[3:7]}
    assert list(rows) == list(script.estimators(16, 0))
    assert "ridge 0.01" in rows["NPKClassifier"]


def test_a_search_finds_what_the_best_estimator_gives(script: ModuleType) -> None:
    digits = script.load(60, seed=0)
    estimator, grid = script.estimators(16, 0)["NPKClassifier"]
    found = script.search("NPKClassifier", estimator, grid, digits, jobs=1)
    depth = int(found.chosen.split(",")[0].removeprefix("depth "))
    best = estimator.set_params(depth=depth, ridge=1e-2)
    # Pixels go from 0 to 16, but one that is never white is scaled otherwise, which the net's one scale does not undo.
    assert 0.3 < best.fit(digits.x, digits.labels).score(digits.x_test, digits.labels_test) < 1
    assert list(found.curve) == [50, 60]
    assert found.curve[60] == found.test
    assert found.row()[:2] == ["NPKClassifier", f"depth {depth}, ridge 0.01"]


def test_more_digits_than_there_are(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(script, ["--n", "5000"], monkeypatch) == 2
    assert "--n 5000 is more than the 1438 training digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "10"], "argument --n: must be at least 60, got 10"),
        (["--jobs", "0"], "argument --jobs: must be at least 1, got 0"),
    ],
)
def test_bad_options(
    script: ModuleType,
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(script, options, monkeypatch) == 2
    assert message in capsys.readouterr().err
