"""Lambda of as many points as a whole data set has: into a new result, into a reused one, and without the matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _common.gram_speed import random_problem
from _common.options import available_memory
from _common.timing import interleaved_medians, readable_seconds

import gatedops
from _gram.entry import Cell, Entry, entry_of, gram_limit, require_right
from _gram.headline import COLUMNS
from _gram.sweep import Budget
from gatedops import backends

LAMBDA, NEW = "Lambda", "Lambda, a new (n, n)"
MATVEC = f"matvec, {COLUMNS} columns"
HEADER = ("what", "median", "runs", "best", "bit-pairs/s", "of limit")
SPARE = 1.25  # of the memory of the n x n result: gates, vectors, everything else


def bytes_of(cell: Cell) -> int:
    return int(SPARE * cell.n**2 * torch.float32.itemsize)


def fits(cell: Cell) -> bool:
    available = available_memory()
    return available is None or bytes_of(cell) <= available


def data_set(cell: Cell, report: dict[str, object], budget: Budget, seed: int) -> list[Entry]:
    """One n x n result at a time is alive. A new one is timed with the memory that the system gives it."""
    bits = random_problem(cell.n, cell.layers, cell.width, None, seed).bits
    isa, threads = backends.active_isa(), torch.get_num_threads()
    vectors = torch.randn(cell.n, COLUMNS, generator=torch.Generator().manual_seed(seed))
    entries = []

    def add(what: str, function: Callable[[], object]) -> None:
        timing = interleaved_medians({what: function}, budget.repeats, seconds=budget.seconds, label=what)[what]
        limit = gram_limit(cell, report, isa, threads) if what == LAMBDA else None
        entries.append(entry_of(what, "gatedops", cell, threads, isa, timing, limit))

    add(MATVEC, lambda: gatedops.npk_matvec(None, bits, vectors))
    add(NEW, lambda: gatedops.npk_gram(None, bits))
    out = torch.empty(cell.n, cell.n)
    require_right(lambda: gatedops.npk_gram(None, bits, out=out), bits, str(cell))
    add(LAMBDA, lambda: gatedops.npk_gram(None, bits, out=out))
    return entries


def data_set_rows(entries: list[Entry]) -> list[tuple[str, ...]]:
    """Cells under HEADER."""
    rows = []
    for entry in entries:
        times = readable_seconds(entry.median_s), str(entry.runs), readable_seconds(entry.best_s)
        share = "-" if entry.share is None or entry.limit is None else f"{entry.share:.0%} ({entry.limit.by})"
        rows.append((entry.what, *times, f"{entry.bit_pairs_per_second:.3g}", share))
    return rows
