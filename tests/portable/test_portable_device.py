"""Everything runs on a device that torch knows but gatedops does not, in a process of its own, as shadow.py needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"
FILES = ("shadow_models", "shadow_functions", "shadow_ops")


def test_everything_works_as_on_the_cpu():
    options = ["-q", "-rs", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(HELPERS / f"{name}.py") for name in FILES)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
