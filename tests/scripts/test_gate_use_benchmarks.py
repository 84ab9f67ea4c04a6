"""benchmarks/gate_cache.py and benchmarks/gate_statistics.py, run small: what they write and what they refuse."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from script_runs import Importer

import gatedops

pytest.importorskip("tqdm")


@pytest.fixture
def run(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Calls a script's main in this process with these options; its exit code, and the JSON it wrote or None."""

    def called(name: str, *options: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--out", str(tmp_path), *options])
        try:
            code = benchmark_module(name).main()
        except SystemExit as error:
            code = error.code
        path = tmp_path / f"{name}.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return called


def test_epochs_with_and_without_a_cache(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run("gate_cache", "--networks", "fc", "--n", "70", "--repeats", "1")
    assert code == 0
    assert found["machine"]["gatedops"] == gatedops.__version__
    (epoch,) = found["epochs"]
    assert (epoch["network"], epoch["n"], epoch["cache_bytes"]) == ("fc", 70, 70 * 160)
    assert epoch["limit"] == pytest.approx(epoch["without"] / (epoch["without"] - epoch["features"]))
    assert min(epoch[kind] for kind in ("without", "cached", "mapped", "features")) > 0
    assert "agree in every bit" in capsys.readouterr().out


def test_no_time_is_given_when_losses_differ(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("gate_cache")
    take = gatedops.GateCache.__getitem__
    monkeypatch.setattr(script.GateCache, "__getitem__", lambda cache, rows: take(cache, rows.flip(0)))
    with pytest.raises(RuntimeError, match="fc, cached: losses differ by"):
        run("gate_cache", "--networks", "fc", "--n", "70", "--repeats", "1")


def test_statistics_of_random_gates(run: Any) -> None:
    code, found = run("gate_statistics", "--n", "300", "--widths", "200", "3", "--repeats", "1")
    assert code == 0
    assert found["bytes"] == 300 * 64
    assert found["regions"] == {"net": 300, "layers": [300, 8]}
    assert len(found["median"]) == 5
    assert min(found["median"].values()) > 0


def test_random_gates_are_drawn_in_chunks(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("gate_statistics")
    monkeypatch.setattr(script, "CHUNK", 7)
    bits = script.random_bits(20, [40], seed=3)
    (gates,) = bits.unpack()
    assert gates.shape == (20, 40)
    expected = torch.rand(20, 40, generator=torch.Generator().manual_seed(3)) > 0.5
    assert torch.equal(gates, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gate_cache", ["--networks", "resnet"], "argument --networks: invalid choice"),
        ("gate_cache", ["--n", "0"], "argument --n: must be at least 1, got 0"),
        ("gate_cache", ["--out", __file__], "is not a folder that can be written to"),
        ("gate_statistics", ["--n", "127"], "argument --n: must be at least 128, got 127"),
        ("gate_statistics", ["--widths", "none"], "argument --widths: needs a whole number"),
    ],
)
def test_bad_options(name: str, options: list[str], message: str, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, *options) == (2, None)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{name}.py: error: ")
    assert message in last
