"""Prints results on the terminal and writes them to disk; a file appears whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from _common.contention import Contention, sentence
from _common.contest import Entry, Failures, GpuLostError, table
from _common.machine import facts_line, machine_report
from _common.options import options_json
from gatedops.atomic_file import write_text

NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+)\]")  # a list of nothing else; no string has a line break


def write_json_atomically(path: Path, content: object) -> None:
    """Writes indented JSON, lists of numbers on one line. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, NUMBERS.sub(_on_one_line, json.dumps(content, indent=2, allow_nan=False)) + "\n")


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[1].split())}]"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as their widest cell, numbers to the right, the first column and words to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    numbers = [i > 0 and any(row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = zip(row, widths, numbers, strict=True)
        print("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip())


def print_entries(entries: Sequence[Entry], facts: Sequence[str] = ()) -> None:
    """Prints one row for each entry, with these facts as columns."""
    if entries:
        print_table(*table(entries, facts))


class Results:
    """What a run writes: OUT/NAME.json, whole after every part of the run, and OUT/NAME.png, drawn from it.

    The JSON has "machine", "options", "cores_busy_elsewhere" (by section), what the script adds, "failures", and
    "complete", which is false until the last part is there.
    """

    def __init__(self, args: argparse.Namespace, name: str, *, device: str = "cpu", family: str = "gram"):
        self.path = args.out / f"{name}.json"
        self.draws = not getattr(args, "no_plot", True)
        self.failures = Failures()
        self.machine = machine_report(device, family)
        self.busy: dict[str, float | None] = {}
        self.content: dict[str, object] = {"machine": self.machine, "options": options_json(args), "complete": False}
        print(facts_line(self.machine))

    def add(self, **parts: object) -> None:
        """Adds parts (or replaces them) and writes the file."""
        self.content |= parts | {"cores_busy_elsewhere": self.busy, "failures": self.failures.to_json()}
        write_json_atomically(self.path, self.content)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Prints a heading, and at the end how busy other processes kept the cores meanwhile."""
        print(f"\n== {name}", flush=True)
        contention = Contention()
        yield
        self.busy[name] = contention.cores()
        print(sentence(self.busy[name]))

    def finish(self) -> int:
        """Writes and draws what is complete; returns the exit status, 1 if a contestant failed."""
        self.add(complete=True)
        print(f"\nwrote {self.path}")
        if self.draws:
            from _common.plots import draw

            picture = self.path.with_suffix(".png")
            if draw(self.content, picture):
                print(f"wrote {picture}")
        failed = self.failures.all
        if failed:
            print(f"{len(failed)} failed and have no times here; the first is {failed[0]}")
        return int(bool(failed))

    def lost(self, error: GpuLostError) -> int:
        """Writes what there is when the GPU works no more; returns the exit status."""
        self.add()
        print(f"\nThe run ends here, because the GPU works no more, and {self.path} has the rest: {error}")
        return 1
