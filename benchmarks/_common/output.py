"""Prints results on the terminal and writes them to disk; a file appears whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _common.contest import Entry, Failures, GpuLostError, table
from _common.machine import Contention, busy_sentence, facts_line, machine_report
from _common.options import options_json
from gatedops.atomic_file import write_text

ALL = "all"  # a failure's `by` if what all contestants share failed
NUMBERS = re.compile(r"\[\n([-+.\deE,\s]+)\]")  # a list of nothing else; no string has a line break

Part = tuple[str, Callable[[], list[Entry]]]  # a problem, and what times its contestants


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
        self.lost: GpuLostError | None = None
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
        print(busy_sentence(self.busy[name]))

    def time_parts(self, key: str, parts: Iterable[Part], facts: Sequence[str] = (), *, within: str = "") -> None:
        """Times part after part and prints their table, with these facts as columns. After each part the JSON has the
        entries so far under `key`, behind those that it had before. A part that raises is a failure, and the others go
        on. `within` is the key of an object in the JSON that has `key`."""
        content: Any = self.content.setdefault(within, {}) if within else self.content
        before, entries = content.get(key, []), list[Entry]()
        try:
            for problem, measure in parts:
                with self.failures.caught(problem, key, ALL):
                    entries += measure()
                content[key] = before + [entry.to_json() for entry in entries]
                self.add()
        finally:
            print_entries(entries, facts)

    @contextlib.contextmanager
    def until_gpu_is_lost(self) -> Iterator[None]:
        """Leaves the block, without an error, when the GPU works no more."""
        try:
            yield
        except GpuLostError as error:
            self.lost = error

    def finish(self) -> int:
        """Writes what there is, and draws it if it is complete; returns the exit status, 1 if a contestant failed."""
        self.add(complete=self.lost is None)
        if self.lost is not None:
            print(f"\nThe run ends here, because the GPU works no more, and {self.path} has the rest: {self.lost}")
            return 1
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
