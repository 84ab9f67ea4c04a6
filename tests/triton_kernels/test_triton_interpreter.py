"""Triton kernels run in the interpreter, each family in a process of its own, because the variable that turns the
interpreter on changes the kernels when they are imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((Path(__file__).parent / "interpreted").glob("case_*.py"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_family_in_the_interpreter(case):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(case),
        "-o",
        "python_files=case_*.py",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests" / "helpers")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
