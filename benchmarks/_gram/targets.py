"""The speeds this package is held to, on a CPU with VPOPCNTDQ and two threads, and whether this run reaches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from _gram.entry import Entry
from _gram.headline import COLUMNS, INPUT_MATMUL, lambda_entry
from _gram.numkong import NAME
from _gram.packing import PackEntry
from _gram.portable import PORTABLE

HEADER = ("target", "wanted", "found", "met")


@dataclass(frozen=True)
class Target:
    """A figure that has to be at least, or else at most, what is wanted."""

    name: str
    wanted: float
    found: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def row(self) -> tuple[str, ...]:
        sign = ">=" if self.at_least else "<="
        return self.name, f"{sign} {self.wanted:.2f}", f"{self.found:.2f}", "yes" if self.met else "NO"


def headline_targets(entries: list[Entry]) -> Iterator[Target]:
    """The targets of the section `headline`; portable and peers that were not timed leave theirs out."""
    count = max(entry.threads for entry in entries)
    times = {(e.what, e.instruction_set or e.by): e.median_s for e in entries if e.threads == count}
    ours = lambda_entry(entries, count)
    isa, lambda_s = ours.instruction_set or "", ours.median_s
    if ("Lambda", "torch float32") in times:
        float32 = times["Lambda", "torch float32"]
        yield Target("Lambda, torch float32 / ours", 28, float32 / lambda_s)
        yield Target("Lambda, torch bfloat16 / ours", 11, times["Lambda", "torch bfloat16"] / lambda_s)
        if ("Lambda", "avx2") in times:
            yield Target("Lambda with AVX2, torch float32 / ours", 8, float32 / times["Lambda", "avx2"])
        if ("Lambda", PORTABLE) in times:
            share = times["Lambda", PORTABLE] / float32
            yield Target(f"Lambda, {PORTABLE} / torch float32", 1.5, share, at_least=False)
    if (INPUT_MATMUL, "torch float32") in times:
        share = times["Gram with x, float32", isa] / times[INPUT_MATMUL, "torch float32"]
        yield Target(f"Gram with x, ours / torch's {INPUT_MATMUL}", 0.88, share, at_least=False)
    for with_x, gram in (("", "Lambda"), (" with x", "Gram with x, float32")):
        found = times[f"matvec{with_x}, {COLUMNS} columns", isa] / times[gram, isa]
        yield Target(f"matvec{with_x}, {COLUMNS} columns / {gram}", 1.3, found, at_least=False)


def one_core_targets(entries: list[Entry], popcount_s: float | None) -> Iterator[Target]:
    """popcount_s: seconds that VPOPCNTQ needs at least for the counts of these entries; None where it is not known."""
    if popcount_s is not None:
        yield Target("one core, share of the VPOPCNTQ bound", 0.85, popcount_s / entries[-1].median_s)


def numkong_targets(entries: list[Entry]) -> Iterator[Target]:
    """The whole square on both sides, and NumKong's own half of it beside our whole."""
    for entry in entries:
        if entry.by == NAME:
            ours = lambda_entry(entries, entry.threads).median_s
            name = f"one layer, {entry.threads} threads, numkong's {entry.what.removeprefix('counts, ')} / ours"
            yield Target(name, 3, entry.median_s / ours)


def packing_targets(entries: list[PackEntry]) -> Iterator[Target]:
    for entry in entries:
        yield Target(f"packing {entry.name}, share of a memcpy", 0.6, entry.share)
