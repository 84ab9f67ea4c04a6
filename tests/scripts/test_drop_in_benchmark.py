"""benchmarks/drop_in.py: what its figures rest on, and that contestants that disagree have no time."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer

import gatedops

GATES = {"MLP": 4 * 1024, "VGG-11": 152_064, "ResNet-18": 557_056, "transformer": 2 * 32 * 1024}

pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("drop_in")


def run(script: ModuleType, out: Path, *networks: str) -> tuple[int, dict]:
    """The exit status, and the JSON."""
    options = ["--n", "3", "--batch", "2", "--repeats", "2", "--out", str(out), "--networks", *networks]
    code = script.run(script.parser().parse_args(options))
    return code, json.loads((out / "drop_in.json").read_text())


def test_a_whole_run(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(script, tmp_path, "MLP", "transformer")
    assert code == 0
    recorded = {(entry["problem"], entry["by"]): entry for entry in found["recording"]}
    for name in ("MLP", "transformer"):
        ours, hooks = recorded[name, "record_gates"], recorded[name, "hooks by hand"]
        assert ours["gates"] == hooks["gates"] == GATES[name]
        assert (ours["ratio"], ours["limited_by"]) == (1, "the network alone")
        assert hooks["bytes_per_input"] == 8 * ours["bytes_per_input"] == GATES[name]
        assert "bytes_per_input" not in recorded[name, "the network alone"]
    fused = [(entry["problem"], entry["what"], entry["by"], entry["replaced"]) for entry in found["fusing"]]
    passes = ("forward", "forward + backward")
    assert fused == [("MLP", what, by, 4) for what in passes for by in ("fused", "eager")]
    assert "transformer: fuse_relu replaces nothing (2 ReLUs stay torch's)" in capsys.readouterr().out


@pytest.mark.parametrize("name", GATES)
def test_networks_have_the_gates_that_hooks_by_hand_find(script: ModuleType, name: str) -> None:
    subject = next(subject for subject in script.SUBJECTS if subject.name == name)
    net, x = script.random_problem(subject, 2, seed=0)
    masks = script.HookedByHand(net, subject.owners(net), 1)(x)
    bits = gatedops.record_gates(net, x, 1)
    assert sum(bits.widths) == GATES[name]
    assert all(torch.equal(a, b) for a, b in zip(bits.unpack(), masks, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


def test_who_disagrees_has_no_time(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse, record = gatedops.fuse_relu, gatedops.record_gates

    def wrong(net: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
        fused = fuse(net, example)
        fused[-1].bias.data += 1
        return fused

    monkeypatch.setattr(gatedops, "fuse_relu", wrong)
    monkeypatch.setattr(gatedops, "record_gates", lambda net, x, batch: record(net, x.flip(0), batch))
    code, found = run(script, tmp_path, "MLP")
    assert code == 1
    assert [(entry["by"], entry["ratio"]) for entry in found["recording"]] == [
        ("hooks by hand", None),
        ("the network alone", None),
    ]
    assert {(entry["by"], entry["ratio"]) for entry in found["fusing"]} == {("eager", None)}
    reasons = [failure["reason"].removeprefix("RuntimeError: ") for failure in found["failures"]]
    assert reasons == ["record_gates and hooks by hand disagree", *["fuse_relu changes the output"] * 2]
