"""The old commands of scripts that are in examples/ now; they go with the next release, and this file with them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def run_moved(old: str) -> None:
    """Runs the script of the same name in examples/, as if it had been started itself, after a line that names it."""
    name, examples = Path(old).name, Path(old).resolve().parents[1] / "examples"
    print(f"{name}: moved to examples/{name}; the next release removes benchmarks/{name}", file=sys.stderr)
    sys.path.insert(0, str(examples))
    runpy.run_path(str(examples / name), run_name="__main__")
