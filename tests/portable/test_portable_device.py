"""Everything runs on a device that torch knows but gatedops does not, in processes of its own, as shadow.py needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
FILES = ("shadow_models", "shadow_functions", "shadow_ops")


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Runs the tests of all files, each in its own process, all at the same time."""
    options = ["-q", "-rs", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, str(HELPERS / f"{name}.py")],
            env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in FILES
    }  # fmt: skip
    yield started
    for run in started.values():
        run.kill()
        run.communicate()


@pytest.mark.parametrize("name", FILES)
def test_it_works_as_on_the_cpu(runs, name):
    printed, _ = runs[name].communicate(timeout=280)
    assert runs[name].returncode == 0, printed[-6000:]
    assert "skipped" not in printed
