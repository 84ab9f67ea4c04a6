"""scripts/gpu_prepare.sh and gpu_build.py make libraries for a GPU machine, and say whether they fit it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from gpu_scripts import PYTHON, SCRIPTS, Tree, only_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux, where the GPUs are")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- the stamp ---


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Loads scripts/gpu_build.py with an empty folder as its package."""
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
