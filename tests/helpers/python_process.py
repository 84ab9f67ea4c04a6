"""Runs Python in a process of its own, to test what is decided when gatedops is imported."""

from __future__ import annotations

import os
import subprocess
import sys


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python without the GATEDOPS_ variables of this process, and with the given ones."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GATEDOPS_")}
    return subprocess.run(
        [sys.executable, *arguments], env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the error message of a run that failed."""
    assert result.returncode == 1, result.stderr
    return result.stderr.strip().splitlines()[-1]
