"""benchmarks/gated_linear.py: what it times and counts, and that what is wrong or raises is named and gets no time."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from script_runs import Importer
from torch import Tensor

from gatedops import backends

KINDS = ["layer", "value", "pair", "frozen", "soft"]
OURS, EAGER, PRODUCTS, TWO_CALLS = "gatedops", "torch eager", "matrix products alone", "cuBLASLt, two calls"
RUNS = ["forward", "forward + backward"]

pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(backends, "_forced", None)
    return benchmark_module("gated_linear")


@pytest.fixture
def measure(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gated_linear.measure")


def options(script: ModuleType, *more: str) -> argparse.Namespace:
    return script.parser().parse_args(["--no-compile", "--no-plot", *more])


def run(script: ModuleType, out: Path, *more: str) -> tuple[int, Any]:
    """The exit status, and the JSON."""
    code = script.run(options(script, "--size", "6,70,2", "--out", str(out), *more))
    (path,) = out.iterdir()
    return code, json.loads(path.read_text()) | {"name": path.stem}


@pytest.mark.parametrize(("backend", "name"), [(None, "gated_linear"), ("portable", "gated_linear_portable")])
def test_all_kinds_of_net(
    script: ModuleType, backend: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_forced", backend)
    code, found = run(script, tmp_path)
    assert (code, found["name"], found["machine"]["backend"]) == (0, name, backend or "cpu")
    assert found["options"]["size"] == ["6 x 70, 2 layers"]
    entries = {(entry["kind"], entry["what"], entry["by"]): entry for entry in found["entries"]}
    assert list(entries) == [(kind, what, by) for kind in KINDS for what in RUNS for by in (OURS, EAGER, PRODUCTS)]
    for (kind, what, by), entry in entries.items():
        assert (entry["batch"], entry["width"], entry["depth"]) == (6, 70, 2)
        assert entry["ratio"] == entry["median_s"] / entries[kind, what, OURS]["median_s"]
        assert ("saved_bytes" in entry) == (what == RUNS[1] and by != PRODUCTS)
        assert entry.get("limited_by") == (None if by == PRODUCTS else PRODUCTS)
    # A hard-gated value layer keeps its input, which the first one does not need, and 70 bits a row in lines of 256.
    ours, eager = (entries["value", RUNS[1], by] for by in (OURS, EAGER))
    if backend is None:
        assert ours["saved_bytes"] == 2 * 6 * (70 * 4 + 32)
        assert ours["saved_of_eager"] == ours["saved_bytes"] / eager["saved_bytes"] < 1


@pytest.mark.parametrize("forced", [None, "triton"])
def test_any_gpu_will_do(script: ModuleType, forced: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_forced", forced)
    args = options(script, "--device", "cuda")
    assert script.prepare(args) == script.GPU_CELLS
    assert (args.dtype, script.name_of(args.device)) == ("bfloat16", "gated_linear_cuda")


def test_a_compiler_is_needed_for_torch_compile(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither g\+\+ nor clang\+\+ is found: use --no-compile"):
        script.run(script.parser().parse_args([]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_layer_gets_no_time(
    script: ModuleType, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = script.Net.ours

    def wrong(net: Any, x: Tensor) -> tuple[Tensor, ...]:
        *others, z = right(net, x)
        return (*others, z + 1e-3 * z.abs().max())

    monkeypatch.setattr(script.Net, "ours", wrong)
    code, found = run(script, tmp_path, "--only", kind)
    assert code == 1
    assert [(missing["what"], missing["by"]) for missing in found["failures"]] == [(what, OURS) for what in RUNS]
    assert all("differ from those of eager torch" in missing["reason"] for missing in found["failures"])
    assert [entry["by"] for entry in found["entries"]] == 2 * [EAGER, PRODUCTS]
    assert all(entry["ratio"] is None for entry in found["entries"])


@pytest.mark.parametrize("fails", ["planned", "called", "in the turns", "wrong"])
def test_a_baseline_that_fails_is_named_and_the_rest_is_timed(
    script: ModuleType, measure: ModuleType, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def two_calls(net: Any) -> SimpleNamespace:
        def call() -> tuple[Tensor, ...]:
            calls.append(net)
            if fails == "called" or (fails == "in the turns" and len(calls) % 3 == 0):
                raise RuntimeError("matmul of cuBLASLt failed")
            (z,) = net.eager(net.x)
            return (2 * z if fails == "wrong" else z,)

        if fails == "planned":
            raise RuntimeError("heuristic of cuBLASLt failed")
        return SimpleNamespace(run=lambda backward: call)

    monkeypatch.setattr(measure, "has_two_calls", lambda net: True)
    monkeypatch.setattr(measure, "TwoCalls", two_calls)
    code, found = run(script, tmp_path, "--only", "layer")
    assert code == 1
    assert [(missing["what"], missing["by"]) for missing in found["failures"]] == [(what, TWO_CALLS) for what in RUNS]
    assert [entry["by"] for entry in found["entries"]] == 2 * [OURS, EAGER, PRODUCTS]


def test_a_net_that_cannot_be_made_is_named_and_the_rest_is_timed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make: Callable[..., object] = script.Net

    def net(kind: str, cell: Any, *more: object) -> object:
        if cell.width == 70:
            raise torch.OutOfMemoryError("no memory is left")
        return make(kind, cell, *more)

    monkeypatch.setattr(script, "Net", net)
    code, found = run(script, tmp_path, "--only", "layer", "--size", "6,70,2", "5,40,2")
    assert code == 1
    assert {entry["batch"] for entry in found["entries"]} == {5}
    assert "layer 6 x 70, 2 layers: OutOfMemoryError: no memory is left" in capsys.readouterr().out


class TorchProduct:
    """What cuBLASLt does, by torch: `out` = left @ right, and an epilogue that writes or applies bits."""

    def __init__(self, left: Tensor, right: Tensor, out: Tensor, epilogue: int = 1, bias: Any = None, aux: Any = None):
        self.tensors, self.epilogue = (left, right, out, bias, aux), epilogue

    def __call__(self) -> None:
        left, right, out, bias, aux = self.tensors
        torch.mm(left, right, out=out)
        if self.epilogue == 1:
            return
        powers = 2 ** torch.arange(8, dtype=torch.uint8)
        if bias is not None:
            out.add_(bias).relu_()
            aux.copy_(((out > 0).view(len(out), -1, 8) * powers).sum(2))
        out.mul_((aux[:, :, None] & powers).bool().view(len(out), -1)[:, : out.shape[1]])


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_the_two_calls_give_the_results_and_gradients_of_torch(
    script: ModuleType, measure: ModuleType, benchmark_module: Importer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_module("_gated_linear.two_calls"), "Product", TorchProduct)
    net = script.Net(kind, script.Cell(5, 128, 3), seed=0)
    planned = measure.TwoCalls(net)
    for backward in (False, True):
        measure.require_right(net, planned.run(backward))
    results = net.eager(net.x)
    torch.autograd.backward(results, net.cotangents[: len(results)])
    features = planned.features if kind == "pair" else None
    for network, layers in ((features, net.features), (planned.values, net.values)):
        for layer, (weight, bias) in enumerate(layers if network else []):
            assert torch.allclose(network.weight_gradients[layer], weight.grad, rtol=1e-3, atol=1e-3)
            assert torch.allclose(network.bias_gradients[layer], bias.grad, rtol=1e-3, atol=1e-3)
