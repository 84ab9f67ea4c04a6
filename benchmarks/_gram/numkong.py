"""NumKong's dots_symmetric on packed bits, the best published peer for one layer: optional."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from _common.gram_speed import random_problem
from _common.timing import interleaved_medians, readable_seconds
from torch import Tensor

import gatedops
from _gram.entry import Cell, Entry, entry_of, gram_limit
from _gram.headline import lambda_entry, lambda_on, threads
from _gram.sweep import Budget
from gatedops import GateBits, backends

NAME = "numkong"
CHECKED_ROWS = 64
HEADER = ("what", "by", "threads", "median", "runs", "best", "bit-pairs/s", "/ Lambda")


def numkong_version() -> str | None:
    """None where it is not installed."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return None


UPPER, SQUARE = "counts, upper triangle", "counts, whole square"


class DotsSymmetric:
    """uint32 counts of one layer, upper triangle only, into a reused buffer; its own threads."""

    def __init__(self, bits: GateBits, count: int):
        self.numkong = importlib.import_module(NAME)
        layer = bits.layers[0]
        words = bits.words[:, layer.first_word : layer.first_word + layer.words].contiguous()
        self.bytes, self.count = words.numpy().view(np.uint8), count
        self.out = self.numkong.zeros((bits.n, bits.n), dtype="uint32")

    def __call__(self) -> Tensor:
        self.numkong.dots_symmetric(self.bytes, dtype="uint1", out=self.out, threads=self.count)
        return torch.from_numpy(np.asarray(self.out).view(np.int32))


class DotsSquare:
    """The same and the lower triangle, as everyone who uses the Gram has to add it. Strips of a few rows, copied where
    they belong, are the fastest that torch and NumPy offer: a fifth of the time of a sum with the transpose."""

    STRIP = 32

    def __init__(self, upper: DotsSymmetric):
        self.upper = upper

    def __call__(self) -> Tensor:
        counts = self.upper()
        for i in range(0, len(counts), self.STRIP):
            end = i + self.STRIP
            counts[end:, i:end] = counts[i:end, end:].T
            diagonal = counts[i:end, i:end]
            diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        return counts


def one_layer(cell: Cell, report: dict[str, object], budget: Budget, seed: int) -> list[Entry]:
    """One layer on all threads and on one: our Lambda (full square, reused), our counts, NumKong's counts."""
    bits = random_problem(cell.n, 1, cell.width, None, seed).bits
    out, isa = torch.empty(cell.n, cell.n), backends.active_isa()
    entries = []
    for count in sorted({1, torch.get_num_threads()}, reverse=True):
        with threads(count):
            functions: dict[str, Callable[[], Tensor]] = {
                "Lambda": lambda_on(isa, bits, out),
                "counts, a new (1, n, n)": lambda: gatedops.gate_overlap(bits),
            }
            if numkong_version() is not None:
                upper = DotsSymmetric(bits, count)
                functions[UPPER] = _checked(upper, bits, upper_only=True)
                functions[SQUARE] = _checked(DotsSquare(DotsSymmetric(bits, count)), bits, upper_only=False)
            times = interleaved_medians(functions, budget.repeats, seconds=budget.seconds, label=f"{cell}")
        for what, timing in times.items():
            theirs = what in (UPPER, SQUARE)
            limit = gram_limit(cell, report, isa, count) if what == "Lambda" else None
            by = NAME if theirs else "gatedops"
            entries.append(entry_of(what, by, cell, count, None if theirs else isa, timing, limit))
    return entries


def layer_rows(entries: list[Entry]) -> list[tuple[str, ...]]:
    """Cells under HEADER."""
    rows = []
    for entry in entries:
        ratio = entry.median_s / lambda_entry(entries, entry.threads).median_s
        times = readable_seconds(entry.median_s), str(entry.runs), readable_seconds(entry.best_s)
        rate = f"{entry.bit_pairs_per_second:.3g}"
        rows.append((entry.what, entry.by, str(entry.threads), *times, rate, f"{ratio:.2f}x"))
    return rows


def _checked(peer: Callable[[], Tensor], bits: GateBits, *, upper_only: bool) -> Callable[[], Tensor]:
    """RuntimeError unless it counts what we count: another task would be no peer."""
    rows = torch.linspace(0, bits.n - 1, min(bits.n, CHECKED_ROWS)).long()
    compared = torch.arange(bits.n) >= (rows[:, None] if upper_only else 0)
    ours = gatedops.gate_overlap(bits[rows], bits)[0]
    if not peer()[rows].where(compared, 0).equal(ours.where(compared, 0)):
        raise RuntimeError(f"numkong {numkong_version()} and gatedops count differently")
    return peer
