"""The benchmarks but gram.py: what is wrong has no time, and their figures are right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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


def wrong_fusing(right: Callable[..., Any]) -> Callable[..., nn.Module]:
    def fuse(net: nn.Module, example: Tensor) -> nn.Module:
        fused = right(net, example)
        fused[-1].bias.data += 1
        return fused

    return fuse


def wrong_layers(right: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    def layers(net: object, x: Tensor) -> tuple[Tensor, ...]:
        *others, z = right(net, x)
        return (*others, z + 1e-3 * z.abs().max())

    return layers


@pytest.mark.parametrize(
    ("script", "options", "name", "wrong", "failures", "reason", "timed"),
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
            "drop_in", ("--networks", "MLP", "--n", "3", "--batch", "2"), "fuse_relu", wrong_fusing, 2,
            "fuse_relu changes the output", {"record_gates", "hooks by hand", "the network alone", "eager"},
        ),
        (
            "gate_cache", ("--networks", "fc", "--n", "70"), "GateCache.__getitem__",
            lambda right: lambda cache, rows: right(cache, rows.flip(0)), 3, "losses differ by", {"no cache"},
        ),
        (
            "gated_linear", ("--size", "6,70,2", "--no-compile", "--no-plot"), "Net.ours", wrong_layers, 10,
            "differ from those of eager torch", {"torch eager", "matrix products alone"},
        ),
    ],
)  # fmt: skip
def test_a_wrong_result_has_no_time(
    importer: Importer,
    script: str,
    options: tuple[str, ...],
    name: str,
    wrong: Callable[[Any], object],
    failures: int,
    reason: str,
    timed: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its name and the reason are in the JSON; the others are timed, and compared with nothing."""
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


# --- the Gram of real data ---


def test_without_peers(importer: Importer, tmp_path: Path) -> None:
    options = ("--data", "random", "--dtype", "float64", "--scale", "none", "--no-peers")
    status, found = run_and_read(importer("npk_gram"), tmp_path, *NPK, *options)
    assert (status, {entry["by"] for entry in found["speed"]}) == (0, {"gatedops"})
    assert all(entry["largest_error"] < 1e-13 for entry in found["speed"])


@pytest.mark.parametrize("name", ["npk_gram", "conv_npk"])
def test_too_many_points_are_refused_before_any_work(
    importer: Importer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer("_common.options"), "available_memory", lambda: 2**30)
    with pytest.raises(ValueError, match=r"a study of n=10000000 needs about .* GiB of memory, 1.0 GiB are left"):
        run_and_read(importer(name), tmp_path, "--data", "random", "--n", "10000000")
    assert list(tmp_path.iterdir()) == []


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
    found = importer("conv_npk").normalised(torch.tensor([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]]))
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
