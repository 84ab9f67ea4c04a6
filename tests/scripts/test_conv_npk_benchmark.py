"""benchmarks/conv_npk.py, run small: what it writes, what it refuses, what its figures rest on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from script_runs import Importer, run_script

import gatedops
from gatedops import backends

SMALL = ("--n", "30", "--channels", "4", "5", "--dense", "6", "--epochs", "1")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("conv_npk")


def main_with(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """The exit code of a run with problems of a second instead of its own."""
    problems = (script.speed.Problem(1, 8, 3, 2, 2), script.speed.Problem(3, 32, 1, 1, 1))
    monkeypatch.setattr(script.speed, "QUICK_PROBLEMS", problems)
    monkeypatch.setattr(script.speed, "CHANNELS", 3)
    monkeypatch.setattr(script.speed, "LAYERS", 1)
    monkeypatch.setattr(sys, "argv", ["conv_npk.py", "--quick", *options])
    try:
        return script.main()
    except SystemExit as error:
        return error.code


def test_a_whole_run_writes_json_and_png(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    assert main_with(script, monkeypatch, *SMALL, "--out", str(out)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in ("untrained net", "the net itself", "circular", "us a pair", "wanted", "wrote"):
        assert words in printed.out
    assert sorted(path.name for path in out.iterdir()) == ["conv_npk.json", "conv_npk.png"]
    assert (out / "conv_npk.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    found = json.loads((out / "conv_npk.json").read_text())
    assert found["points"] == {"n": 30, "train": 24, "test": 6}
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["net"]["layers"] == "4-5-GAP-6"
    assert len(found["net"]["loss_by_epoch"]) == 1
    assert set(found["kernels"]) == {"untrained net", "trained net"}
    for kernel in found["kernels"].values():
        assert 0 <= kernel["accuracy"] <= 1
        assert kernel["pairs"] == 30 * 31 // 2
        assert kernel["us_per_pair"] == pytest.approx(1e6 * kernel["seconds"] / kernel["pairs"])
    assert found["spread_over_rotations"]["circular"] < 1e-6 < 0.1 < found["spread_over_rotations"]["zeros"]
    by = {(entry["problem"], entry["by"]): entry for entry in found["speed"]}
    for problem, pairs in (("8x8", 6), ("32x32", 1)):
        ours, plain = by[problem, "gatedops"], by[problem, "gatedops.reference.conv_gram"]
        assert (ours["pairs"], ours["ratio"]) == (pairs, 1)
        assert plain["ratio"] == pytest.approx(plain["us_per_pair"] / ours["us_per_pair"])
    names = [target["name"] for target in found["targets"]]
    assert names == ["rotations, circular padding: change of H, in 1e-6", "8x8, us a pair", "32x32, us a pair"]
    assert found["targets"][0]["met"]


@pytest.mark.slow
def test_without_peers_and_plot(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SMALL, "--no-peers", "--no-plot", "--dtype", "float64", "--out", str(tmp_path))
    assert main_with(script, monkeypatch, *options) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["conv_npk.json"]
    found = json.loads((tmp_path / "conv_npk.json").read_text())
    assert {entry["by"] for entry in found["speed"]} == {"gatedops"}


def test_an_error_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = run_script("conv_npk.py", "--data", "mnist", "--data-dir", "nowhere", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "9"], "argument --n: must be at least 10, got 9"),
        (["--n", "1798"], "n must be between 2 and 1797"),
        (["--channels", "0"], "argument --channels: must be at least 1, got 0"),
        (["--channels"], "argument --channels: expected at least one argument"),
        (["--dense", "many"], "argument --dense: needs a whole number, got 'many'"),
        (["--epochs", "-1"], "argument --epochs: must be at least 0, got -1"),
        (["--dtype", "float16"], "argument --dtype: invalid choice"),
        (["--data", "cifar10"], "data_dir is needed for cifar10"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda needs an NVIDIA GPU and a torch built for CUDA; torch sees none: use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_options(
    script: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_with(script, monkeypatch, *options, "--out", str(tmp_path)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("conv_npk.py: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_gets_no_speed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gatedops.npk
    monkeypatch.setattr(gatedops, "npk", lambda *args, **kwargs: 1.01 * right(*args, **kwargs))
    with pytest.raises(RuntimeError, match=r"gatedops\.npk is wrong: it differs from its plain form by"):
        script.speed.time_problem(script.speed.Problem(1, 4, 3, 2, 2), 0, 1, peers=False)


def test_a_peer_that_is_installed_takes_its_turns(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for JAX and neural-tangents, which these tests do not have."""
    calls: list[tuple[int, ...]] = []

    def kernel(images, _, name):
        assert name == "ntk"
        calls.append(images.shape)
        return SimpleNamespace(block_until_ready=lambda: None)

    stax = SimpleNamespace(
        **dict.fromkeys(("Conv", "Relu", "GlobalAvgPool", "Dense"), lambda *args, **kwargs: None),
        serial=lambda *layers: (None, None, kernel),
    )
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(jit=lambda f: f, __version__="1"))
    monkeypatch.setitem(sys.modules, "neural_tangents", SimpleNamespace(stax=stax, __version__="2"))
    entries = script.speed.time_problem(script.speed.Problem(1, 4, 3, 2, 2), 0, 3, peers=True)
    peer = next(entry for entry in entries if entry.by == script.speed.PEER)
    assert (peer.pairs, len(peer.samples_s)) == (4, 3)
    assert set(calls) == {(2, 4, 4, 1)}
    assert script.speed.neural_tangents_versions() == {"neural_tangents": "2", "jax": "1"}
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    assert script.speed.neural_tangents_versions() is None


@pytest.mark.parametrize("forced", ["", "cuda"])
def test_timings_on_a_gpu_go_to_a_file_of_their_own(
    script: ModuleType,
    forced: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the CPU as stand-in for the GPU: what is compared, named, written and held against the target."""
    taken = SimpleNamespace(samples=(0.002, 0.001, 0.003))
    monkeypatch.setattr(script, "require_device", lambda device: None)
    monkeypatch.setattr(script.gpu, "QUICK_PROBLEMS", (script.speed.Problem(1, 32, 3, 2, 0),))
    monkeypatch.setattr(script.gpu, "interleaved_gpu_medians", lambda made, *_, **__: dict.fromkeys(made, taken))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(backends, "_forced", forced or None)
    for kind in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "cuda", lambda self: self)
    assert main_with(script, monkeypatch, "--device", "cuda", "--out", str(tmp_path)) == 0
    found = json.loads((tmp_path / "conv_npk_cuda.json").read_text())
    backend = forced or "portable"
    assert (found["machine"]["gpu"], found["machine"]["backend"]) == ("a GPU", backend)
    assert capsys.readouterr().out.startswith(f"a GPU, {backend}, torch ")
    ours, plain = found["speed"]
    assert (ours["by"], ours["pairs"], plain["pairs"]) == ("gatedops", 6, 3)
    assert ours["us_per_pair"] == pytest.approx(2000 / 6)
    assert found["targets"] == [
        {"name": "32x32, us a pair", "wanted": 10, "found": ours["us_per_pair"], "at_least": False, "met": False}
    ]


def test_grams_are_normalised(script: ModuleType) -> None:
    gram = torch.tensor([[4.0, 2.0, 0.0], [2.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.0, 1 / 3, 0.0], [1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(script.study._normalised(gram), expected)
