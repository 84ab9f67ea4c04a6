"""benchmarks/npk_gram.py: what its figures rest on, and that a wrong Gram has no time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer

import gatedops
from gatedops import GateBits, reference

SMALL = ("--n", "30", "--width", "33", "--depth", "3", "--epochs", "1", "--no-plot")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    script = benchmark_module("npk_gram")
    monkeypatch.setattr(script, "bit_pair_rate", lambda isa, threads: 1e6)
    monkeypatch.setattr(script, "REPEATS", 3)
    return script


def arguments(script: ModuleType, out: Path, *options: str) -> argparse.Namespace:
    return script.parser().parse_args([*SMALL, "--out", str(out), *options])


def test_a_whole_run(script: ModuleType, tmp_path: Path) -> None:
    assert script.run(arguments(script, tmp_path)) == 0
    found = json.loads((tmp_path / "npk_gram.json").read_text())
    assert found["points"] == {"n": 30, "train": 24, "test": 6}
    assert sum(found["classes"].values()) == 30
    assert len(found["net"]["loss_by_epoch"]) == 1
    assert {(image["height"], image["width"]) for image in found["pictures"].values()} == {(30, 30)}
    for figures in found["gates"].values():
        assert 0 <= figures["accuracy"] <= 1
        assert 0.2 < figures["on"] < 0.8
        assert len(figures["on_by_layer"]) == 2
        assert 0 < figures["across"] < figures["within"] < 1
        assert figures["eigenvalues_over_trace"] == sorted(figures["eigenvalues_over_trace"], reverse=True)
    names = ["random, 4 x 1024, n=30, Lambda alone", "random, 4 x 1024, n=30, with x (d=784)"]
    names += ["digits, 2 x 33, n=30, Lambda alone", "digits, 2 x 33, n=30, with x (d=64)"]
    assert list(dict.fromkeys(entry["problem"] for entry in found["speed"])) == names
    for name in names:
        by = {entry["by"]: entry for entry in found["speed"] if entry["problem"] == name}
        alone = "Lambda alone" in name
        assert list(by) == ["gatedops", "torch float32", "torch bfloat16", "torch x @ x.T alone"][: 3 + (not alone)]
        assert by["gatedops"]["ratio"] == 1
        assert by["gatedops"].get("limited_by") == ("counting" if alone else None)
        assert by["gatedops"]["largest_error"] < 1e-5 < 1e-4 < by["torch bfloat16"]["largest_error"]
    work = 30 * 31 // 2 * 4 * 1024
    assert found["speed"][0]["limit_s"] == {"counting": pytest.approx(work / 1e6)}


def test_without_peers(script: ModuleType, tmp_path: Path) -> None:
    options = ("--data", "random", "--dtype", "float64", "--scale", "none", "--no-peers")
    assert script.run(arguments(script, tmp_path, *options)) == 0
    found = json.loads((tmp_path / "npk_gram.json").read_text())["speed"]
    assert {entry["by"] for entry in found} == {"gatedops"}
    assert all(entry["largest_error"] < 1e-13 for entry in found)


def test_a_wrong_gram_has_no_time(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gatedops.npk_gram

    def wrong(*args: object, out: torch.Tensor | None = None, **kwargs: object) -> torch.Tensor:
        gram = right(*args, out=out, **kwargs)
        return gram if out is None else gram.mul_(1 + 1e-4)

    monkeypatch.setattr(gatedops, "npk_gram", wrong)
    assert script.run(arguments(script, tmp_path)) == 1
    found = json.loads((tmp_path / "npk_gram.json").read_text())
    assert {(entry["by"] == "gatedops", entry["ratio"]) for entry in found["speed"]} == {(False, None)}
    assert len(found["failures"]) == 4
    assert all("the Gram is wrong: its largest relative error is 1.0e-04" in one["reason"] for one in found["failures"])


@pytest.mark.parametrize("name", ["npk_gram", "conv_npk"])
def test_too_many_points_are_refused_before_any_work(
    benchmark_module: Importer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark_module(name)
    monkeypatch.setattr(benchmark_module("_common.options"), "available_memory", lambda: 2**30)
    args = script.parser().parse_args(["--data", "random", "--n", "10000000", "--out", str(tmp_path)])
    with pytest.raises(ValueError, match=r"a study of n=10000000 needs about .* GiB of memory, 1.0 GiB are left"):
        script.run(args)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_relative(script: ModuleType) -> None:
    row = torch.tensor([0])
    found = [script.largest_error(torch.tensor([[1.5, last]]), row, torch.tensor([[1.0, 0.0]])) for last in (0.0, 0.1)]
    assert found == [0.5, float("inf")]


def test_overlaps_are_means_over_pairs(benchmark_module: Importer) -> None:
    study = benchmark_module("_common.gate_study")
    generator = torch.Generator().manual_seed(1)
    bits = GateBits.pack([torch.rand(12, 31, generator=generator) > 0.5])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 0])
    cosine = reference.npk_gram(None, bits, normalize=True, dtype=torch.float64)
    same = labels[:, None] == labels
    expected = [cosine[same & ~torch.eye(12, dtype=torch.bool)].mean().item(), cosine[~same].mean().item()]
    assert study.sub_network_overlap(bits, labels, 4, torch.float64) == pytest.approx(expected, rel=1e-5)


def test_leading_eigenvalues(benchmark_module: Importer) -> None:
    study = benchmark_module("_common.gate_study")
    generator = torch.Generator().manual_seed(2)
    factor = torch.randn(80, 80, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(80)
    gram = factor @ factor.T
    expected = torch.linalg.eigvalsh(gram).flip(0)[:10]
    torch.testing.assert_close(study.leading_eigenvalues(gram, 10, seed=0), expected, rtol=1e-3, atol=0)
