"""Runs the scripts in benchmarks/ and examples/ from another folder, with the gatedops that these tests use."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

import gatedops

# The fixtures benchmark_module and example_module import a module of benchmarks/ or examples/ as its scripts do.
Importer = Callable[[str], ModuleType]

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS, EXAMPLES = ROOT / "benchmarks", ROOT / "examples"
STOPPING = Path(__file__).with_name("stopping.py")


def environment() -> dict[str, str]:
    package = str(Path(gatedops.__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}


def run_script(name: str, *options: str, cwd: Path, folder: Path = BENCHMARKS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(folder / name), *options],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


def status_of(script: ModuleType, options: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Runs a script's main with these options in this process, and returns its exit status."""
    monkeypatch.setattr(sys, "argv", [str(script.__file__), *options])
    try:
        return script.run_script(script.parser(), script.run)
    except SystemExit as error:
        return error.code


@contextmanager
def modules_beside(folder: Path) -> Iterator[Importer]:
    """Yields a function that imports modules as the scripts in the folder do; at the end removes these modules."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            path = Path(getattr(module, "__file__", None) or "/")
            if path.is_relative_to(BENCHMARKS) or path.is_relative_to(EXAMPLES):
                del sys.modules[name]
