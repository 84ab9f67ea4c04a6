"""benchmarks/gated_linear.py: what raises is named and the rest is timed, and the two calls of cuBLASLt are right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from script_runs import Importer, run_and_read
from torch import Tensor

from gatedops import backends

TWO_CALLS, RUNS = "cuBLASLt, two calls", ["forward", "forward + backward"]

pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(backends, "_forced", None)
    return benchmark_module("gated_linear")


@pytest.fixture
def measure(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gated_linear.measure")


def run(script: ModuleType, out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the JSON of nets of one kind."""
    return run_and_read(script, out, "--no-compile", "--no-plot", "--only", "layer", "--size", "6,70,2", *more)


def test_files_are_those_of_a_device_and_a_backend(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = script.parser().parse_args(["--no-compile", "--device", "cuda"])
    assert script.prepare(args) == script.GPU_CELLS
    assert (args.dtype, script.name_of(args.device)) == ("bfloat16", "gated_linear_cuda")
    monkeypatch.setattr(backends, "_forced", "portable")
    status, found = run(script, tmp_path)
    assert (status, found["name"], found["machine"]["backend"]) == (0, "gated_linear_portable", "portable")


def test_a_compiler_is_needed_for_torch_compile(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither g\+\+ nor clang\+\+ is found: use --no-compile"):
        script.run(script.parser().parse_args([]))


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
    code, found = run(script, tmp_path)
    assert code == 1
    assert [(missing["what"], missing["by"]) for missing in found["failures"]] == [(what, TWO_CALLS) for what in RUNS]
    assert [entry["by"] for entry in found["entries"]] == 2 * ["gatedops", "torch eager", "matrix products alone"]


def test_a_net_that_cannot_be_made_is_named_and_the_rest_is_timed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make: Callable[..., object] = script.Net

    def net(kind: str, cell: Any, *more: object) -> object:
        if cell.width == 70:
            raise torch.OutOfMemoryError("no memory is left")
        return make(kind, cell, *more)

    monkeypatch.setattr(script, "Net", net)
    code, found = run(script, tmp_path, "--size", "6,70,2", "5,40,2")
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


@pytest.mark.parametrize("kind", ["layer", "value", "pair", "frozen"])
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
