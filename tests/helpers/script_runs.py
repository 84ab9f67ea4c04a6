"""Runs the scripts in benchmarks/ and examples/ from another folder, with the gatedops that these tests use."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

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


def run_as_main(path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Does in this process what `python path options` does, and returns the exit status."""
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    return end.value.code


def run_and_read(script: ModuleType, out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Runs a script that draws nothing; returns the exit status and the JSON with the name of its file."""
    status = script.run(script.parser().parse_args(["--out", str(out), *options]))
    (path,) = out.iterdir()
    return status, json.loads(path.read_text()) | {"name": path.stem}


def entries_in(content: object) -> Iterator[dict[str, Any]]:
    """Yields all entries of contests, wherever a JSON has them."""
    if isinstance(content, dict):
        if "median_s" in content:
            yield content
        content = list(content.values())
    if isinstance(content, list):
        for part in content:
            yield from entries_in(part)


@contextmanager
def modules_beside(folder: Path) -> Iterator[Importer]:
    """Yields a function that imports modules as the scripts in the folder do; at the end removes these modules."""
    folders = tuple(f"{one}{os.sep}" for one in (BENCHMARKS, EXAMPLES))
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(folders):
                del sys.modules[name]
