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

from gatedops.atomic_file import file_at


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path, help="JSON file of gram, gated_linear, npk_gram or conv_npk")
    options.add_argument("--out", dest="picture", type=Path, help="PNG file (default: beside the JSON file)")
    options.set_defaults(no_plot=False)
    return options


def content_of(file: Path) -> dict[str, Any]:
    """Returns the content of a benchmark's JSON; raises ValueError if no benchmark wrote the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refused)
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    machine = content.get("machine") if isinstance(content, dict) else None
    if not isinstance(machine, dict) or "gatedops" not in machine:
        raise ValueError(f"{file} is not the result of a benchmark of gatedops")
    return content


def _refused(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not a number")


def run(args: argparse.Namespace) -> None:
    if not args.file.is_file():
        raise FileNotFoundError(f"{args.file} is not a file: name the JSON file of a benchmark")
    picture, content = file_at(args.picture or args.file.with_suffix(".png"), "--out"), content_of(args.file)
    try:
        drawn = draw(content, picture)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(f"{args.file} is not as its benchmark writes it ({type(error).__name__}: {error})") from error
    if not drawn:
        raise ValueError(f"{args.file} holds nothing to draw")
    print(f"wrote {picture}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
