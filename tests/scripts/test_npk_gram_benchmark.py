"""benchmarks/npk_gram.py, run small: what it writes, what it refuses, what its figures rest on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer, run_script

import gatedops
from gatedops import GateBits, data, reference

SMALL = ("--n", "60", "--width", "33", "--depth", "3", "--epochs", "2")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("npk_gram")


def test_a_whole_run_writes_json_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_script("npk_gram.py", *SMALL, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["npk_gram.json", "npk_gram.png"]
    assert (out / "npk_gram.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    found = json.loads((out / "npk_gram.json").read_text())
    assert found["points"] == {"n": 60, "train": 48, "test": 12}
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["machine"]["command"].startswith("npk_gram.py --n 60")
    assert len(found["net"]["loss_by_epoch"]) == 2
    for figures in found["gates"].values():
        assert 0 <= figures["accuracy"] <= 1
        assert 0.2 < figures["on"] < 0.8
        assert len(figures["on_by_layer"]) == 2
        assert 0 < figures["across"] < figures["within"] < 1
        assert figures["eigenvalues_over_trace"] == sorted(figures["eigenvalues_over_trace"], reverse=True)
    problems = {result["problem"] for result in found["speed"]}
    assert len(problems) == 4
    for problem in problems:
        results = {result["by"]: result for result in found["speed"] if result["problem"] == problem}
        assert {"gatedops", "torch float32", "torch bfloat16"} <= set(results)
        assert results["gatedops"]["ratio"] == 1
        assert len(results["gatedops"]["samples_s"]) >= 5
        assert results["gatedops"]["largest_error"] < 1e-5
        assert results["torch bfloat16"]["largest_error"] > 1e-4
    for word in ("test accuracy", "gates on", "overlap across classes", "torch bfloat16", "bound:"):
        assert word in done.stdout


def test_without_peers_and_plot(tmp_path: Path) -> None:
    options = ("--data", "random", "--dtype", "float64", "--scale", "none", "--no-peers", "--no-plot")
    done = run_script("npk_gram.py", *SMALL, *options, "--out", ".", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["npk_gram.json"]
    found = json.loads((tmp_path / "npk_gram.json").read_text())
    assert {result["by"] for result in found["speed"]} == {"gatedops"}
    assert all(result["largest_error"] < 1e-13 for result in found["speed"])


def test_an_error_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = run_script("npk_gram.py", "--data", "mnist", "--data-dir", "nowhere", "--out", "results", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "9"], "argument --n: must be at least 10, got 9"),
        (["--n", "many"], "argument --n: needs a whole number, got 'many'"),
        (["--n", "1798"], "n must be between 2 and 1797"),
        (["--depth", "1"], "argument --depth: must be at least 2"),
        (["--width", "0"], "argument --width: must be at least 1"),
        (["--epochs", "-1"], "argument --epochs: must be at least 0"),
        (["--data", "iris"], "argument --data: invalid choice"),
        (["--dtype", "float16"], "argument --dtype: invalid choice"),
        (["--scale", "2"], "argument --scale: invalid choice"),
        (["--data", "cifar10"], "data_dir is needed for cifar10"),
        (["--data", "random", "--n", "10000000"], "GiB of memory"),
        (["--n", "20", "--width", "256", "--depth", "30", "--scale", "none"], "scale"),
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
    monkeypatch.setattr(data, "random", lambda n, seed: pretend_images(n))
    monkeypatch.setattr(sys, "argv", ["npk_gram.py", "--out", str(tmp_path), *options])
    try:
        code = script.main()
    except SystemExit as error:
        code = error.code
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("npk_gram.py: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


def pretend_images(n: int) -> data.ImageData:
    """As many points as asked for in no memory."""
    images = torch.zeros((), dtype=torch.uint8).expand(n - 1, 1, 1, 1)
    labels = torch.zeros((), dtype=torch.int64).expand(n - 1)
    return data.ImageData("random", images, labels, images[:1], labels[:1], ("0",))


def test_cuda_without_a_gpu(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["npk_gram.py", "--out", str(tmp_path), "--device", "cuda"])
    assert script.main() == 2


def test_out_that_is_a_file(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["npk_gram.py", "--out", str(tmp_path / "file")])
    assert script.main() == 2


def test_a_failed_write_leaves_the_old_file(benchmark_module: Importer, tmp_path: Path) -> None:
    output = benchmark_module("_common.output")
    path = tmp_path / "figures.json"
    output.write_json_atomically(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        output.write_json_atomically(path, {"a": float("nan")})

    def interrupted() -> None:
        with output.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_peers_take_turns(benchmark_module: Importer) -> None:
    timing = benchmark_module("_common.timing")
    calls: list[str] = []
    times = timing.interleaved_medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5)
    assert calls == ["a", "b"] * 6
    assert len(times["a"].samples) == 5
    assert times["a"].best <= times["a"].median
    calls.clear()
    functions = {"slow": lambda: calls.append("slow") or time.sleep(0.01), "fast": lambda: calls.append("fast")}
    times = timing.interleaved_medians(functions, 6, least=2, seconds=0.005)
    assert (len(times["slow"].samples), len(times["fast"].samples)) == (2, 6)
    assert calls[2:] == ["fast", "fast", "slow", "fast", "fast", "fast", "slow", "fast"]
    assert [timing.readable_seconds(s) for s in (12.345, 0.0999, 1.5e-5)] == ["12.3 s", "99.9 ms", "15.0 us"]


def test_peers_compute_the_gram(benchmark_module: Importer) -> None:
    peers = benchmark_module("_common.peers")
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(40, width, generator=generator) > 0.5 for width in (17, 64)]
    x = torch.rand(40, 5, generator=generator)
    for inputs in (None, x):
        expected = reference.npk_gram(inputs, GateBits.pack(masks), dtype=torch.float64)
        peer = peers.MatmulPerLayer(masks, [1 / 17, 1 / 64], torch.float32, inputs)
        torch.testing.assert_close(peer().double(), expected, rtol=1e-5, atol=1e-6)
        assert peer() is peer()
        rows = torch.tensor([3, 39])
        exact = peers.exact_rows(masks, [1 / 17, 1 / 64], inputs, rows)
        torch.testing.assert_close(exact, expected[rows], rtol=1e-12, atol=0)
    torch.testing.assert_close(peers.InputMatmul(x)(), x @ x.T)
    assert peers.largest_relative_error(torch.tensor([1.5, 0.0]), torch.tensor([1.0, 0.0])) == 0.5
    assert peers.largest_relative_error(torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.0])) == float("inf")


def test_overlaps_are_means_over_pairs(benchmark_module: Importer) -> None:
    study = benchmark_module("_common.gate_study")
    generator = torch.Generator().manual_seed(1)
    bits = GateBits.pack([torch.rand(12, 31, generator=generator) > 0.5])
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 0])
    cosine = reference.npk_gram(None, bits, normalize=True, dtype=torch.float64)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    same = torch.tensor([cosine[i, j] for i, j in pairs if labels[i] == labels[j]])
    different = torch.tensor([cosine[i, j] for i, j in pairs if labels[i] != labels[j]])
    within, across = study.sub_network_overlap(bits, labels, 4, torch.float64)
    assert within == pytest.approx(same.mean().item(), rel=1e-5)
    assert across == pytest.approx(different.mean().item(), rel=1e-5)


def test_leading_eigenvalues(benchmark_module: Importer) -> None:
    study = benchmark_module("_common.gate_study")
    generator = torch.Generator().manual_seed(2)
    factor = torch.randn(80, 80, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(80)
    gram = factor @ factor.T
    expected = torch.linalg.eigvalsh(gram).flip(0)[:10]
    torch.testing.assert_close(study.leading_eigenvalues(gram, 10, seed=0), expected, rtol=1e-3, atol=0)


def test_recorded_gates_are_those_of_the_layers(benchmark_module: Importer) -> None:
    relu_net = benchmark_module("_common.relu_net")
    net = relu_net.relu_net(6, 9, 3, 2, seed=0)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    first = x @ net[0].weight.T
    second = first.relu() @ net[2].weight.T
    for batch in (7, 3):
        bits = relu_net.record_gates(net, x, batch=batch)
        assert bits.widths == (9, 9)
        assert [torch.equal(gates, q > 0) for gates, q in zip(bits.unpack(), (first, second), strict=True)]
    assert not net[1]._forward_pre_hooks


def test_bound_only_where_one_is_known(benchmark_module: Importer) -> None:
    machine = benchmark_module("_common.machine")
    report = {"instruction_set": "avx512", "clock_hz": 3e9, "threads": 2, "architecture": "x86_64"}
    assert machine.bit_pair_bound(report).bit_pairs_per_second == pytest.approx(2 * 3e9 * 512 / 1.5)
    assert machine.bit_pair_bound(report | {"instruction_set": "serial"}).bit_pairs_per_second is None
    assert machine.bit_pair_bound(report | {"clock_hz": None}).bit_pairs_per_second is None
