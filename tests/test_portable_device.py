"""Everything on a device that torch knows and gatedops does not: in processes of their own, as shadow.py needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", ["shadow_ops", "shadow_functions", "shadow_models"])
def test_it_works_as_on_the_cpu(name):
    options = ["-q", "-rs", "--show-capture=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / f"{name}.py")],
        env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
