"""Runs scripts/gpu_check.sh without a GPU, with a stand-in for Python (gpu_scripts.py).

Other tests check the real commands: every -k expression selects tests, and every benchmark takes its arguments.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_scripts import FAILING_TAR, KERNELS, PYTHON, ROOT, SCRIPTS, Tree, only_line, results, table
from planted import TESTED

from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.commands import selftest

GROUPS = ("tile", "lambda", "sigma", "matvec", "rest")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux, where the GPUs are")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- the table and the archive ---


@pytest.mark.parametrize("check", ["correct", "fast"])
def test_a_run_in_which_all_goes_well(tree, check):
    done = tree.check(check, str(tree.out))
    rows = table(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert results(done.stdout) == {"ok"}
    assert {f"{name}.log" for name in rows} | {f"tiles_{name}.pt" for name in KERNELS} | {"table.txt"} <= tree.kept()
    assert sorted(path.name for path in tree.out.iterdir()) == ["logs.tgz"]
    expected = {f"{kernel}_{group}" for kernel in KERNELS for group in GROUPS} | {
        "conv",
        "portable",
        "triton",
        "number",
        *(f"self_{name}" for name in ("gates", "gram", "conv", "layers", "pairs")),
    }
    assert (expected if check == "correct" else {"grams", "sweep_sm90x1", "profile", "layers", "conv", "self"}) <= set(
        rows
    )
    assert not list(tree.folder.glob("tmp.*"))


def test_without_xdist_the_tests_are_dealt_to_processes(tree):
    done = tree.check(NO_XDIST="1", GPU_CHECK_ONLY="^conv")
    assert list(table(done.stdout)) == ["ready", "conv_list", "conv.0", "conv.1"]
    assert results(done.stdout) == {"ok"}
    parts = [call for call in tree.calls() if "@" in call]
    assert len(parts) == 2
    assert not any("test_gpu_conv_gram.py" in call for call in parts)


def test_with_xdist_a_broken_worker_of_a_kernel_is_replaced(tree):
    tree.check(GPU_CHECK_ONLY="sm80_tile|conv", PYTEST_ADDOPTS="--abacus")
    workers = {call.split(" -n ")[1].split()[0] for call in tree.calls() if "-m pytest" in call}
    assert "1" in workers
    assert len(workers) == 2
    assert all("-p gpu_pytest" in call for call in tree.calls() if "-m pytest" in call)


def test_wrong_single_tiles_stop_their_kernel_alone(tree):
    done = tree.check(WRONG="sm90")
    rows = table(done.stdout)
    assert done.returncode == 1
    assert rows["tiles_sm90"].result == "failed 1"
    of_sm90 = {rows[f"sm90_{group}"] for group in GROUPS}
    assert of_sm90 == {("not run", "the single tiles of sm90 are not right")}
    assert {row.result for name, row in rows.items() if "sm90_" not in f"{name}_"} == {"ok"}
    assert any(call.startswith("sm90x1") and "--only sweep" in call for call in tree.calls())
    assert "tiles_sm90.pt" in tree.kept()


@pytest.mark.parametrize(
    ("wrong", "profiled"),
    [
        ("", "sm90 --kernel-name regex:gram_sm90"),
        ("sm90", "sm90x1 --kernel-name regex:gram_sm90"),
        ("sm90 sm90x1", "sm80 --kernel-name regex:gram_sm80"),
    ],
)
def test_the_profile_is_of_a_kernel_that_is_right(tree, wrong, profiled):
    tree.tool("ncu", '#!/bin/bash\necho "$GATEDOPS_CUDA ${*:5:2} of ncu" >>"$CALLS"\n')
    tree.check("fast", str(tree.out), WRONG=wrong, GPU_CHECK_ONLY="tiles|profile")
    assert f"{profiled} of ncu" in tree.calls()


def test_paths_are_relative_to_the_folder_of_the_caller(tree):
    (tree.folder / "caller").mkdir()
    command = ["bash", str(tree.folder / "scripts" / "gpu_check.sh"), "correct", "results"]
    environment = tree.environment(PYTHON="../tools/python", GPU_CHECK_ONLY="ready")
    done = subprocess.run(command, cwd=tree.folder / "caller", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tree.folder / "caller" / "results" / "logs.tgz").exists()


@pytest.mark.parametrize(
    "log",
    [
        "tests/t.py::a PASSED [ 50%]\\ntests/t.py::b[1-2] \\n+++++ Timeout +++++",
        "[gw0] PASSED tests/t.py::a\\ntests/t.py::b[1-2] \\n+++++ Timeout +++++",
    ],
)
def test_the_test_that_hangs_is_named(tree, log):
    tree.tool("python", PYTHON.replace('echo "${PYTEST-', 'echo -e "${PYTEST-'))
    assert table(tree.check(GPU_CHECK_ONLY="sm80_tile", PYTEST=log).stdout)["sm80_tile"].note == (
        "timed out in tests/t.py::b[1-2]"
    )


def test_a_gpu_that_is_not_hopper_has_one_kernel(tree):
    tree.tool("python", PYTHON.replace("capability 9.0", "capability 8.6"))
    assert "tiles_sm90" not in table(tree.check(GPU_CHECK_ONLY="tiles|ready").stdout)


def test_tests_that_all_skip_are_no_success(tree):
    done = tree.check(GPU_CHECK_ONLY="sm80_tile", PYTEST="===== 4 skipped, 100 deselected in 1.00s =====")
    assert done.returncode == 1
    assert [row.result for row in table(done.stdout).values()] == ["ok", "nothing ran"]


def test_a_step_that_hangs_is_killed_and_the_others_have_run(tree):
    done = tree.check(HANG="sm90 scripts/gpu_single", GPU_CHECK_LIMIT="7")
    rows = table(done.stdout)
    assert done.returncode == 1
    steps = ("tiles_sm90", "tiles_sm80", "sm80_tile", "sm90_tile")
    assert [rows[name].result for name in steps] == ["time out", "ok", "no time", "not run"]
    assert {"tiles_sm90.log", "tiles_sm80.pt", "table.txt"} <= tree.kept()


def test_an_interrupted_run_leaves_table_and_archive(tree):
    command = ["bash", str(tree.folder / "scripts" / "gpu_check.sh"), "correct", str(tree.out)]
    environment = tree.environment(HANG="sm80 -m pytest")
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tree.folder / "calls.pid").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    run.send_signal(signal.SIGTERM)
    printed, errors = run.communicate(timeout=20)
    rows = table(printed)
    assert (run.returncode, only_line(errors)) == (1, "gpu_check.sh: interrupted")
    assert [rows[name].result for name in ("tiles_sm80", "sm80_tile")] == ["ok", "stopped"]
    assert rows["triton"] == ("not run", "interrupted")
    assert {"tiles_sm80.log", "sm80_tile.log", "table.txt"} <= tree.kept()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tree.folder / "calls.pid").read_text()), 0)


# --- what is missing is one sentence, and the table comes all the same ---


@pytest.mark.parametrize("arguments", [["correct"], ["abacus", "out"], ["--dry", "fast"], ["correct", "out", "more"]])
def test_arguments_that_make_no_sense(tree, arguments):
    done = tree.check(*arguments)
    assert done.returncode == 2
    assert only_line(done.stderr).endswith("usage: scripts/gpu_check.sh [--dry | --list] correct|fast OUT_DIR")


def test_a_file_in_the_place_of_the_folder(tree):
    tree.out.write_text("")
    done = tree.check()
    assert done.returncode == 2
    assert f"{tree.out} cannot be written to: mkdir: cannot create directory" in only_line(done.stderr)
    assert results(done.stdout) == {"not run"}


@pytest.mark.parametrize(("tars", "code", "result"), [("0", 2, "not run"), ("3", 1, "ok")])
def test_no_space_for_the_archive(tree, tars, code, result):
    """Without space at the start nothing is run; without space later, the rest is run and the last archive stays."""
    tree.tool("tar", FAILING_TAR)
    done = tree.check(TARS=tars)
    assert done.returncode == code
    assert f"cannot be written to {tree.out}: gzip: stdout: No space left on device" in only_line(done.stderr)
    assert results(done.stdout) == {result}
    assert [path.name for path in tree.out.iterdir()] == (["logs.tgz"] if code == 1 else [])


def test_space_that_comes_back_for_the_archive(tree):
    tree.tool("tar", FAILING_TAR)
    done = tree.check(TARS="3", FULL="2", GPU_CHECK_ONLY="machine|tiles")
    assert (done.returncode, done.stderr) == (0, "")
    assert "table.txt" in tree.kept()


@pytest.fixture
def full(tmp_path):
    """Makes a small file system without any space left."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(OSError, match="No space left"):
            (folder / "filler").write_bytes(bytes(10**6))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_file_system_is_said(tree, full):
    done = tree.check("correct", str(full / "out"))
    assert done.returncode == 2
    assert only_line(done.stderr).endswith("No space left on device")
    assert results(done.stdout) == {"not run"}


def test_a_full_folder_for_temporary_files(tree, full):
    done = tree.check(TMPDIR=str(full), GPU_CHECK_ONLY="tiles")
    assert done.returncode == 0, done.stdout
    assert only_line(done.stderr) == (
        f"gpu_check.sh: nothing can be written in {full}, so temporary files are in {tree.out} for now"
    )
    assert {"ready.log", "table.txt"} <= tree.kept()
    assert [path.name for path in tree.out.iterdir()] == ["logs.tgz"]


@pytest.mark.parametrize("usable", [True, False])
def test_a_missing_folder_for_temporary_files(tree, usable):
    if not usable:
        tree.out.write_text("")
    done = tree.check(TMPDIR="/nowhere", GPU_CHECK_ONLY="tiles")
    assert done.returncode == (0 if usable else 2)
    assert results(done.stdout) == {"ok" if usable else "not run"}
    assert only_line(done.stderr)


def test_libraries_that_crash_when_they_are_loaded(tree):
    done = tree.check(READY="", READY_SIGNAL="1")
    assert done.returncode == 1
    assert only_line(done.stderr) == (
        "gpu_check.sh: the libraries cannot be loaded (failed 135): compute capability 9.0"
    )


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"READY": "torch sees no NVIDIA GPU", "READY_CODE": "3"}, "torch sees no NVIDIA GPU"),
        (
            {"READY": "to build: the libraries were built from torch 2.12.0 (here: 2.11.0)"},
            "the libraries were built from torch 2.12.0 (here: 2.11.0), and nvcc, which could build them, is not",
        ),
    ],
)
def test_without_gpu_or_libraries_nothing_else_runs(tree, variables, sentence):
    done = tree.check(**variables)
    rows = table(done.stdout)
    assert done.returncode == 1
    assert sentence in only_line(done.stderr)
    assert rows.pop("machine").result == "ok"
    assert rows.pop("ready").note == variables["READY"]
    assert len(rows) > 20
    assert {row.result for row in rows.values()} == {"not run"}
    assert {"ready.log", "table.txt"} <= tree.kept()


def test_stale_libraries_are_built_again(tree):
    tree.tool("nvcc")
    done = tree.check(READY="to build: sources have changed", GPU_CHECK_ONLY="ready|buil|tiles")
    rows = table(done.stdout)
    assert done.returncode == 0, done.stdout
    assert list(rows)[:4] == ["ready", "build", "built", "tiles_sm90"]
    assert rows["built"].note == "it loads"


def test_libraries_that_do_not_build(tree):
    tree.tool("nvcc")
    done = tree.check(READY="to build: sources have changed", STAMP_CODE="1")
    assert done.returncode == 1
    assert "the libraries cannot be built" in only_line(done.stderr)
    assert table(done.stdout)["tiles_sm80"].result == "not run"


def test_a_tool_that_is_missing_is_said(tree):
    for name in ("nvidia-smi", "ncu", "compute-sanitizer"):
        (tree.tools / name).unlink()
    rows = table(tree.check("fast", str(tree.out)).stdout)
    if shutil.which("ncu", path="/usr/bin:/bin") is None:
        assert rows["profile"] == ("not run", "ncu is not installed")
    assert rows["conv"].result == "ok"


# --- the real commands ---


def listed(tree: Tree, check: str) -> list[list[str]]:
    """Returns the command of every step."""
    done = tree.check("--list", check, str(tree.out))
    assert done.returncode == 0, done.stderr
    return [shlex.split(line.split("\t")[2]) for line in done.stdout.splitlines()]


COLLECT = """
import json, sys, pytest
class Found:
    def pytest_collection_finish(self, session):
        self.ids = [item.nodeid for item in session.items]
results = []
for arguments in json.load(sys.stdin):
    found = Found()
    code = pytest.main([*arguments, "--collect-only", "-qqq"], plugins=[found])
    results.append([int(code), found.ids])
json.dump(results, open(sys.argv[1], "w"))
"""


def test_the_groups_are_all_tests_once(tree):
    """Every call selects tests, and together the calls of a kernel select each test once."""
    calls = {tuple(c[c.index("pytest") + 1 :]) for c in listed(tree, "correct") if "pytest" in c}
    found = tree.folder / "found.json"
    environment = {k: v for k, v in os.environ.items() if k != "GATEDOPS_BACKEND"}
    environment |= {"GATEDOPS_DRY_GPU": "1", "PYTHONPATH": str(SCRIPTS)}  # The plugin is there.
    subprocess.run(
        [sys.executable, "-c", COLLECT, found],
        input=json.dumps([*calls, ["tests/gpu/test_gpu_gram_cuda.py"]]),
        cwd=ROOT,
        env=environment,
        text=True,
        check=True,
        capture_output=True,
    )
    *groups, (_, everything) = json.loads(found.read_text())
    assert all(code == 0 and ids for code, ids in groups)
    of_kernel = [test for _, ids in groups for test in ids if "test_gpu_gram_cuda" in test]
    assert sorted(of_kernel) == sorted(everything)


@pytest.mark.parametrize("check", ["correct", "fast"])
def test_the_self_test_takes_its_arguments(tree, check):
    """It also finds every family that has kernels."""
    commands = [c for c in listed(tree, check) if "selftest" in c]
    asked = [selftest._parse(command[command.index("selftest") + 1 :]) for command in commands]
    tried = [family for one in asked for family in selftest.families_to_try(one.families, KERNEL_BACKENDS)]
    assert tried == TESTED
    assert all(one.json and one.limit for one in asked)


@pytest.mark.parametrize("check", ["correct", "fast"])
def test_the_benchmarks_take_their_arguments(tree, check, benchmark_module):
    commands = [c for c in listed(tree, check) if any(part.startswith("benchmarks/") for part in c)]
    assert len(commands) == (1 if check == "correct" else 7)
    for command in commands:
        script = next(part for part in command if part.startswith("benchmarks/"))
        parser = benchmark_module(Path(script).stem).parser()
        assert parser.parse_args(command[command.index(script) + 1 :]).device == "cuda"


def test_a_dry_run_puts_the_cpu_in_the_place_of_the_gpu(tmp_path):
    """This runs two real steps. All of them, `scripts/gpu_check.sh --dry correct OUT_DIR`, take minutes."""
    environment = dict(os.environ) | {
        "PYTHON": sys.executable,
        "GPU_CHECK_ONLY": "machine|tiles_sm80|number|self_gates",
    }
    command = ["bash", str(SCRIPTS / "gpu_check.sh"), "--dry", "correct", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(done.stdout)["tiles_sm80"] == ("ok", "all 11 products are right")
    if not torch.cuda.is_available():
        assert "needs an NVIDIA GPU" in table(done.stdout)["number"].note
        assert table(done.stdout)["self_gates"].note.startswith("torch sees no GPU")
