"""scripts/gpu_pytest.py keeps other tests safe from a test that breaks the GPU or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_scripts import SCRIPTS, only_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for Linux, where the GPUs are")


# This imitates an illegal access on a GPU: once a test has broken torch, every synchronize fails.
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
