"""Command-line options that several benchmarks have, each refused with one sentence and exit code 2."""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "out"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def add_common_options(options: argparse.ArgumentParser) -> None:
    """--device, --dtype, --scale, --no-peers, --no-plot, --out and --seed."""
    add = options.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the Grams (default: %(default)s)")
    add(
        "--scale",
        choices=("width", "none"),
        default="width",
        help='multiplier of a layer\'s count: 1 / its width, or 1 (default: "%(default)s")',
    )
    add("--no-peers", action="store_true", help="time gatedops alone")
    add("--no-plot", action="store_true", help="no PNG; matplotlib is not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: an integer that is `least` or more."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"needs a whole number, got {text!r}") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return integer


def require_device(name: str) -> None:
    """ValueError when the device is a GPU and torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda needs an NVIDIA GPU and a torch built for CUDA; torch sees none: use --device cpu"
        )


def require_folder(folder: Path) -> None:
    """Makes the folder if need be; ValueError when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out {folder} is not a folder that can be written to ({error.strerror})") from error


def require_matplotlib() -> None:
    """ModuleNotFoundError, before any work, when the plot could not be drawn at the end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("the plot needs matplotlib, which is not installed: install it or use --no-plot")


def require_memory(needed: int, what: str) -> None:
    """ValueError when fewer than `needed` bytes are left (on Linux; elsewhere nothing is checked)."""
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{what} needs about {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are left: lower --n"
        )


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say (not Linux)."""
    if not os.path.exists("/proc/meminfo"):
        return None
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
