"""The speeds that the Gram is held to on an H200, and whether this run reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from _gram.entry import Cell, Entry
from _gram.gpu_peers import INT8
from _gram.gpu_sections import COUNTS, FLOATS, LAMBDA, MATVEC, PIXELS, operations
from _gram.packing import PackEntry
from _gram.targets import Target

WANTED = {LAMBDA: 20, PIXELS: 20, FLOATS: 8}  # times as fast as torch's int8 way
SHARE = {LAMBDA: 0.7, PIXELS: 0.7}  # of the limit


def headline_targets(entries: Sequence[Entry], ours: str, never_stored: Cell | None) -> Iterator[Target]:
    """The targets of section `headline`; what was not timed, or failed, leaves its own out."""
    times = {(e.what, e.by, e.cell): e for e in entries}
    for (what, by, cell), entry in times.items():
        if by != ours:
            continue
        name = f"{what}, {cell}"
        if what in WANTED and (what, INT8, cell) in times:
            yield Target(f"{name}, {INT8} / ours", WANTED[what], times[what, INT8, cell].median_s / entry.median_s)
        if what in SHARE and entry.share is not None:
            yield Target(f"{name}, share of the limit", SHARE[what], entry.share)
        if what == MATVEC and cell == never_stored:
            yield Target(f"{name}, ran without its Gram of {4 * cell.n**2 / 1e12:.1f} TB", 1, 1)
        elif what == MATVEC and (LAMBDA, ours, cell) in times:
            yield _matvec_target(name, entry, times[LAMBDA, ours, cell])


def _matvec_target(name: str, entry: Entry, gram: Entry) -> Target:
    """Faster than the Gram where writing that is the limit."""
    write_bound = gram.limit is not None and gram.limit.by == "writes"
    ratio = entry.median_s / gram.median_s
    return Target(f"{name} / {LAMBDA}", 1.0 if write_bound else 1.15, ratio, at_least=False)


def one_layer_targets(entries: Sequence[Entry], ours: str) -> Iterator[Target]:
    for entry in entries:
        if entry.what == COUNTS and entry.by == ours:
            rate = operations(entry) / entry.median_s / 1e15
            yield Target(f"{COUNTS}, {entry.cell}, 1e15 op/s", 8.6, rate)
            yield Target(f"{COUNTS}, {entry.cell}, 1e15 op/s, stretch", 11, rate)


def packing_targets(entries: Sequence[PackEntry]) -> Iterator[Target]:
    for entry in entries:
        yield Target(f"packing {entry.name}, bytes/s over those of a copy", 0.85, entry.share_of_moved)
