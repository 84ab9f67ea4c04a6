"""benchmarks/gram.py --device cuda without a GPU: whole runs on CPU tensors."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer

import gatedops
from gatedops import GateBits, npk_gram

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"

pytest.importorskip("tqdm")


@pytest.fixture
def gpu(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gram.gpu")


def part(name: str) -> ModuleType:
    return importlib.import_module(f"_gram.{name}")


@pytest.fixture
def stand_in(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The CPU in place of a GPU: everything but the timing by events and the launch of a kernel."""
    sections, timing = part("gpu_sections"), importlib.import_module("_common.timing")
    monkeypatch.setattr(sections, "DEVICE", "cpu")
    monkeypatch.setattr(sections, "free_bytes", lambda: 1 << 40)
    monkeypatch.setattr(sections, "interleaved_gpu_medians", lambda f, r, label: timing.interleaved_medians(f, r))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: H200)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return importlib.import_module("gram")


@pytest.fixture
def on_cpu(stand_in: ModuleType, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A GPU whose kernels are the CPU's."""
    monkeypatch.setattr(gpu, "require_kernels", lambda: ["wgmma", "mma.sync"])
    return stand_in


def test_a_whole_run(on_cpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ["--device", "cuda", "--quick", "--n", "64", "72", "--layers", "2", "--width", "64"]
    args = on_cpu.parser().parse_args([*options, "--only", "sweep", "headline", "one-layer", "--out", str(tmp_path)])
    assert on_cpu.run(args) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gram_cuda.json", "gram_cuda.png"]
    found = json.loads((tmp_path / "gram_cuda.json").read_text())
    assert found["machine"]["gpu"] == H200
    assert {(e["what"], e["by"]) for e in found["sweep"]} == {
        ("Lambda", by) for by in ("wgmma", "mma.sync", "torch int8", "torch float16")
    }
    assert {e["what"] for e in found["headline"]} == {
        "Lambda", "Gram with x, uint8", "Gram with x, float32", "matvec, 10 columns",
    }  # fmt: skip
    for e in [*found["sweep"], *found["headline"], *found["one-layer"]]:
        assert 0 < e["best_s"] <= e["median_s"]
    assert [e["operations_per_second"] * e["median_s"] for e in found["one-layer"]] == [
        pytest.approx(2 * 72**2 * 64)
    ] * 2
    assert len(found["targets"]) == 8
    assert (found["failures"], found["complete"]) == ([], True)
    told = capsys.readouterr().out
    assert "== one-layer" in told
    assert "== packing" not in told


QUICK = ["--device", "cuda", "--quick", "--layers", "2", "--width", "64", "--no-plot"]


def run_of(script: ModuleType, out: Path, *options: str) -> int:
    return script.run(script.parser().parse_args([*QUICK, "--out", str(out), *options]))


def found_in(out: Path) -> dict:
    return json.loads((out / "gram_cuda.json").read_text())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this is the device's own kernel")


def test_portable_alone(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where GATEDOPS_BACKEND asks for nothing, everything is timed, and only portable is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("GATEDOPS_BACKEND", raising=False)
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, refuse)
    assert run_of(stand_in, tmp_path, "--n", "64") == 0
    found = found_in(tmp_path)
    assert found["machine"]["kernels"] == ["portable"]
    assert {e["by"] for e in found["sweep"]} == {"portable", "torch int8", "torch float16"}
    assert {e["what"] for e in found["headline"] if e["by"] == "portable"} == {
        "Lambda", "Gram with x, uint8", "Gram with x, float32", "matvec, 10 columns",
    }  # fmt: skip
    assert [e["by"] for e in found["one-layer"]] == ["portable"]
    assert len(found["packing"]) == 6
    told = capsys.readouterr().out
    assert "chosen kernel: portable" in told
    assert "packing by portable, into reused words" in told


def test_portable_beside_triton_is_called_itself(
    stand_in: ModuleType, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    call_of, counts_of = sections.gram_call, sections.counts_call

    def own_kernel(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        return call_of("portable" if name == "portable" else "mma.sync", bits, x, out)

    def counts_call(name: str, x: GateBits, y: GateBits) -> Callable[[], torch.Tensor]:
        counted.append(name)
        return counts_of(name, x, y)

    counted: list[str] = []
    monkeypatch.setattr(sections, "gram_call", own_kernel)
    monkeypatch.setattr(sections, "counts_call", counts_call)
    monkeypatch.setattr(part("portable").gram, "npk_gram_out", refuse)
    monkeypatch.setattr(gpu, "require_kernels", lambda: ["Triton", "portable"])
    assert run_of(stand_in, tmp_path, "--n", "64", "--only", "sweep", "one-layer", "--no-peers") == 1
    found = found_in(tmp_path)
    assert [e["by"] for e in found["sweep"]] == ["Triton"]
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [("Lambda", "portable")]
    assert [e["by"] for e in found["one-layer"]] == counted == ["Triton", "portable"]


def failing_gram(n: int, fault: str, also: str = "") -> Callable[..., Callable[[], torch.Tensor]]:
    """The Gram, of which mma.sync (and `also`) has this fault for n points: wrong, idle, or an error."""

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        faulty = name in ("mma.sync", also) and bits.n == n

        def call() -> torch.Tensor:
            if faulty and fault == "error":
                raise ArithmeticError("no such shared memory")  # as Triton's compile errors: no RuntimeError
            if faulty and fault == "idle":
                return out
            return npk_gram(x, bits, out=out).mul_(1.001 if faulty else 1)

        return call

    return call_of


REASON = {"wrong": "RuntimeError: gatedops is wrong on ", "error": "ArithmeticError: no such shared memory"}
REASON["idle"] = REASON["wrong"]


@pytest.mark.parametrize("fault", list(REASON))
def test_a_contestant_that_fails_is_named_and_the_others_are_timed(
    on_cpu: ModuleType,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(part("gpu_sections"), "gram_call", failing_gram(64, fault))
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep", "headline") == 1
    found = found_in(tmp_path)
    timed = [(e["cell"]["n"], e["by"]) for e in found["sweep"]]
    peers = ["torch int8", "torch float16"]
    assert timed == [(64, by) for by in ("wgmma", *peers)] + [(72, by) for by in ("wgmma", "mma.sync", *peers)]
    assert {e["by"] for e in found["headline"]} == {"wgmma", "mma.sync", "torch int8"}
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["cell"], failure["what"]) == ("mma.sync", "n=64, 2 x 64", "Lambda")
    assert failure["reason"].startswith(REASON[fault])
    assert found["complete"]
    told = capsys.readouterr().out
    assert f"failed: Lambda, mma.sync, n=64, 2 x 64: {REASON[fault]}" in told
    assert told.count("failed  ") == 1  # the row of the table
    assert told.splitlines()[-1].startswith("1 failed and have no times here; the first is Lambda, mma.sync, n=64")


def test_every_gram_of_the_headline_fails_on_its_own(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the chosen kernel's Lambda, the matvec has no target beside it."""
    monkeypatch.setattr(part("gpu_sections"), "gram_call", failing_gram(64, "wrong", also="wgmma"))
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "headline", "one-layer") == 1
    found = found_in(tmp_path)
    whats = ("Lambda", "Gram with x, uint8", "Gram with x, float32")
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [
        (what, by) for what in whats for by in ("wgmma", "mma.sync")
    ]
    timed = {(e["what"], e["by"]) for e in found["headline"]}
    assert timed == {(what, "torch int8") for what in whats} | {("matvec, 10 columns", "wgmma")}
    assert {t["name"].split(",")[0] for t in found["targets"]} == {"counts of two sets"}


def test_a_wrong_matvec_or_count_has_no_speed(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matvec, counts = gatedops.npk_matvec, gatedops.gate_overlap
    monkeypatch.setattr(gatedops, "npk_matvec", lambda x, bits, v: 1.001 * matvec(x, bits, v))

    def overlap(x: GateBits, y: GateBits) -> torch.Tensor:
        return counts(x, y) + (os.environ.get("GATEDOPS_CUDA") == "sm90")

    monkeypatch.setattr(gatedops, "gate_overlap", overlap)
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "headline", "one-layer") == 1
    found = found_in(tmp_path)
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [
        ("matvec, 10 columns", "wgmma"), ("counts of two sets", "wgmma"),
    ]  # fmt: skip
    assert "matvec, 10 columns" not in {e["what"] for e in found["headline"]}
    assert [e["by"] for e in found["one-layer"]] == ["mma.sync"]


def test_a_peer_or_a_cell_that_fails_leaves_the_rest(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    peer, bits = sections.torch_peer, sections.random_bits

    def torch_peer(name: str, masks: list[torch.Tensor], cell: object) -> Callable[[], torch.Tensor]:
        if name == "torch int8":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peer(name, masks, cell)

    def random_bits(cell: object, seed: int) -> GateBits:
        if cell.n == 72:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bits(cell, seed)

    monkeypatch.setattr(sections, "torch_peer", torch_peer)
    monkeypatch.setattr(sections, "random_bits", random_bits)
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep") == 1
    found = found_in(tmp_path)
    assert [(e["cell"]["n"], e["by"]) for e in found["sweep"]] == [
        (64, by) for by in ("wgmma", "mma.sync", "torch float16")
    ]
    failed = [(f["kernel"], f["cell"], f["reason"]) for f in found["failures"]]
    reason = "OutOfMemoryError: CUDA out of memory"
    assert failed == [("torch int8", "n=64, 2 x 64", reason), ("all", "n=72, 2 x 64", reason)]


def test_a_contestant_that_fails_on_the_way_leaves_the_others_times(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Right when it is checked, an error in a later turn."""

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        runs = iter(range(3))

        def call() -> torch.Tensor:
            if name == "mma.sync" and next(runs) == 2:
                raise RuntimeError("CUDA error: too many resources")
            return npk_gram(x, bits, out=out)

        return call

    monkeypatch.setattr(part("gpu_sections"), "gram_call", call_of)
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "sweep") == 1
    found = found_in(tmp_path)
    assert [e["by"] for e in found["sweep"]] == ["wgmma", "torch int8", "torch float16"]
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["reason"]) == ("mma.sync", "RuntimeError: CUDA error: too many resources")


def test_packing_that_fails_leaves_the_other_inputs(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    time_packing = sections.time_packing

    def fails(problem: object, sizes: object) -> object:
        if "bool" in problem.name:
            raise RuntimeError("gatedops packs it wrongly")
        return time_packing(problem, sizes)

    monkeypatch.setattr(sections, "time_packing", fails)
    monkeypatch.setattr(sections, "packing_kernel", lambda: "Triton")
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "packing") == 1
    found = found_in(tmp_path)
    assert len(found["packing"]) == 5
    assert [(f["kernel"], f["cell"]) for f in found["failures"]] == [("Triton", "(n, 4096) bool")]


def test_a_run_that_is_killed_leaves_the_cells_before(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    bits = sections.random_bits

    def random_bits(cell: object, seed: int) -> GateBits:
        if cell.n == 72:
            raise KeyboardInterrupt
        return bits(cell, seed)

    monkeypatch.setattr(sections, "random_bits", random_bits)
    with pytest.raises(KeyboardInterrupt):
        run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep")
    assert [path.name for path in tmp_path.iterdir()] == ["gram_cuda.json"]
    found = found_in(tmp_path)
    assert {e["cell"]["n"] for e in found["sweep"]} == {64}
    assert not found["complete"]


@pytest.mark.parametrize("checked", [True, False])
def test_a_broken_gpu_ends_the_run(
    on_cpu: ModuleType,
    checked: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the check the kernel is known; while all are timed, whoever says it may not be to blame."""
    state = {"works": True, "runs": 0}

    def synchronize() -> None:
        if not state["works"]:
            raise RuntimeError("CUDA error: illegal memory access")

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            if name == "mma.sync" and bits.n == 72:
                state["runs"] += 1
                state["works"] = state["runs"] < (1 if checked else 2)
                synchronize()
            return npk_gram(x, bits, out=out)

        return call

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(part("gpu_sections"), "gram_call", call_of)
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "80", "--only", "sweep", "headline") == 1
    found = found_in(tmp_path)
    assert {e["cell"]["n"] for e in found["sweep"]} == {64}
    assert "headline" not in found
    assert not found["complete"]
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["cell"]) == ("mma.sync" if checked else "all", "n=72, 2 x 64")
    assert "CUDA error: illegal memory access" in failure["reason"]
    told = capsys.readouterr().out
    assert told.count("The run ends here") == 1
    assert "== headline" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--device cuda needs an NVIDIA GPU"),
        (["--only", "sweep", "soft"], "--only soft is about the CPU"),
    ],
)
def test_what_is_refused(
    gpu: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gram.py", "--device", "cuda", "--no-plot", "--out", str(tmp_path), *options])
    assert importlib.import_module("gram").main() == 2
    assert message in capsys.readouterr().err
