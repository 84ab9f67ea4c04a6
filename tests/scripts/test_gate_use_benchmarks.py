"""benchmarks/gate_cache.py and benchmarks/gate_statistics.py: what they count, and that wrong losses get no time."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_runs import Importer

import gatedops

pytest.importorskip("tqdm")


def run(script: ModuleType, out: Path, *options: str) -> tuple[int, Any]:
    """The exit status, and the JSON."""
    code = script.run(script.parser().parse_args(["--out", str(out), "--repeats", "1", *options]))
    (path,) = out.iterdir()
    return code, json.loads(path.read_text())


def test_epochs_with_and_without_a_cache(benchmark_module: Importer, tmp_path: Path) -> None:
    code, found = run(benchmark_module("gate_cache"), tmp_path, "--networks", "fc", "--n", "70")
    assert (code, found["failures"]) == (0, [])
    by = ["cache in memory", "cache, memory-mapped", "no cache", "gates that are ready"]
    assert [entry["by"] for entry in found["entries"]] == by
    for entry in found["entries"]:
        assert (entry["network"], entry["n"], entry["bytes_an_input"]) == ("fc", 70, 160)
        assert entry.get("limited_by") == (None if entry["by"] == by[-1] else by[-1])


def test_no_time_is_given_when_losses_differ(
    benchmark_module: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark_module("gate_cache")
    take = gatedops.GateCache.__getitem__
    monkeypatch.setattr(script.GateCache, "__getitem__", lambda cache, rows: take(cache, rows.flip(0)))
    code, found = run(script, tmp_path, "--networks", "fc", "--n", "70")
    assert code == 1
    assert [entry["by"] for entry in found["entries"]] == ["no cache"]
    assert len(found["failures"]) == 3
    assert all("losses differ by" in missing["reason"] for missing in found["failures"])


def test_statistics_of_random_gates(benchmark_module: Importer, tmp_path: Path) -> None:
    code, found = run(benchmark_module("gate_statistics"), tmp_path, "--n", "300", "--widths", "200", "3")
    assert (code, found["failures"]) == (0, [])
    assert found["bytes"] == 300 * 64
    assert found["regions"] == {"net": 300, "layers": [300, 8]}
    timed = [entry["what"] for entry in found["entries"] if entry["by"] == "gatedops"]
    assert timed == ["gate_stats", "gate_change", "count_regions", "naswot_score, batches of 128"]
