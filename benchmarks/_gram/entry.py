"""One timed function of the Gram benchmark, and the least time that the machine allows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from _common.bandwidth import write_bandwidth
from _common.machine import bit_pair_bound
from _common.timing import Timing
from torch import Tensor

from gatedops import GateBits, reference

CHECKED_ROWS, CHECKED_COLUMNS = 64, 256


@dataclass(frozen=True)
class Cell:
    """n points, `layers` layers of `width` gates."""

    n: int
    layers: int
    width: int

    @property
    def bits_per_pair(self) -> int:
        return self.layers * self.width

    @property
    def bit_pairs(self) -> int:
        """Of the symmetric Gram: every unordered pair of points once, the diagonal with it."""
        return self.n * (self.n + 1) // 2 * self.bits_per_pair

    def __str__(self) -> str:
        return f"n={self.n}, {self.layers} x {self.width}"


@dataclass(frozen=True)
class Limit:
    """The least seconds for a Gram: looking at every bit-pair, or writing the output, whichever takes longer."""

    counts_s: float
    writes_s: float

    @property
    def seconds(self) -> float:
        return max(self.counts_s, self.writes_s)

    @property
    def by(self) -> str:
        return "counts" if self.counts_s >= self.writes_s else "writes"


@dataclass(frozen=True)
class Entry:
    """One function on one cell; limit is None where none is known or where inputs take part."""

    what: str
    by: str
    cell: Cell
    threads: int
    instruction_set: str | None
    median_s: float
    best_s: float
    runs: int
    limit: Limit | None = None

    @property
    def share(self) -> float | None:
        """Of the limit, 0 to 1."""
        return None if self.limit is None else self.limit.seconds / self.median_s

    @property
    def bit_pairs_per_second(self) -> float:
        return self.cell.bit_pairs / self.median_s

    def to_json(self) -> dict[str, object]:
        limited_by = None if self.limit is None else self.limit.by
        derived = {"share_of_limit": self.share, "limited_by": limited_by}
        return asdict(self) | derived | {"bit_pairs_per_second": self.bit_pairs_per_second}


def entry_of(
    what: str, by: str, cell: Cell, threads: int, isa: str | None, timing: Timing, limit: Limit | None = None
) -> Entry:
    return Entry(what, by, cell, threads, isa, timing.median, timing.best, len(timing.samples), limit)


def gram_limit(cell: Cell, report: dict[str, object], isa: str, threads: int) -> Limit | None:
    """For Lambda alone in float32 with this instruction set on this many threads."""
    rate = bit_pair_bound(report | {"instruction_set": isa, "threads": threads}).bit_pairs_per_second
    if rate is None:
        return None
    size = cell.n**2 * torch.float32.itemsize
    return Limit(cell.bit_pairs / rate, size / write_bandwidth(size, threads))


def require_right(gram: Callable[[], Tensor], bits: GateBits, what: str) -> None:
    """RuntimeError unless a sample of Lambda is bit for bit that of the reference: a wrong result has no speed."""
    rows = torch.linspace(0, bits.n - 1, min(bits.n, CHECKED_ROWS)).long()
    columns = torch.linspace(bits.n - 1, 0, min(bits.n, CHECKED_COLUMNS)).long()
    expected = reference.npk_gram(None, bits[rows], None, bits[columns])
    if not gram()[rows][:, columns].equal(expected):
        raise RuntimeError(f"gatedops is wrong on {what}")
