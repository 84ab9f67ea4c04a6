"""The output of a self-test becomes rows of the table that ships."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gatedops.backends import proved
from gatedops.backends.choice import proved_choices
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.backends.proved import Proved
from gatedops.backends.verdicts import Verdict
from gatedops.selftest.report import GpuResult, json_of

H100 = Gpu("NVIDIA H100", (9, 0), "580.65.06")
RIGHT = Verdict("right", faster=(1.504, 3.0), date="2026-12-01", cases=12)
FOUND = {
    "gram": {"triton": RIGHT},
    "gates": {"triton": Verdict("wrong", "pack_gates: 1 of 9 differ")},
    "gated_linear": {"triton": Verdict("right", faster=(0.5, 2.0))},
}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Loads scripts/record_proved.py with an empty table of its own."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "record_proved.py"
    spec = importlib.util.spec_from_file_location("record_proved", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "proved.json").write_text("[]")
    monkeypatch.setattr(proved, "TABLE", tmp_path / "proved.json")
    proved.table.cache_clear()
    yield module
    proved.table.cache_clear()


def written(tmp_path: Path, found: dict) -> str:
    """Writes the output of the command into a file."""
    path = tmp_path / "found.json"
    path.write_text(json_of([GpuResult(H100, "cuda:0", found, {}, None)], KERNEL_BACKENDS, proved_choices([], [])))
    return str(path)


def test_what_was_right_and_faster_becomes_a_row(script, tmp_path):
    assert script.main([written(tmp_path, FOUND)]) == 0
    triton = next(backend for backend in KERNEL_BACKENDS if backend.name == "triton")
    row = Proved("gram", "triton", "9.0", triton.sources(), "NVIDIA H100", (1.5, 3.0), "2026-12-01")
    proved.table.cache_clear()
    assert proved.table() == (row,)
    assert proved.proved_on(H100, KERNEL_BACKENDS)["gram"]["triton"].is_chosen


OLD = [Proved("gram", "triton", c, "old", "a", (2.0, 2.0), "2026-11-01") for c in ("8.0", "9.0")]
NEW = Proved("gram", "triton", "9.0", "new", "b", (3.0, 3.0), "2026-12-01")
KEY = ("gram", "triton", "9.0")


def test_a_new_row_replaces_an_older_one_of_its_kind(script):
    slower = replace(NEW, faster=(1.5, 9.0))
    assert script.merged(OLD, [{KEY: [NEW]}]) == [OLD[0], NEW]
    assert script.merged(OLD, [{KEY: [NEW]}, {KEY: [slower]}]) == [OLD[0], slower]
    assert script.merged(OLD, [{("gates", "triton", "9.0"): [None]}]) == OLD


def test_what_is_not_right_and_faster_everywhere_loses_its_row(script, tmp_path):
    assert script.merged(OLD, [{KEY: [None]}]) == script.merged(OLD, [{KEY: [NEW, None]}]) == OLD[:1]
    assert script.merged(OLD, [{KEY: [None]}, {KEY: [NEW]}]) == OLD[:1]
    barely = {"gram": {"triton": replace(RIGHT, faster=(1.054, 3.0))}}  # The table has 1.05.
    for found in (FOUND, barely):
        assert script.main([written(tmp_path, found)]) == 0
        proved.table.cache_clear()
    assert proved.table() == ()


def test_kernels_of_other_sources_are_refused(script, tmp_path, monkeypatch):
    path = written(tmp_path, FOUND)
    monkeypatch.setattr(script, "sources_here", lambda: {"triton": "another"})
    with pytest.raises(SystemExit, match=r"the kernels in triton ran from the sources .*, here are another"):
        script.main([path])
    assert json.loads(proved.TABLE.read_text()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"), [([], 2, "are required: FILE"), (["--help"], 0, "selftest --json")]
)
def test_without_a_file_it_says_what_it_needs(script, capsys, arguments, status, said):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == status
    assert said in "".join(capsys.readouterr())
