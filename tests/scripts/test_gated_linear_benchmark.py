"""benchmarks/gated_linear.py: what it writes, what it refuses, and that a wrong layer gets no speed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from script_runs import Importer, run_script
from torch import Tensor

from gatedops import backends

SMALL = ("--size", "6,70,2", "--no-compile")
KINDS = ["layer", "value", "pair", "frozen", "soft"]

pytest.importorskip("tqdm")


@pytest.fixture(autouse=True)
def _no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATEDOPS_BACKEND", raising=False)


@pytest.mark.parametrize(
    ("backend", "name"), [("cpu", "gated_linear"), ("portable", "gated_linear_portable")], ids=["cpu", "portable"]
)
def test_a_whole_run_writes_json_and_png(
    backend: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("GATEDOPS_BACKEND", backend)
    done = run_script("gated_linear.py", *SMALL, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.json", f"{name}.png"]
    assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    content = json.loads((out / f"{name}.json").read_text())
    assert content["machine"]["backend"] == backend
    assert (" threads, portable, torch " in done.stdout.splitlines()[0]) == (backend == "portable")
    # The kernels in C++ are held to other speeds, and to the bytes of a value layer that is wide.
    assert {target["wanted"] for target in content["targets"]} == ({1 / 1.1} if backend == "portable" else {0.85, 1.15})
    assert len(content["targets"]) == len(KINDS)
    entries = content["entries"]
    assert content["failures"] == []
    by = ["gatedops", "torch eager", "products alone"]
    assert [(entry["kind"], entry["by"]) for entry in entries] == [(kind, name) for kind in KINDS for name in by]
    for entry in entries:
        assert (entry["batch"], entry["width"], entry["depth"]) == (6, 70, 2)
        assert min(entry["forward_s"], entry["training_s"]) > 0
    # A hard-gated value layer keeps its input, of which the first needs none, and 70 bits a row in lines of 256.
    kept = {entry["by"]: entry["saved_bytes"] for entry in entries if entry["kind"] == "value"}
    assert kept["gatedops"] == 2 * 6 * (70 * 4 + 32)
    assert kept["torch eager"] > kept["gatedops"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "4,33"], "argument --size: needs BATCH,WIDTH,DEPTH, got '4,33'"),
        (["--size", "4,x,2"], "argument --size: needs a whole number, got 'x'"),
        (["--only", "layers"], "argument --only: invalid choice: 'layers'"),
        (["--quick", "--size", "4,33,2"], "argument --size: not allowed with argument --quick"),
        (["--device", "cuda", "--no-plot"], "--device cuda needs an NVIDIA GPU"),
    ],
)
def test_bad_options(
    benchmark_module: Importer,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gated_linear.py", "--out", str(tmp_path), *options])
    try:
        code = benchmark_module("gated_linear").main()
    except SystemExit as error:
        code = error.code
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gated_linear.py: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("forced", ["", "triton"])
def test_any_gpu_will_do(
    benchmark_module: Importer, forced: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = benchmark_module("gated_linear")
    monkeypatch.setattr(backends, "_forced", forced or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    options = ["--device", "cuda", "--no-compile", "--no-plot", "--out", str(tmp_path)]
    args = script.parser().parse_args(options)
    assert script.prepare(args) == script.GPU_CELLS
    processor, facts = script.facts_of(args, {"torch": "2"})
    assert (processor, facts.split(", ")[:3]) == ("a GPU", ["bfloat16", forced or "portable", "torch 2"])
    assert script.name_of(args.device) == "gated_linear_cuda"


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_layer_gets_no_speed(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    nets, measure = benchmark_module("_gated_linear.nets"), benchmark_module("_gated_linear.measure")
    net = nets.Net(kind, nets.Cell(5, 40, 2), 0)
    monkeypatch.setattr(measure, "interleaved_medians", lambda *_, **__: pytest.fail("a wrong layer is timed"))
    right = net.ours

    def wrong(x: Tensor) -> tuple[Tensor, ...]:
        *others, z = right(x)
        return (*others, z + 1e-3 * z.abs().max())

    monkeypatch.setattr(net, "ours", wrong)
    with pytest.raises(RuntimeError, match="gatedops is wrong"):
        measure.measure(net, 3, compiled=False)


class Refusing:
    """A baseline of cuBLASLt calls that fails when it is planned, or on the way."""

    def __init__(self, error: type[Exception], planned: bool):
        self.error, self.planned = error, planned

    def __call__(self, net: object) -> Refusing:
        if not self.planned:
            raise self.error("heuristic of cuBLASLt failed with status 15")
        self.net = net
        return self

    def forward(self) -> None:
        raise self.error("matmul of cuBLASLt failed with status 14")

    def training(self) -> None:
        pass

    def results(self) -> tuple[Tensor, ...]:
        return self.net.eager(self.net.x)


@pytest.mark.parametrize("planned", [False, True])
def test_a_baseline_that_fails_is_named_and_the_rest_is_timed(
    benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planned: bool
) -> None:
    script, measure = benchmark_module("gated_linear"), benchmark_module("_gated_linear.measure")
    monkeypatch.setattr(measure, "has_two_calls", lambda net: net.cell.width == 40)
    monkeypatch.setattr(measure, "TwoCalls", Refusing(measure.CublasLtError, planned))
    options = ["--size", "5,40,2", "6,70,2", "--only", "layer", "--no-compile", "--no-plot", "--out", str(tmp_path)]
    assert script.run(script.parser().parse_args(options)) == 0
    content = json.loads((tmp_path / "gated_linear.json").read_text())
    assert [entry["by"] for entry in content["entries"]] == 2 * ["gatedops", "torch eager", "products alone"]
    (missing,) = content["failures"]
    assert (missing["batch"], missing["by"]) == (5, "cuBLASLt, two calls")
    call = "matmul of cuBLASLt failed with status 14" if planned else "heuristic of cuBLASLt failed with status 15"
    assert missing["reason"] == f"CublasLtError: {call}"


def test_a_net_that_fails_is_named_and_the_rest_is_timed(
    benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, measure = benchmark_module("gated_linear"), benchmark_module("_gated_linear.measure")

    def check(net: object, found: object, by: str) -> None:
        if net.cell.width == 40:
            raise RuntimeError("gatedops is wrong")

    monkeypatch.setattr(measure, "check", check)
    options = ["--size", "5,40,2", "6,70,2", "--only", "layer", "--no-compile", "--no-plot", "--out", str(tmp_path)]
    assert script.run(script.parser().parse_args(options)) == 1
    content = json.loads((tmp_path / "gated_linear.json").read_text())
    assert {entry["batch"] for entry in content["entries"]} == {6}
    assert [missing["reason"] for missing in content["failures"]] == ["RuntimeError: gatedops is wrong"]
    printed = capsys.readouterr().out
    assert "gatedops, 5 x 40 x 2: RuntimeError: gatedops is wrong" in printed
    assert "failed" in printed


def test_targets_depend_on_the_size(benchmark_module: Importer) -> None:
    targets, measure = benchmark_module("_gated_linear.targets"), benchmark_module("_gated_linear.measure")

    def wanted(kind: str, batch: int, width: int) -> list[float]:
        entry = measure.Entry(kind, batch, width, 4, measure.OURS, 1.0, 1.0, (1.0,), 1.0, 1.0, 1.0, 5, 0.5)
        return [target.wanted for target in targets.targets([entry])]

    for speed, met in ((0.9, False), (0.92, True)):
        entry = measure.Entry("value", 2048, 256, 4, measure.OURS, 1.0, 1.0, (1.0,), 5.0, speed, 1.0, 5, 0.6)
        peer = measure.Entry("value", 2048, 256, 4, measure.EAGER, 1.0, 1.0, (1.0,), 1.0, 1.0, 1.0, 5, 1.0)
        held = list(targets.portable_targets([entry, peer]))
        assert [(target.name, target.met) for target in held] == [("value 2048 x 256 x 4, eager / ours", met)]
    assert wanted("layer", 512, 128) == [0.85]
    assert wanted("layer", 2048, 256) == [0.98]
    assert wanted("value", 2048, 256) == [0.98, 0.56]
    assert wanted("pair", 2048, 512) == [1.15]
    assert wanted("pair", 4096, 512) == [1.0]
