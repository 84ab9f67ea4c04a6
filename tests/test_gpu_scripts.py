"""scripts/gpu_check.sh and gpu_prepare.sh without a GPU: a stand-in for Python answers at once, hangs or fails as told.

What the real commands are is tested apart: every -k expression selects tests, and every benchmark takes its arguments.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
GROUPS = ("tile", "lambda", "sigma", "matvec", "rest")
KERNELS = ("sm90", "sm90x1", "sm80")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux, where the GPUs are")

# Says what it is called with, then does what the variables tell it to.
PYTHON = r"""#!/bin/bash
echo "${GATEDOPS_CUDA-} $*" >>"$CALLS"
last=${!#}
if [[ -n ${HANG-} && "${GATEDOPS_CUDA-} $*" == *$HANG* ]]; then echo $BASHPID >"$CALLS.pid"; sleep 1000; fi
case "$*" in
  *"gpu_build.py check") [[ -e $CALLS.built ]] && unset READY
    printf '%b\n' "compute capability 9.0\n${READY-it loads}"
    [[ -z ${READY_SIGNAL-} ]] || kill -BUS $$
    exit "${READY_CODE-0}" ;;
  *"gpu_build.py stamp"*) exit "${STAMP_CODE-0}" ;;
  *"gpu_build.py hash") echo abcd ;;
  *setup_cuda.architectures*) [[ -z ${ARCHITECTURES-} ]] || { echo "$ARCHITECTURES" >&2; exit 1; } ;;
  *setup.py*) [[ -z ${BUILD_LOG-} ]] || { echo -e "$BUILD_LOG"; exit 1; }
    touch "$CALLS.built" gatedops/_C.cpython-312.so gatedops/_C_cuda.cpython-312.{so,stamp} ;;
  *gpu_single_tiles*) echo values >"$last"
    [[ " ${WRONG-} " != *" $GATEDOPS_CUDA "* ]] || { echo "1 of 11 products are wrong"; exit 1; } ;;
  *--collect-only*) echo "tests/t.py::a"; echo "tests/t.py::b[1 2]"; echo "2 tests collected in 0.1s" ;;
  *pytest*) echo "${PYTEST-===== 3 passed, 1 skipped in 0.10s =====}" ;;
  *"import xdist"*) exit "${NO_XDIST-0}" ;;
  "-m venv"*) mkdir -p "$last/bin" && cp "$0" "$last/bin/python" ;;
  *"pip install"*) exit "${PIP_CODE-0}" ;;
  *EXT_SUFFIX*) echo .cpython-312.so ;;
  *get_python_version*) echo "${VERSION-3.12}" ;;
  *"torch.version.cuda"*) echo "${TORCH-2.11.0+cu130 13.0}" ;;
  *) echo "$1 is done" ;;
esac
"""
FAILING_TAR = r"""#!/bin/bash
echo >>"$CALLS.tars"
written=$(wc -l <"$CALLS.tars")
if ((written > ${TARS-0} && written <= ${TARS-0} + ${FULL-1000})); then
  echo -e "gzip: stdout: No space left on device\ntar: Child returned status 1\ntar: Error is not recoverable" >&2
  exit 2
fi
exec /usr/bin/env -S PATH=/usr/bin:/bin tar "$@"
"""


class Tree:
    """The scripts in a folder of their own, and a PATH with the tools that a test puts there."""

    def __init__(self, folder: Path):
        self.folder, self.out, self.tools = folder, folder / "out", folder / "tools"
        for made in (folder / "scripts", folder / "gatedops", self.tools):
            made.mkdir()
        for script in SCRIPTS.glob("gpu_*"):
            shutil.copy(script, folder / "scripts")
        self.tool("python", PYTHON)
        for name in ("nvidia-smi", "ncu", "compute-sanitizer"):
            self.tool(name, "#!/bin/bash\necho it is done\n")

    def tool(self, name: str, text: str = "#!/bin/bash\n") -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "PYTHON": str(self.tools / "python"),
            "CALLS": str(self.folder / "calls"),
            "CUDA_HOME": "/nowhere",
            "TMPDIR": str(self.folder),
        } | variables

    def run(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.folder / "scripts" / script), *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60)

    def check(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("gpu_check.sh", *(arguments or ("correct", str(self.out))), **variables)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def kept(self) -> set[str]:
        with tarfile.open(self.out / "logs.tgz") as archive:
            return {Path(name).name for name in archive.getnames()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class Row(NamedTuple):
    """One step of the table."""

    result: str
    note: str


def table(printed: str) -> dict[str, Row]:
    rows = printed[printed.index("\nstep  ") :].splitlines()[2:-1]
    return {row[:14].strip(): Row(row[15:26].strip(), row[33:]) for row in rows}


def results(printed: str) -> set[str]:
    return {row.result for row in table(printed).values()}


def only_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


# --- the table and the archive ---


@pytest.mark.parametrize("check", ["correct", "fast"])
def test_a_run_in_which_all_goes_well(tree, check):
    done = tree.check(check, str(tree.out))
    rows = table(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert results(done.stdout) == {"ok"}
    assert {f"{name}.log" for name in rows} | {f"tiles_{name}.pt" for name in KERNELS} | {"table.txt"} <= tree.kept()
    assert sorted(path.name for path in tree.out.iterdir()) == ["logs.tgz"]
    expected = {f"{kernel}_{group}" for kernel in KERNELS for group in GROUPS} | {"conv", "triton", "number"}
    assert (expected if check == "correct" else {"grams", "sweep_sm90x1", "profile", "layers", "conv"}) <= set(rows)
    assert not list(tree.folder.glob("tmp.*"))


def test_without_xdist_the_tests_are_dealt_to_processes(tree):
    done = tree.check(NO_XDIST="1", GPU_CHECK_ONLY="conv")
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
    """From the start on, nothing is run that leaves nothing; later, the rest is run and the last archive stays."""
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
    """A small file system without any space left."""
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
    """The command of every step."""
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
    """Every call selects tests; together, those of a kernel select each test once."""
    calls = {tuple(c[c.index("pytest") + 1 :]) for c in listed(tree, "correct") if "pytest" in c}
    found = tree.folder / "found.json"
    environment = {k: v for k, v in os.environ.items() if k != "GATEDOPS_BACKEND"}
    environment |= {"GATEDOPS_DRY_GPU": "1", "PYTHONPATH": str(SCRIPTS)}  # where the plugin is
    subprocess.run(
        [sys.executable, "-c", COLLECT, found],
        input=json.dumps([*calls, ["tests/test_gpu_gram_cuda.py"]]),
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
def test_the_benchmarks_take_their_arguments(tree, check, benchmark_module):
    commands = [c for c in listed(tree, check) if any(part.startswith("benchmarks/") for part in c)]
    assert len(commands) == (1 if check == "correct" else 7)
    for command in commands:
        script = next(part for part in command if part.startswith("benchmarks/"))
        parser = benchmark_module(Path(script).stem).parser()
        assert parser.parse_args(command[command.index(script) + 1 :]).device == "cuda"


def test_a_dry_run_puts_the_cpu_in_the_place_of_the_gpu(tmp_path):
    """Two real steps. The whole, `scripts/gpu_check.sh --dry correct OUT_DIR`, takes minutes."""
    environment = dict(os.environ) | {"PYTHON": sys.executable, "GPU_CHECK_ONLY": "machine|tiles_sm80|number"}
    command = ["bash", str(SCRIPTS / "gpu_check.sh"), "--dry", "correct", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(done.stdout)["tiles_sm80"] == ("ok", "all 11 products are right")
    if not torch.cuda.is_available():
        assert "needs an NVIDIA GPU" in table(done.stdout)["number"].note


# --- the stamp ---


@pytest.fixture
def build(monkeypatch, tmp_path):
    """scripts/gpu_build.py, whose package is an empty folder."""
    spec = importlib.util.spec_from_file_location("gpu_build", SCRIPTS / "gpu_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "STAMP", tmp_path / module.STAMP.name)
    return module


def test_libraries_fit_when_their_stamp_does(build, tmp_path, capsys):
    now = build.here()
    (tmp_path / "_C.cpython-300.so").touch()
    assert build.why_not_built(now).endswith("is not there (_C.cpython-300.so is)")
    assert build.write_stamp(None) == 1
    assert "is not there" in capsys.readouterr().err
    for name in build.LIBRARIES:
        (tmp_path / name).write_text("a library")
    assert "nobody knows what the libraries were built from" in build.why_not_built(now)
    assert build.write_stamp("another hash") == 1
    assert "the sources changed while they were compiled" in capsys.readouterr().err
    assert build.write_stamp(now["sources"]) == 0
    assert build.why_not_built(now) is None
    assert build.why_not_built(now | {"torch": "9.9"}) == (
        f"the libraries were built from torch {torch.__version__} (here: 9.9)"
    )
    (tmp_path / build.LIBRARIES[1]).write_text("a lib")
    assert build.why_not_built(now) == f"gatedops/{build.LIBRARIES[1]} is not the one that was stamped"
    assert "from Python 3." in build.why_not_built(now | {"Python": "9.9", "sources": "abcd"})


@pytest.mark.parametrize("stamp", ["", "{", "[1]", "null", '"text"', "\x00"])
def test_a_stamp_that_cannot_be_read(build, tmp_path, stamp):
    for name in build.LIBRARIES:
        (tmp_path / name).touch()
    build.STAMP.write_text(stamp)
    assert "cannot be read" in build.why_not_built(build.here())


def test_the_commit_is_unknown_without_git(build, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert build.commit() == "unknown"


@pytest.mark.parametrize(
    ("cuda", "gpu", "capability", "sentence"),
    [
        (None, True, (9, 0), "is built without CUDA"),
        ("13.0", False, (9, 0), "torch sees no NVIDIA GPU"),
        ("13.0", True, (7, 5), "is older than sm_80"),
        ("13.0", True, (9, 0), None),
    ],
)
def test_why_there_is_no_gpu(build, cuda, gpu, capability, sentence, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an abacus")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = build.why_no_gpu()
    if sentence is None:
        assert (reason, capsys.readouterr().out) == (None, "an abacus\ncompute capability 9.0\n")
    else:
        assert sentence in reason


# --- the plugin of pytest ---

# The illegal access of a GPU: a torch of which every synchronize fails once a test has broken it.
BROKEN_TORCH = """
class cuda:
    broken = False

    @staticmethod
    def is_initialized():
        return True

    @staticmethod
    def synchronize():
        if cuda.broken:
            raise RuntimeError("CUDA error: an illegal memory access\\nCompile with ...")
"""
BREAKING_TESTS = """
import torch

def test_before():
    assert not torch.cuda.broken

def test_breaks():
    torch.cuda.broken = True
    assert 1 == 2, "that is why"

def test_after():
    assert not torch.cuda.broken

def test_last():
    assert not torch.cuda.broken
"""


def run_pytest(folder: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "torch.py").write_text(BROKEN_TORCH)
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = [folder, SCRIPTS, *sys.path]
    environment = os.environ | {"PYTHONPATH": ":".join(map(str, paths)), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "gpu_pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_process_with_a_broken_gpu_ends(tmp_path):
    done = run_pytest(tmp_path, BREAKING_TESTS)
    assert done.returncode == 70
    assert only_line(done.stderr) == (
        "test_some.py::test_breaks leaves CUDA broken, this process ends: CUDA error: an illegal memory access"
    )
    assert "test_before PASSED" in done.stdout
    assert "that is why" in done.stdout
    assert "test_after" not in done.stdout


def test_with_xdist_the_later_tests_run_in_a_new_process(tmp_path):
    pytest.importorskip("xdist")
    done = run_pytest(tmp_path, BREAKING_TESTS, "-p", "xdist", "-n", "1", "--max-worker-restart", "20")
    passed = [line.split("::")[1].strip() for line in done.stdout.splitlines() if "PASSED" in line]
    assert sorted(passed) == ["test_after", "test_before", "test_last"]
    assert "crashed while running 'test_some.py::test_breaks'" in done.stdout
    assert "that is why" in done.stdout
    assert "test_breaks leaves CUDA broken" in done.stderr


def test_failures_before_a_hang_are_told(tmp_path):
    tests = "import time\ndef test_fails():\n    assert 0, 'that is why'\ndef test_hangs():\n    time.sleep(30)\n"
    done = run_pytest(tmp_path, tests, "-p", "pytest_timeout", "--timeout", "0.5", "--timeout-method", "thread")
    assert "Timeout" in done.stdout + done.stderr
    assert done.stdout.index("that is why") < done.stdout.index("test_some.py::test_hangs")


def test_with_xdist_the_place_of_a_hang_is_told(tmp_path):
    pytest.importorskip("xdist")
    tests = "import time\ndef test_hangs():\n    time.sleep(30)\ndef test_after():\n    pass\n"
    limits = ("--timeout", "1", "--timeout-method", "thread", "-o", "faulthandler_timeout=0.5")
    done = run_pytest(tmp_path, tests, "-p", "xdist", "-p", "pytest_timeout", "-n", "1", *limits)
    assert "line 3 in test_hangs" in done.stderr
    assert "PASSED test_some.py::test_after" in done.stdout


# --- building on a machine without a GPU ---


def test_prepare_says_what_to_copy_and_what_to_run(tree):
    tree.tool("nvcc")
    done = tree.run("gpu_prepare.sh", "--python", str(tree.tools / "python"))
    assert done.returncode == 0, done.stderr
    libraries = [
        f"gatedops/{name}" for name in ("_C.cpython-312.so", "_C_cuda.cpython-312.so", "_C_cuda.cpython-312.stamp")
    ]
    for carried in (*libraries, "build/gpu-modules"):
        assert f"MiB  {carried}\n" in done.stdout
    assert done.stdout.endswith("scripts/gpu_check.sh correct OUT_DIR\nscripts/gpu_check.sh fast OUT_DIR\n")


def test_prepare_makes_its_environment_once(tree):
    for name in ("nvcc", "python3.12"):
        tree.tool(name, PYTHON)
    broken = tree.run("gpu_prepare.sh", PIP_CODE="1")
    folder = "build/gpu-py312-torch2110"
    assert only_line(broken.stderr).startswith(f"gpu_prepare.sh: torch 2.11.0 cannot be installed in {folder}")
    for _ in range(2):
        assert tree.run("gpu_prepare.sh").returncode == 0
    assert sum("-m venv" in call for call in tree.calls()) == 2


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        (["--python"], {}, "--python needs a value"),
        (["--abacus", "1"], {}, "got --abacus, needs --python, --version, --torch or --arch"),
        (["--python", "/nowhere/python"], {}, "/nowhere/python does not run"),
        (["--version", "3.99"], {}, "python3.99 does not run: install it, or name it with --python"),
        (["--python", "python"], {"VERSION": "3.11"}, "python is Python 3.11, not 3.12"),
        (["--python", "python"], {"TORCH": "2.12.0+cu130 13.0"}, "python has torch 2.12.0+cu130, not 2.11.0"),
        (["--python", "python"], {"TORCH": "2.11.0+cpu None"}, "torch 2.11.0+cpu of python is built without CUDA"),
        (
            ["--python", "python", "--arch", "abacus"],
            {"ARCHITECTURES": "TORCH_CUDA_ARCH_LIST: got 'abacus', needs versions from 8.0 on"},
            "--arch: got 'abacus', needs versions from 8.0 on",
        ),
        (["--python", "python"], {"STAMP_CODE": "1"}, "the libraries have no stamp"),
        (
            ["--python", "python"],
            {"PIP_CODE": "1"},
            "expecttest cannot be installed in build/gpu-modules: see the lines above",
        ),
    ],
)
def test_prepare_says_what_is_missing(tree, arguments, variables, sentence):
    tree.tool("nvcc")
    done = tree.run("gpu_prepare.sh", *arguments, **variables)
    assert (done.returncode, only_line(done.stderr)) == (1, f"gpu_prepare.sh: {sentence}")


@pytest.mark.parametrize(
    ("log", "first"),
    [
        ("compiling\\na.cu(3): error: no x\\nb.cu(4): error: no y", "a.cu(3): error: no x"),
        ("nvcc fatal   : Unsupported gpu architecture", "nvcc fatal   : Unsupported gpu architecture"),
        ("g++ -Werror=all a.cpp", "no line of it names an error"),
    ],
)
def test_prepare_names_the_first_error_of_a_build(tree, log, first):
    tree.tool("nvcc")
    done = tree.run("gpu_prepare.sh", "--python", "python", BUILD_LOG=log)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gpu_prepare.sh: the build failed, all of it is in build/gpu-objects-py312-torch2110/log: " + first
    )


def test_prepare_needs_nvcc(tree):
    done = tree.run("gpu_prepare.sh", "--python", "python")
    assert (done.returncode, done.stderr) == (1, "gpu_prepare.sh: nvcc does not run: install the CUDA toolkit\n")
