"""Every script in benchmarks/: it runs, it writes what it says, and it refuses what cannot run, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from script_runs import Importer, run_script, status_of

import gatedops

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 200_000


@dataclass(frozen=True)
class Run:
    """A small run: the keys that its JSON has beside the common ones, and words of its output."""

    script: str
    options: tuple[str, ...]
    keys: tuple[str, ...]
    words: tuple[str, ...]
    picture: bool = True

    @property
    def name(self) -> str:
        return self.script.removesuffix(".py")


RUNS = [
    Run(
        "npk_gram.py",
        ("--n", "60", "--width", "33", "--depth", "3", "--epochs", "2"),
        ("points", "classes", "net", "gates", "pictures", "speed"),
        ("test accuracy", "gates on", "overlap across classes", "torch bfloat16", "largest error"),
    ),
    Run(
        "conv_npk.py",
        ("--quick", "--n", "30", "--channels", "4", "5", "--dense", "6", "--epochs", "1"),
        ("points", "classes", "net", "kernels", "pictures", "neural_tangents", "speed"),
        ("untrained net", "the net itself", "us per pair", "gatedops.reference.conv_gram"),
    ),
    Run(
        "drop_in.py",
        ("--networks", "MLP", "transformer", "--n", "3", "--batch", "2", "--repeats", "2"),
        ("recording", "fusing"),
        ("hooks by hand", "the network alone", "fuse_relu replaces nothing", "agree in every bit"),
        picture=False,
    ),
    Run(
        "gram.py",
        ("--quick", "--n", "64", "--layers", "2", "3", "--width", "40"),
        ("sections",),
        (
            "== sweep",
            "== headline",
            "== data-set",
            "== one-core",
            "== one-layer",
            "== packing",
            "== scaling",
            "== soft",
            "torch bfloat16",
            "portable",
            "n=64, 3 x 40",
        ),
    ),
    Run(
        "gated_linear.py",
        ("--size", "6,70,2", "--no-compile"),
        ("entries",),
        ("pair, hard gates, both networks trained", "matrix products alone", "saved of eager"),
    ),
    Run(
        "gate_cache.py", ("--networks", "fc", "--n", "70", "--repeats", "1"), ("entries",), ("no cache",), picture=False
    ),
    Run(
        "gate_statistics.py",
        ("--n", "300", "--widths", "200", "3", "--repeats", "1"),
        ("entries", "bytes", "regions"),
        ("300 regions of the net, 300, 8 of its layers",),
        picture=False,
    ),
]

COMMON_REFUSALS = [
    (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
    (["--seed", "many"], "argument --seed: needs a whole number, got 'many'"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
]
REFUSALS = [
    ("npk_gram.py", ["--n", "9"], "argument --n: must be at least 10, got 9"),
    ("npk_gram.py", ["--n", "1798"], "n must be between 2 and 1797"),
    ("npk_gram.py", ["--depth", "1"], "argument --depth: must be at least 2"),
    ("npk_gram.py", ["--epochs", "-1"], "argument --epochs: must be at least 0"),
    ("npk_gram.py", ["--data", "iris"], "argument --data: invalid choice"),
    ("npk_gram.py", ["--dtype", "float16"], "argument --dtype: invalid choice"),
    ("npk_gram.py", ["--scale", "2"], "argument --scale: invalid choice"),
    ("npk_gram.py", ["--data", "cifar10"], "data_dir is needed for cifar10"),
    ("npk_gram.py", ["--data", "mnist", "--data-dir", "nowhere"], "train-images-idx3-ubyte"),
    ("npk_gram.py", ["--n", "20", "--width", "256", "--depth", "30", "--scale", "none"], "scale"),
    ("conv_npk.py", ["--channels", "0"], "argument --channels: must be at least 1, got 0"),
    ("conv_npk.py", ["--channels"], "argument --channels: expected at least one argument"),
    ("conv_npk.py", ["--dense", "many"], "argument --dense: needs a whole number, got 'many'"),
    ("conv_npk.py", ["--data", "mnist", "--data-dir", "nowhere"], "train-images-idx3-ubyte"),
    ("drop_in.py", ["--n", "0"], "argument --n: must be at least 1, got 0"),
    ("drop_in.py", ["--repeats", "-1"], "argument --repeats: must be at least 1, got -1"),
    ("drop_in.py", ["--networks", "AlexNet"], "argument --networks: invalid choice: 'AlexNet'"),
    ("gram.py", ["--n", "15"], "argument --n: must be at least 16, got 15"),
    ("gram.py", ["--n", "many"], "argument --n: needs a whole number, got 'many'"),
    ("gram.py", ["--layers", "0"], "argument --layers: must be at least 1"),
    ("gram.py", ["--width", "4", "-1"], "argument --width: must be at least 1"),
    ("gram.py", ["--only", "sleep"], "argument --only: invalid choice"),
    ("gram.py", ["--quick", "--full"], "argument --full: not allowed with argument --quick"),
    ("gram.py", ["--no-plot", "--n", "10000000"], "GiB of memory"),
    ("gated_linear.py", ["--size", "4,33"], "argument --size: needs BATCH,WIDTH,DEPTH, got '4,33'"),
    ("gated_linear.py", ["--size", "4,x,2"], "argument --size: needs a whole number, got 'x'"),
    ("gated_linear.py", ["--only", "layers"], "argument --only: invalid choice: 'layers'"),
    ("gated_linear.py", ["--quick", "--size", "4,33,2"], "argument --size: not allowed with argument --quick"),
    ("gate_cache.py", ["--networks", "resnet"], "argument --networks: invalid choice"),
    ("gate_cache.py", ["--n", "0"], "argument --n: must be at least 1, got 0"),
    ("gate_statistics.py", ["--n", "127"], "argument --n: must be at least 128, got 127"),
    ("gate_statistics.py", ["--widths", "none"], "argument --widths: needs a whole number"),
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_writes_json_and_picture(run: Run, tmp_path: Path) -> None:
    if run.picture:
        pytest.importorskip("matplotlib")
    done = run_script(run.script, *run.options, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.suffix for path in out.iterdir()) == ([".json", ".png"] if run.picture else [".json"])
    if run.picture:
        picture = (out / f"{run.name}.png").read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) < LARGEST_PICTURE

    found = json.loads((out / f"{run.name}.json").read_text())
    assert found["complete"] is True
    assert found["failures"] == []
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["machine"]["command"].startswith(run.script)
    assert found["options"]["seed"] == 0
    assert set(run.keys) <= set(found)
    entries = list(entries_in(found))
    assert entries
    for entry in entries:
        assert 0 < entry["best_s"] <= entry["median_s"]
        assert entry["runs"] >= 1
    for word in run.words:
        assert word in done.stdout


def entries_in(content: object) -> Iterator[dict]:
    """All entries of contests, wherever a JSON has them."""
    if isinstance(content, dict):
        if "median_s" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from entries_in(part)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [*REFUSALS, *((run.script, *refusal) for run in RUNS for refusal in COMMON_REFUSALS)],
)
def test_wrong_options_are_refused_in_one_sentence(
    script: str,
    options: list[str],
    message: str,
    benchmark_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(benchmark_module(script.removesuffix(".py")), ["--out", str(tmp_path), *options], monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{script}: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_folder_that_is_a_file_is_refused(
    run: Run,
    benchmark_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    assert status_of(benchmark_module(run.name), ["--out", str(tmp_path / "file")], monkeypatch) == 2
    assert "is not a folder that can be written to" in capsys.readouterr().err
