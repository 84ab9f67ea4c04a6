"""The scripts in benchmarks/, run from another folder with the gatedops that these tests use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gatedops

# The fixture benchmark_module: imports a module of benchmarks/ as its scripts do.
Importer = Callable[[str], ModuleType]

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def environment() -> dict[str, str]:
    package = str(Path(gatedops.__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}


def run_script(name: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
