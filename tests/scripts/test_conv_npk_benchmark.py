"""benchmarks/conv_npk.py: what its figures rest on, and that a wrong kernel has no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from script_runs import Importer

import gatedops
from gatedops import backends

SMALL = ("--n", "30", "--channels", "4", "5", "--dense", "6", "--epochs", "1", "--quick", "--no-plot")
PLAIN, PEER = "gatedops.reference.conv_gram", "neural-tangents, NTK"

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with problems of a second instead of its own."""
    script = benchmark_module("conv_npk")
    problems = (script.Problem(1, 8, 3, 2, 2), script.Problem(3, 12, 1, 1, 1))
    for name in ("QUICK_PROBLEMS", "GPU_QUICK_PROBLEMS"):
        monkeypatch.setattr(script, name, problems)
    monkeypatch.setattr(script, "CHANNELS", (3,))
    return script


def run(script: ModuleType, out: Path, *options: str) -> tuple[int, dict]:
    """The exit status, and the JSON."""
    code = script.run(script.parser().parse_args([*SMALL, "--out", str(out), *options]))
    (path,) = out.iterdir()
    return code, json.loads(path.read_text()) | {"name": path.name}


def test_a_whole_run(script: ModuleType, tmp_path: Path) -> None:
    code, found = run(script, tmp_path)
    assert (code, found["name"], found["net"]["layers"]) == (0, "conv_npk.json", "4-5-GAP-6")
    assert found["points"] == {"n": 30, "train": 24, "test": 6}
    assert set(found["kernels"]) == set(found["pictures"]) == {"untrained net", "trained net"}
    for kernel in found["kernels"].values():
        assert 0 <= kernel["accuracy"] <= 1
        assert kernel["pairs"] == 30 * 31 // 2
        assert kernel["us_per_pair"] == pytest.approx(1e6 * kernel["seconds"] / kernel["pairs"])
    by = {(entry["problem"], entry["by"]): entry for entry in found["speed"]}
    for problem, pairs, plain_pairs in (("8x8 images", 6, 3), ("12x12 images", 1, 1)):
        ours, plain = by[problem, "gatedops"], by[problem, PLAIN]
        assert (ours["pairs"], plain["pairs"], ours["ratio"]) == (pairs, plain_pairs, 1)
        assert ours["us_per_pair"] == pytest.approx(1e6 * ours["median_s"] / pairs)
        assert plain["ratio"] == pytest.approx(plain["us_per_pair"] / ours["us_per_pair"])


def test_a_wrong_kernel_has_no_time(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gatedops.npk
    monkeypatch.setattr(gatedops, "npk", lambda *args, **kwargs: 1.01 * right(*args, **kwargs))
    code, found = run(script, tmp_path)
    assert (code, [(entry["by"], entry["ratio"]) for entry in found["speed"]]) == (1, [(PLAIN, None)] * 2)
    reason = found["failures"][0]["reason"]
    assert reason.startswith("RuntimeError: gatedops.npk is wrong: it differs from its plain form by")


def test_a_peer_that_is_installed_takes_its_turns(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for JAX and neural-tangents, which these tests do not have."""
    shapes: set[tuple[int, ...]] = set()

    def kernel(images, _, name):
        assert name == "ntk"
        shapes.add(images.shape)
        return SimpleNamespace(block_until_ready=lambda: None)

    stax = SimpleNamespace(
        **dict.fromkeys(("Conv", "Relu", "GlobalAvgPool", "Dense"), lambda *args, **kwargs: None),
        serial=lambda *layers: (None, None, kernel),
    )
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(jit=lambda f: f, __version__="1"))
    monkeypatch.setitem(sys.modules, "neural_tangents", SimpleNamespace(stax=stax, __version__="2"))
    args, failures = script.parser().parse_args(SMALL), script.Failures()
    entries = script.time_problem(script.QUICK_PROBLEMS[0], args, failures, 3)
    assert [(entry.by, entry.facts["pairs"]) for entry in entries] == [("gatedops", 6), (PLAIN, 3), (PEER, 4)]
    assert shapes == {(2, 8, 8, 1)}
    assert script.neural_tangents_versions() == {"neural_tangents": "2", "jax": "1"}
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    assert script.neural_tangents_versions() is None


@pytest.mark.parametrize("forced", ["", "cuda"])
def test_timings_on_a_gpu_go_to_a_file_of_their_own(
    script: ModuleType, forced: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the CPU as stand-in for the GPU: what is compared, named and written."""
    contest = sys.modules["_common.contest"]
    taken = contest.Timing((0.002, 0.001, 0.003))
    monkeypatch.setattr(contest, "interleaved_gpu_medians", lambda made, *_, **__: dict.fromkeys(made, taken))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(backends, "_forced", forced or None)
    for kind in (torch.Tensor, torch.nn.Module):
        there = kind.to
        stays = lambda self, *to, there=there, **kwargs: self if to == ("cuda",) else there(self, *to, **kwargs)  # noqa: E731
        monkeypatch.setattr(kind, "to", stays)
    code, found = run(script, tmp_path, "--device", "cuda")
    backend = forced or "portable"
    assert (code, found["name"]) == (0, "conv_npk_cuda.json")
    assert (found["machine"]["gpu"], found["machine"]["backend"]) == ("a GPU", backend)
    assert capsys.readouterr().out.startswith(f"a GPU, {backend}, torch ")
    ours, plain = found["speed"][:2]
    assert (ours["by"], plain["by"], plain["ratio"]) == ("gatedops", PLAIN, 2)
    assert ours["us_per_pair"] == pytest.approx(2e3 / 6)


def test_grams_are_normalised(script: ModuleType) -> None:
    gram = torch.tensor([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 1 / 3, 0.0], [1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(script.normalised(gram), expected)
