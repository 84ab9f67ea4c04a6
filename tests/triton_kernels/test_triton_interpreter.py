"""Triton kernels run in the interpreter, in two processes that take about as long, because the variable that turns the
interpreter on changes the kernels when they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).parent / "interpreted"
LAYERS = [CASES / "case_gated_linear.py"]
OTHERS = sorted({*CASES.glob("case_*.py")} - {*LAYERS})


@pytest.mark.parametrize("files", [LAYERS, OTHERS], ids=["layers", "others"])
def test_families_in_the_interpreter(files):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "python_files=case_*.py"]
    helpers = str(ROOT / "tests" / "helpers")
    # In small tests, more threads only wait.
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": helpers, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, *map(str, files)], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
