"""The benchmarks but gram.py: what is wrong has no time, and their figures are right."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from script_runs import Importer, entries_in, run_and_read
from torch import Tensor, nn

import gatedops
from gatedops import GateBits, backends, reference

NPK = ("--n", "30", "--width", "33", "--depth", "3", "--epochs", "1", "--no-plot")
CONV = ("--n", "30", "--channels", "4", "5", "--dense", "6", "--epochs", "1", "--quick", "--no-plot")
PLAIN, PEER = "gatedops.reference.conv_gram", "neural-tangents, NTK"
TWO_CALLS, RUNS = "cuBLASLt, two calls", ["forward", "forward + backward"]
GATES = {"MLP": 4 * 1024, "VGG-11": 152_064, "ResNet-18": 557_056, "transformer": 2 * 32 * 1024}

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("exported_once")


@pytest.fixture
def importer(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Imports a script with problems of a second in the place of its own."""
    monkeypatch.setattr(benchmark_module("_common.machine"), "bit_pair_rate", lambda isa, threads: 1e6)
    monkeypatch.setattr(benchmark_module("npk_gram"), "REPEATS", 3)
    conv = benchmark_module("conv_npk")
    problems = (conv.Problem(1, 8, 3, 2, 2), conv.Problem(3, 12, 1, 1, 1))
    for name, value in {"QUICK_PROBLEMS": problems, "GPU_QUICK_PROBLEMS": problems, "CHANNELS": (3,)}.items():
        monkeypatch.setattr(conv, name, value)
    return benchmark_module


# --- what is wrong has no time ---


def wrong_gram(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrong where it is timed, which is where it writes into a buffer."""
    return lambda *args, out=None, **given: right(*args, out=out, **given).mul_(1 if out is None else 1 + 1e-4)


def shifted(fused: Any) -> nn.Module:
    fused[-1].bias.data += 1
    return fused


@pytest.mark.parametrize(
    "case",
    [
        (
            "npk_gram", NPK, "npk_gram", wrong_gram, 4, "the Gram is wrong: its largest relative error is 1.0e-04",
            {"torch float32", "torch bfloat16", "torch x @ x.T alone"},
        ),
        (
            "conv_npk", CONV, "npk", lambda right: lambda *args, **given: 1.01 * right(*args, **given), 2,
            "gatedops.npk is wrong: it differs from its plain form by", {PLAIN},
        ),
        (
            "drop_in", ("--networks", "MLP", "--n", "3", "--batch", "2"), "record_gates",
            lambda right: lambda net, x, batch: right(net, x.flip(0), batch), 1,
            "record_gates and hooks by hand disagree", {"hooks by hand", "the network alone", "fused", "eager"},
        ),
        (
            "drop_in", ("--networks", "MLP", "--n", "3", "--batch", "2"), "fuse_relu",
            lambda right: lambda net, example: shifted(right(net, example)), 2,
            "fuse_relu changes the output", {"record_gates", "hooks by hand", "the network alone", "eager"},
        ),
        (
            "gate_cache", ("--networks", "fc", "--n", "70"), "GateCache.__getitem__",
            lambda right: lambda cache, rows: right(cache, rows.flip(0)), 3, "losses differ by", {"no cache"},
        ),
        (
            "gated_linear", ("--size", "6,70,2", "--no-compile", "--no-plot"), "Net.ours",
            lambda right: lambda net, x: tuple(1.01 * z for z in right(net, x)), 10,
            "differ from those of eager torch", {"torch eager", "matrix products alone"},
        ),
    ],
    ids=lambda case: f"{case[0]}, {case[2]}",
)  # fmt: skip
def test_a_wrong_result_has_no_time(
    importer: Importer, case: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name and the reason are in the JSON; the others are timed, and compared with nothing."""
    script, options, name, wrong, failures, reason, timed = case
    module = importer(script)
    owner: Any = gatedops
    if "." in name:
        kind, name = name.split(".")
        owner = getattr(module, kind)
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    status, found = run_and_read(module, tmp_path, *options)
    assert (status, found["complete"], len(found["failures"])) == (1, True, failures)
    assert all(reason in failure["reason"] for failure in found["failures"])
    entries = list(entries_in(found))
    assert {entry["by"] for entry in entries} == timed
    failed = {failure["what"] for failure in found["failures"]}
    assert all((entry["ratio"] is None) == (entry["what"] in failed) for entry in entries)


@pytest.mark.usefixtures("exported_once")
def test_a_wrong_kernel_of_a_small_modern_network_is_noticed(
    importer: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, error = gatedops.npk, importer("modern_npk").error_on_small_network
    monkeypatch.setattr(gatedops, "npk", lambda *args, **given: right(*args, **given) * 1.01)
    with pytest.raises(
        RuntimeError, match=r"on the small ResNeXt-29 .32x4d. it differs from its plain form by 1.0e-02"
    ):
        error("ResNeXt-29 (32x4d)", 0, torch.float32)


# --- the Gram of real data ---


def test_without_peers(importer: Importer, tmp_path: Path) -> None:
    options = ("--data", "random", "--dtype", "float64", "--scale", "none", "--no-peers")
    status, found = run_and_read(importer("npk_gram"), tmp_path, *NPK, *options)
    assert (status, {entry["by"] for entry in found["speed"]}) == (0, {"gatedops"})
    assert all(entry["largest_error"] < 1e-13 for entry in found["speed"])


def test_errors_are_relative(importer: Importer) -> None:
    row, error = torch.tensor([0]), importer("npk_gram").largest_error
    found = [error(torch.tensor([[1.5, last]]), row, torch.tensor([[1.0, 0.0]])) for last in (0.0, 0.1)]
    assert found == [0.5, float("inf")]


def test_overlaps_are_means_over_pairs(importer: Importer) -> None:
    bits = GateBits.pack([torch.rand(12, 31, generator=torch.Generator().manual_seed(1)) > 0.5])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 0])
    cosine = reference.npk_gram(None, bits, normalize=True, dtype=torch.float64)
    same = labels[:, None] == labels
    expected = [cosine[same & ~torch.eye(12, dtype=torch.bool)].mean().item(), cosine[~same].mean().item()]
    overlap = importer("_common.gate_study").sub_network_overlap(bits, labels, 4, torch.float64)
    assert overlap == pytest.approx(expected, rel=1e-5)


def test_leading_eigenvalues(importer: Importer) -> None:
    factor = torch.randn(80, 80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    factor *= 0.8 ** torch.arange(80)
    found = importer("_common.gate_study").leading_eigenvalues(factor @ factor.T, 10, seed=0)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(factor @ factor.T).flip(0)[:10], rtol=1e-3, atol=0)


# --- the path kernel of a convolutional net ---


def test_a_peer_that_is_installed_takes_its_turns(importer: Importer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for JAX and neural-tangents, which these tests do not have."""
    shapes: set[tuple[int, ...]] = set()

    def kernel(images: Any, _: None, name: str) -> SimpleNamespace:
        assert name == "ntk"
        shapes.add(images.shape)
        return SimpleNamespace(block_until_ready=lambda: None)

    layers = dict.fromkeys(("Conv", "Relu", "GlobalAvgPool", "Dense"), lambda *args, **kwargs: None)
    stax = SimpleNamespace(**layers, serial=lambda *layers: (None, None, kernel))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(jit=lambda f: f, __version__="1"))
    monkeypatch.setitem(sys.modules, "neural_tangents", SimpleNamespace(stax=stax, __version__="2"))
    script = importer("conv_npk")
    args = script.parser().parse_args(CONV)
    entries = script.time_problem(script.QUICK_PROBLEMS[0], args, script.Failures(), 3)
    assert [(entry.by, entry.facts["pairs"]) for entry in entries] == [("gatedops", 6), (PLAIN, 3), (PEER, 4)]
    assert shapes == {(2, 8, 8, 1)}
    assert script.neural_tangents_versions() == {"neural_tangents": "2", "jax": "1"}
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    assert script.neural_tangents_versions() is None


def test_timings_on_a_gpu_go_to_a_file_of_their_own(
    importer: Importer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU as stand-in for the GPU: what is compared, named and written."""
    script, contest = importer("conv_npk"), importer("_common.contest")
    taken = contest.Timing((0.002, 0.001, 0.003))
    monkeypatch.setattr(contest, "interleaved_gpu_medians", lambda made, *_, **__: dict.fromkeys(made, taken))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(backends, "_forced", "cuda")
    for kind in (Tensor, nn.Module):
        there = kind.to
        stays = lambda self, *to, there=there, **kwargs: self if to == ("cuda",) else there(self, *to, **kwargs)  # noqa: E731
        monkeypatch.setattr(kind, "to", stays)
    status, found = run_and_read(script, tmp_path, *CONV, "--device", "cuda")
    assert (status, found["name"]) == (0, "conv_npk_cuda")
    assert (found["machine"]["gpu"], found["machine"]["backend"]) == ("a GPU", "cuda")
    ours, plain = found["speed"][:2]
    assert (ours["by"], plain["by"], plain["ratio"]) == ("gatedops", PLAIN, 2)
    assert ours["us_per_pair"] == pytest.approx(2e3 / 6)


def test_grams_are_normalised(importer: Importer) -> None:
    found = importer("_common.gate_study").normalised(torch.tensor([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1 / 3, 0.0], [1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]]))


# --- other people's nets ---


@pytest.mark.parametrize("name", GATES)
def test_networks_have_the_gates_that_hooks_by_hand_find(importer: Importer, name: str) -> None:
    script = importer("drop_in")
    subject = next(subject for subject in script.SUBJECTS if subject.name == name)
    net, x = script.random_problem(subject, 2, seed=0)
    masks = script.HookedByHand(net, subject.owners(net), 1)(x)
    bits = gatedops.record_gates(net, x, 1)
    assert sum(bits.widths) == GATES[name]
    assert all(torch.equal(a, b) for a, b in zip(bits.unpack(), masks, strict=True))
    assert not any(module._forward_hooks for module in net.modules())


# --- gated layers ---


@pytest.fixture
def script(importer: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(backends, "_forced", None)
    return importer("gated_linear")


def run_layers(script: ModuleType, out: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the JSON of nets of one kind."""
    return run_and_read(script, out, "--no-compile", "--no-plot", "--only", "layer", "--size", "6,70,2", *more)


def test_files_are_those_of_a_device_and_a_backend(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = script.parser().parse_args(["--no-compile", "--device", "cuda"])
    assert script.prepare(args) == script.GPU_CELLS
    assert (args.dtype, script.name_of(args.device)) == ("bfloat16", "gated_linear_cuda")
    monkeypatch.setattr(backends, "_forced", "portable")
    status, found = run_layers(script, tmp_path)
    assert (status, found["name"], found["machine"]["backend"]) == (0, "gated_linear_portable", "portable")


def test_a_compiler_is_needed_for_torch_compile(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"neither g\+\+ nor clang\+\+ is found: use --no-compile"):
        script.run(script.parser().parse_args([]))


@pytest.mark.parametrize("fails", ["planned", "called", "in the turns", "wrong"])
def test_a_baseline_that_fails_is_named_and_the_rest_is_timed(
    script: ModuleType, importer: Importer, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    monkeypatch.setattr(importer("_gated_linear.measure"), "has_two_calls", lambda net: True)
    monkeypatch.setattr(importer("_gated_linear.measure"), "TwoCalls", two_calls)
    code, found = run_layers(script, tmp_path)
    assert code == 1
    assert [(missing["what"], missing["by"]) for missing in found["failures"]] == [(what, TWO_CALLS) for what in RUNS]
    assert [entry["by"] for entry in found["entries"]] == 2 * ["gatedops", "torch eager", "matrix products alone"]


def test_a_net_that_cannot_be_made_is_named_and_the_rest_is_timed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = iter([script.Net("layer", script.Cell(5, 40, 2), 0)])  # for the second size there is no other
    monkeypatch.setattr(script, "Net", lambda *_: next(made))
    code, found = run_layers(script, tmp_path, "--size", "5,40,2", "6,70,2")
    assert (code, {entry["batch"] for entry in found["entries"]}) == (1, {5})
    assert "layer 6 x 70, 2 layers: StopIteration" in capsys.readouterr().out


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
    script: ModuleType, importer: Importer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer("_gated_linear.two_calls"), "Product", TorchProduct)
    measure = importer("_gated_linear.measure")
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
