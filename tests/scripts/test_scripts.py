"""Every script in benchmarks/: it runs, it writes what it says, and it refuses what cannot run, in one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from script_runs import BENCHMARKS, Importer, entries_in, run_as_main, run_script

import gatedops

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

RATE = 1e12  # bit-pairs per second in the place of a measurement
OURS, PASSES = "gatedops", ("forward", "forward + backward")

Content = dict[str, Any]


def by_problem_and_name(entries: list[Content]) -> dict[tuple[str, str], Content]:
    return {(entry["problem"], entry["by"]): entry for entry in entries}


def check_npk_gram(found: Content) -> None:
    assert found["points"] == {"n": 60, "train": 48, "test": 12}
    assert sum(found["classes"].values()) == 60
    assert {(image["height"], image["width"]) for image in found["pictures"].values()} == {(60, 60)}
    for figures in found["gates"].values():
        assert 0 <= figures["accuracy"] <= 1
        assert 0.2 < figures["on"] < 0.8
        assert len(figures["on_by_layer"]) == 2
        assert 0 < figures["across"] < figures["within"] < 1
        assert figures["eigenvalues_over_trace"] == sorted(figures["eigenvalues_over_trace"], reverse=True)
    names = ["random, 4 x 1024, n=60, Lambda alone", "random, 4 x 1024, n=60, with x (d=784)"]
    names += ["digits, 2 x 33, n=60, Lambda alone", "digits, 2 x 33, n=60, with x (d=64)"]
    assert list(dict.fromkeys(entry["problem"] for entry in found["speed"])) == names
    for name in names:
        by = {entry["by"]: entry for entry in found["speed"] if entry["problem"] == name}
        alone = "Lambda alone" in name
        assert list(by) == [OURS, "torch float32", "torch bfloat16", "torch x @ x.T alone"][: 3 + (not alone)]
        assert (by[OURS]["ratio"], by[OURS].get("limited_by")) == (1, "counting" if alone else None)
        assert by[OURS]["largest_error"] < 1e-5 < 1e-4 < by["torch bfloat16"]["largest_error"]
    assert found["speed"][0]["limit_s"] == {"counting": pytest.approx(60 * 61 // 2 * 4 * 1024 / RATE)}


def check_conv_npk(found: Content) -> None:
    assert (found["points"], found["net"]["layers"]) == ({"n": 30, "train": 24, "test": 6}, "4-5-GAP-6")
    assert set(found["kernels"]) == set(found["pictures"]) == {"untrained net", "trained net"}
    assert found["pictures"]["untrained net"] != found["pictures"]["trained net"]
    for kernel in found["kernels"].values():
        assert 0 <= kernel["accuracy"] <= 1
        assert kernel["us_per_pair"] == pytest.approx(1e6 * kernel["seconds"] / (30 * 31 // 2))
    by = by_problem_and_name(found["speed"])
    for problem, pairs, plain_pairs in (("8x8 images", 96 * 97 // 2, 10), ("32x32 images", 6, 1)):
        ours, plain = by[problem, OURS], by[problem, "gatedops.reference.conv_gram"]
        assert (ours["pairs"], plain["pairs"], ours["ratio"]) == (pairs, plain_pairs, 1)
        assert ours["us_per_pair"] == pytest.approx(1e6 * ours["median_s"] / pairs)
        assert plain["ratio"] == pytest.approx(plain["us_per_pair"] / ours["us_per_pair"])


def check_modern_npk(found: Content) -> None:
    parts = ["read the network", "record gates", "kernel"]
    assert [(entry["problem"], entry["what"]) for entry in found["networks"]] == [
        ("ShuffleNetV2", part) for part in parts
    ]
    kernel = found["networks"][-1]
    assert (kernel["pairs"], kernel["image_size"]) == (2, 16)
    assert kernel["ms_per_pair"] == pytest.approx(1e3 * kernel["median_s"] / 2)
    assert kernel["work"] > 1e5
    assert 0 <= kernel["largest_error"] < 1e-5


def check_solve(found: Content) -> None:
    inputs = {"Lambda": "none", "bytes": "bytes", "bytes / 255 in float32": "multiples", "other float32": "floats"}
    assert {e["what"]: e["sigma"] for e in found["products"] if e["by"] == OURS} == inputs
    assert len(found["products"]) == 3 * len(inputs)
    assert [e["what"] for e in found["columns"][::2]] == [f"{columns} columns" for columns in (1, 10, 20, 48, 96)]
    dense, ours = found["ridge"]
    assert (dense["iterations"], dense["largest_difference"], ours["same_class"]) == (0, 0, pytest.approx(1, abs=0.01))
    assert ours["iterations"] > 0
    assert 0 < ours["largest_difference"] < 0.01
    assert 0.1 < found["nystrom"][0]["accuracy"] <= 1


def check_drop_in(found: Content) -> None:
    recorded = by_problem_and_name(found["recording"])
    for name, gates in {"MLP": 4 * 1024, "transformer": 2 * 32 * 1024}.items():
        ours, hooks = recorded[name, "record_gates"], recorded[name, "hooks by hand"]
        assert (ours["ratio"], ours["limited_by"]) == (1, "the network alone")
        assert ours["gates"] == hooks["gates"] == hooks["bytes_per_input"] == 8 * ours["bytes_per_input"] == gates
    fused = [(entry["problem"], entry["what"], entry["by"], entry["replaced"]) for entry in found["fusing"]]
    assert fused == [("MLP", what, by, 4) for what in PASSES for by in ("fused", "eager")]


def check_gram(found: Content) -> None:
    sections = ["sweep", "headline", "data-set", "one-core", "one-layer", "packing", "scaling", "soft"]
    assert list(found["sections"]) == sections


def check_gated_linear(found: Content) -> None:
    eager, products = "torch eager", "matrix products alone"
    entries = {(entry["kind"], entry["what"], entry["by"]): entry for entry in found["entries"]}
    kinds = ("layer", "value", "pair", "frozen", "soft")
    assert list(entries) == [(kind, what, by) for kind in kinds for what in PASSES for by in (OURS, eager, products)]
    for (kind, what, by), entry in entries.items():
        assert (entry["batch"], entry["width"], entry["depth"]) == (6, 70, 2)
        assert entry["ratio"] == entry["median_s"] / entries[kind, what, OURS]["median_s"]
        assert ("saved_bytes" in entry) == (what == PASSES[1] and by != products)
        assert entry.get("limited_by") == (None if by == products else products)
    # A hard-gated value layer keeps its input, which the first one does not need, and 70 bits a row in lines of 256.
    ours, plain = (entries["value", PASSES[1], by] for by in (OURS, eager))
    assert ours["saved_bytes"] == 2 * 6 * (70 * 4 + 32)
    assert ours["saved_of_eager"] == ours["saved_bytes"] / plain["saved_bytes"] < 1


def check_gate_cache(found: Content) -> None:
    by = ["cache in memory", "cache, memory-mapped", "no cache", "gates that are ready"]
    assert [entry["by"] for entry in found["entries"]] == by
    for entry in found["entries"]:
        assert (entry["network"], entry["n"], entry["bytes_an_input"]) == ("fc", 70, 160)
        assert entry.get("limited_by") == (None if entry["by"] == by[-1] else by[-1])


def check_gate_statistics(found: Content) -> None:
    assert (found["bytes"], found["regions"]) == (300 * 64, {"net": 300, "layers": [300, 8]})
    timed = [entry["what"] for entry in found["entries"] if entry["by"] == OURS]
    assert timed == ["gate_stats", "gate_change", "count_regions", "naswot_score, batches of 128"]


@dataclass(frozen=True)
class Run:
    """A small run of a script, what checks its JSON, and words of its output."""

    script: str
    options: str
    check: Callable[[Content], None]
    words: str
    suffixes: str = ".json .png"

    @property
    def name(self) -> str:
        return self.script.removesuffix(".py")


RUNS = [
    Run("npk_gram.py", "--n 60 --width 33 --depth 3 --epochs 2", check_npk_gram, "overlap across classes"),
    Run("conv_npk.py", "--quick --n 30 --channels 4 5 --dense 6 --epochs 1", check_conv_npk, "the net itself"),
    Run("modern_npk.py", "--networks ShuffleNetV2 --small --n 1 --m 2", check_modern_npk, "read the network"),
    Run(
        "solve.py",
        "--n 70 --ridge-n 80 --nystrom-n 90 --centres 9 --repeats 2",
        check_solve,
        "bytes / 255 in float32",
    ),
    Run(
        "drop_in.py", "--networks MLP transformer --n 3 --batch 2 --repeats 2", check_drop_in, "(2 ReLUs stay", ".json"
    ),
    Run("gram.py", "--quick --n 64 --layers 2 3 --width 40", check_gram, "n=64, 3 x 40"),
    Run("gated_linear.py", "--size 6,70,2 --no-compile", check_gated_linear, "pair, hard gates, both networks trained"),
    Run("gate_cache.py", "--networks fc --n 70 --repeats 1", check_gate_cache, "no cache", ".json"),
    Run("gate_statistics.py", "--n 300 --widths 200 3 --repeats 1", check_gate_statistics, "300 regions", ".json"),
]

REFUSALS = [
    ("npk_gram.py", "--seed many", "argument --seed: needs a whole number, got 'many'"),
    ("npk_gram.py", "--no-such-option", "unrecognized arguments: --no-such-option"),
    ("npk_gram.py", "--n 1798", "n must be between 2 and 1797"),
    ("npk_gram.py", "--depth 1", "argument --depth: must be at least 2"),
    ("npk_gram.py", "--data cifar10", "data_dir is needed for cifar10"),
    ("npk_gram.py", "--data mnist --data-dir nowhere", "train-images-idx3-ubyte"),
    ("npk_gram.py", "--n 20 --width 256 --depth 30 --scale none", "scale"),
    ("conv_npk.py", "--channels 0", "argument --channels: must be at least 1, got 0"),
    ("conv_npk.py", "--dense many", "argument --dense: needs a whole number, got 'many'"),
    ("modern_npk.py", "--m 0", "argument --m: must be at least 1, got 0"),
    ("modern_npk.py", "--networks AlexNet", "argument --networks: invalid choice: 'AlexNet'"),
    ("solve.py", "--only product", "argument --only: invalid choice: 'product'"),
    ("solve.py", "--centres 0", "argument --centres: must be at least 1, got 0"),
    ("solve.py", "--centres 200 --nystrom-n 100", "--centres 200 is more than the 100 points of --nystrom-n"),
    ("drop_in.py", "--n 0", "argument --n: must be at least 1, got 0"),
    ("drop_in.py", "--networks AlexNet", "argument --networks: invalid choice: 'AlexNet'"),
    ("gram.py", "--width 4 -1", "argument --width: must be at least 1"),
    ("gram.py", "--quick --full", "argument --full: not allowed with argument --quick"),
    ("gram.py", "--no-plot --n 10000000", "GiB of memory"),
    ("npk_gram.py", "--data random --n 10000000", "a study of n=10000000 needs about"),
    ("conv_npk.py", "--data random --n 10000000", "a study of n=10000000 needs about"),
    ("gated_linear.py", "--size 4,33", "argument --size: needs BATCH,WIDTH,DEPTH, got '4,33'"),
    ("gated_linear.py", "--size 4,x,2", "argument --size: needs a whole number, got 'x'"),
    ("gated_linear.py", "--quick --size 4,33,2", "argument --size: not allowed with argument --quick"),
    ("gate_statistics.py", "--n 127", "argument --n: must be at least 128, got 127"),
    ("gate_statistics.py", "--widths none", "argument --widths: needs a whole number"),
]


Main = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def main(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs a script of benchmarks/ with these options; returns its exit status, what it prints, and its errors."""
    monkeypatch.setattr(benchmark_module("_common.machine"), "bit_pair_rate", lambda isa, threads: RATE)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(script: str, *options: str) -> tuple[int | str | None, str, str]:
        status = run_as_main(BENCHMARKS / script, list(options), monkeypatch)
        return status, *capsys.readouterr()

    return run


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_run_writes_json_and_picture(run: Run, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "png" in run.suffixes:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    status, told, errors = main(run.script, *run.options.split(), "--out", "results")
    assert (status, errors, run.words in told) == (0, "", True)
    files = {path.suffix: path for path in (tmp_path / "results").iterdir()}
    assert (sorted(files), {path.stem for path in files.values()}) == (run.suffixes.split(), {run.name})
    for picture in set(files) - {".json"}:
        assert_picture(files[picture])
    found = json.loads(files[".json"].read_text())
    assert (found["complete"], found["failures"], found["options"]["seed"]) == (True, [], 0)
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["machine"]["command"].startswith(run.script)
    for entry in entries_in(found):
        assert 0 < entry["best_s"] <= entry["median_s"]
        assert entry["runs"] >= 1
    run.check(found)


def assert_picture(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size < 200_000


def test_a_script_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = run_script("gate_statistics.py", "--n", "128", "--repeats", "1", "--out", "results", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "results" / "gate_statistics.json").exists()


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [*REFUSALS, *((run.script, "--seed -1", "argument --seed: must be at least 0, got -1") for run in RUNS)],
)
def test_wrong_options_are_refused_in_one_sentence(
    script: str, options: str, message: str, main: Main, tmp_path: Path
) -> None:
    status, _, errors = main(script, "--out", str(tmp_path), *options.split())
    last = errors.splitlines()[-1]
    assert (status, last.startswith(f"{script}: error: ")) == (2, True)
    assert message in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_a_folder_that_is_a_file_is_refused(run: Run, main: Main, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, errors = main(run.script, "--out", str(tmp_path / "file"))
    assert (status, "is not a folder that can be written to" in errors) == (2, True)


@pytest.mark.parametrize("name", ["gram", "gated_linear", "npk_gram", "conv_npk"])
def test_every_result_can_be_drawn_again(name: str, main: Main, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results, picture = BENCHMARKS / "results", tmp_path / "again.png"
    assert main("plot.py", str(results / f"{name}.json"), "--out", str(picture))[0] == 0
    for path in (picture, *results.rglob("*.png")):
        assert_picture(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"machine": {"gatedops": "1"}, "entries": [{"kind": "layer", "what": "forward"}]}', "holds nothing to draw"),
        ('{"machine": {}}', "is not the result of a benchmark of gatedops"),
        ('{"machine": null}', "is not the result of a benchmark of gatedops"),
        (
            '{"machine": {"gatedops": "1"}, "gates": {"a": 1}}',
            "is not as its benchmark writes it (KeyError: 'options')",
        ),
        ('{"machine": {"gatedops": "1"}, "speed": NaN}', "it holds NaN, which is not a number"),
        ("PNG", "is not a JSON file"),
        (None, "is not a file: name the JSON file of a benchmark"),
    ],
)
def test_what_is_not_ours_is_not_drawn(text: str | None, message: str, main: Main, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    status, _, errors = main("plot.py", str(path))
    assert (status, message in errors, path.with_suffix(".png").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("name", "option", "code", "message"),
    [
        ("dgn_training.py", "--help", 0, "usage: dgn_training.py"),
        ("ntk_vs_npk.py", "--data=cifar10", 2, "data_dir is needed for cifar10"),
    ],
)
def test_the_old_path_of_an_example_runs_the_new_one(
    name: str, option: str, code: int, message: str, main: Main
) -> None:
    status, told, errors = main(name, option)
    assert (status, message in (errors if code else told)) == (code, True)
    assert errors.startswith(f"{name}: moved to examples/{name}; the next release removes benchmarks/{name}\n")
