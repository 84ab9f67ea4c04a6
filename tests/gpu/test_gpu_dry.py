"""Tests of the kernels for GPUs pass with the CPU in place of the GPU, so a failure there is the fault of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[1]
REASONS = (
    "needs a GPU: ",
    "needs a GPU and GATEDOPS_BACKEND=",
    "needs channels",
)  # A dry run may skip a test for these reasons.


def test_the_tests_for_gpus_pass_on_the_cpu():
    files = [str(TESTS / f"test_gpu_{name}.py") for name in ("conv_gram", "gated_linear", "gram", "gram_cuda")]
    options = ["-q", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("GATEDOPS_", "PYTEST_"))}
    # In small tests, more threads only wait.
    environment = inherited | {"GATEDOPS_DRY_GPU": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    reasons = re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", run.stdout, re.MULTILINE)
    assert passed >= 640
    assert [reason for reason in reasons if not reason.startswith(REASONS)] == []
