"""benchmarks/drop_in.py, run small: what it writes, what it refuses, what its figures rest on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from script_runs import Importer, run_script

import gatedops

SMALL = ("--networks", "MLP", "transformer", "--n", "3", "--batch", "2", "--repeats", "2")
NETWORKS = ("MLP", "VGG-11", "ResNet-18", "transformer")
GATES = {"MLP": 4 * 1024, "VGG-11": 152_064, "ResNet-18": 557_056, "transformer": 2 * 32 * 1024}

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


def test_a_whole_run_writes_json_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_script("drop_in.py", *SMALL, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["drop_in.json", "drop_in.png"]
    assert (out / "drop_in.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / "drop_in.json").read_text())
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["options"]["networks"] == ["MLP", "transformer"]
    recorded = {(result["network"], result["by"]): result for result in found["recording"]}
    for name in ("MLP", "transformer"):
        ours, hooks = recorded[name, "record_gates"], recorded[name, "hooks by hand"]
        assert ours["gates"] == hooks["gates"] == GATES[name]
        assert ours["ratio"] == 1
        assert hooks["bytes_per_input"] == 8 * ours["bytes_per_input"] == GATES[name]
        assert recorded[name, "the network alone"]["bytes_per_input"] is None
    fused = [(result["network"], result["what"], result["replaced"]) for result in found["fusing"]]
    assert fused == [("MLP", "forward", 4), ("MLP", "forward + backward", 4), ("transformer", "any", 0)]
    for words in ("hooks by hand", "the network alone", "eager / fused", "agree in every bit", "wrote"):
        assert words in done.stdout


def test_without_plot(tmp_path: Path) -> None:
    done = run_script(
        "drop_in.py", "--networks", "MLP", "--n", "1", "--repeats", "1", "--no-plot", "--out", ".", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["drop_in.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "argument --n: must be at least 1, got 0"),
        (["--batch", "many"], "argument --batch: needs a whole number, got 'many'"),
        (["--repeats", "-1"], "argument --repeats: must be at least 1, got -1"),
        (["--networks", "AlexNet"], "argument --networks: invalid choice: 'AlexNet'"),
        (["--out", "file"], "--out file is not a folder that can be written to"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_script("drop_in.py", *options, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("drop_in.py: error: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_gates_that_hooks_by_hand_find(benchmark_module: Importer, name: str) -> None:
    models, recording = (benchmark_module(f"_drop_in.{part}") for part in ("models", "recording"))
    subject = next(subject for subject in models.SUBJECTS if subject.name == name)
    net, x = models.random_problem(subject, 2, seed=0)
    masks = recording.HookedByHand(net, subject.owners(net), 1)(x)
    bits = gatedops.record_gates(net, x, 1)
    assert sum(bits.widths) == GATES[name]
    assert all(torch.equal(a, b) for a, b in zip(bits.unpack(), masks, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_disagreement_stops_the_benchmark(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    models, recording, fusing = (benchmark_module(f"_drop_in.{p}") for p in ("models", "recording", "fusing"))
    monkeypatch.setattr(
        recording.HookedByHand, "__call__", lambda self, x: [torch.zeros(2, 1024, dtype=torch.bool)] * 4
    )
    with pytest.raises(RuntimeError, match="disagree on MLP"):
        recording.time_recording(models.SUBJECTS[0], 2, 1, 1, seed=0)
    flipped = gatedops.fuse_relu

    def wrong(net: torch.nn.Module, example: torch.Tensor) -> torch.nn.Module:
        fused = flipped(net, example)
        fused[-1].bias.data += 1
        return fused

    monkeypatch.setattr(gatedops, "fuse_relu", wrong)
    with pytest.raises(RuntimeError, match="changes the output of MLP"):
        fusing.time_fusing(models.SUBJECTS[0], 2, 1, seed=0)


def test_the_picture_shows_every_gate_where_it_is(benchmark_module: Importer) -> None:
    picture = benchmark_module("_drop_in.picture")
    generator = torch.Generator().manual_seed(0)
    gates = torch.rand(5, 3, 2, generator=generator) > 0.5
    mosaic = picture.tiles(gates, "gate")
    assert mosaic.shape == (2 * 4 - 1, 3 * 3 - 1)
    assert torch.equal(mosaic[4:7, 3:5] == 2, gates[4])
    assert torch.equal(mosaic[0:3, 0:2] == 2, gates[0])
    assert not mosaic[3].any()
    assert torch.equal(picture.tiles(gates[0, 0].repeat(8), "gate") == 2, gates[0, 0].repeat(8).view(4, 4))
    x = torch.randn(1, 2, 4, 6, generator=generator)
    select = gatedops.record_gates(
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.MaxPool2d(2)), x, max_pool=True
    ).unpack()[1]
    best = torch.nn.functional.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = (x == best) & (x > 0)
    assert torch.equal(picture.tiles(select[0], "select")[:, :6] == 2, expected[0, 0])
