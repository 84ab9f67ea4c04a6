"""Draws the picture of a benchmark again, from the JSON file that the benchmark wrote.

python benchmarks/plot.py benchmarks/results/gram.json --out gram.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _common.options import run_script
from _common.plots import draw


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="JSON file of gram, gated_linear, npk_gram or conv_npk")
    options.add_argument("--out", dest="picture", type=Path, help="PNG file (default: beside the JSON file)")
    options.set_defaults(no_plot=False)
    return options


def content_of(file: Path) -> dict[str, Any]:
    """Returns the content of a benchmark's JSON; raises ValueError if no benchmark wrote the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or "gatedops" not in content.get("machine", {}):
        raise ValueError(f"{file} is not the result of a benchmark of gatedops")
    return content


def run(args: argparse.Namespace) -> None:
    picture = args.picture or args.file.with_suffix(".png")
    if not draw(content_of(args.file), picture):
        raise ValueError(f"{args.file} holds nothing to draw")
    print(f"wrote {picture}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
