"""Every script in benchmarks/: it runs, it writes what it says, and it refuses what cannot run, in one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from script_runs import Importer, run_script

import gatedops

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 200_000


@dataclass(frozen=True)
class Run:
    """A small run: the keys that its JSON has beside the common ones, and words of its output."""

    script: str
    options: tuple[str, ...]
    keys: tuple[str, ...]
    words: tuple[str, ...]
    picture: bool = True

    @property
    def name(self) -> str:
        return self.script.removesuffix(".py")


RUNS: list[Run] = []

COMMON_REFUSALS = [
    (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
    (["--seed", "many"], "argument --seed: needs a whole number, got 'many'"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
]
REFUSALS: list[tuple[str, list[str], str]] = []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_writes_json_and_picture(run: Run, tmp_path: Path) -> None:
    if run.picture:
        pytest.importorskip("matplotlib")
    done = run_script(run.script, *run.options, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.suffix for path in out.iterdir()) == ([".json", ".png"] if run.picture else [".json"])
    if run.picture:
        picture = (out / f"{run.name}.png").read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) < LARGEST_PICTURE

    found = json.loads((out / f"{run.name}.json").read_text())
    assert found["complete"] is True
    assert found["failures"] == []
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["machine"]["command"].startswith(run.script)
    assert found["options"]["seed"] == 0
    assert set(run.keys) <= set(found)
    entries = list(entries_in(found))
    assert entries
    for entry in entries:
        assert 0 < entry["best_s"] <= entry["median_s"]
        assert entry["runs"] >= 1
    for word in run.words:
        assert word in done.stdout


def entries_in(content: object) -> Iterator[dict]:
    """All entries of contests, wherever a JSON has them."""
    if isinstance(content, dict):
        if "median_s" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from entries_in(part)


def refused(
    benchmark_module: Importer, script: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> int | str | None:
    """The exit status of a script, run here."""
    module = benchmark_module(script.removesuffix(".py"))
    options_module = benchmark_module("_common.options")
    monkeypatch.setattr(sys, "argv", [script, *options])
    try:
        return options_module.run_script(module.parser(), module.run)
    except SystemExit as error:
        return error.code


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [*REFUSALS, *((run.script, *refusal) for run in RUNS for refusal in COMMON_REFUSALS)],
)
def test_wrong_options_are_refused_in_one_sentence(
    script: str,
    options: list[str],
    message: str,
    benchmark_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert refused(benchmark_module, script, ["--out", str(tmp_path), *options], monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_folder_that_is_a_file_is_refused(
    run: Run,
    benchmark_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    assert refused(benchmark_module, run.script, ["--out", str(tmp_path / "file")], monkeypatch) == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err
