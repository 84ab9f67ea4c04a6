"""One parser and one main for every script: options that several have, each refused with one sentence and status 2."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from gatedops import data

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "out"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def script_parser(doc: str | None, *names: str, seeded: bool = True) -> argparse.ArgumentParser:
    """A parser with --out, --seed (if the script is `seeded` by it) and the shared options of these names: data,
    device, dtype, scale, peers, plot."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    if "data" in names:
        add("--data", choices=data.NAMES, default="digits", help="image set (default: %(default)s)")
        add("--data-dir", type=Path, help="folder with the files of mnist or cifar10")
    if "device" in names:
        add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    if "dtype" in names:
        add("--dtype", choices=tuple(DTYPES), default="float32", help="dtype of the Grams (default: %(default)s)")
    if "scale" in names:
        help_text = 'multiplier of a layer\'s count: 1 / its width, or 1 (default: "%(default)s")'
        add("--scale", choices=("width", "none"), default="width", help=help_text)
    if "peers" in names:
        add("--no-peers", action="store_true", help="time gatedops alone")
    if "plot" in names:
        add("--no-plot", action="store_true", help="draw no PNG; matplotlib is not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    if seeded:
        add("--seed", type=at_least(0, 2**63 - 1), default=0, help="seed of everything random (default: %(default)s)")
    return options


def run_script(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None]) -> int:
    """Parses the command line, refuses what cannot run before any work starts, and runs.

    Returns the exit status: what `run` returns, or 0 if it returns None, or 2 after an error of the user's, which is
    printed as one sentence, or 130 after Ctrl-C.
    """
    args = parser.parse_args()
    try:
        require_runnable(args)
        return run(args) or 0
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130


def require_runnable(args: argparse.Namespace) -> None:
    """Checks --no-plot, --device and --out, as far as the script has them, and makes the folder of the results.

    Raises ModuleNotFoundError if the plot could not be drawn at the end, and ValueError if torch sees no GPU or nobody
    can write to the folder.
    """
    if not getattr(args, "no_plot", True) and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("the plot needs matplotlib, which is not installed: install it or use --no-plot")
    if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        needed = "an NVIDIA GPU and a torch built for CUDA"
        raise ValueError(f"--device cuda needs {needed}; torch sees none: use --device cpu")
    if hasattr(args, "out"):
        require_folder(args.out)


def options_json(args: argparse.Namespace) -> dict[str, object]:
    """The parsed options as JSON can hold them."""
    return json.loads(json.dumps(vars(args), default=str))


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer that is `least` or more, and not above `most`."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {value}")
        return value

    return integer


def between(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number above `low` and below `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a number, got {text!r}") from None
        if not low < value < high:
            bounds = f"above {low:g}" + ("" if high == math.inf else f" and below {high:g}")
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {value:g}")
        return value

    return number


def require_folder(folder: Path) -> None:
    """Makes the folder if need be; raises ValueError if nobody can write to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out {folder} is not a folder that can be written to ({error.strerror})") from error


def require_memory(needed: int, what: str, option: str = "--n") -> None:
    """Raises ValueError, which says to lower the option, if fewer than `needed` bytes are left (on Linux; elsewhere it
    checks nothing)."""
    available = available_memory()
    if available is not None and needed > available:
        sizes = f"about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are left"
        raise ValueError(f"{what} needs {sizes}: lower {option}")


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None if the system does not say (it is not Linux)."""
    if not os.path.exists("/proc/meminfo"):
        return None
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
