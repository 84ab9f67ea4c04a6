"""How time grows: with n at a fixed net, with the bits per pair at a fixed n, both where counting is the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from _common.timing import readable_seconds

from _gram.entry import Cell, Entry
from _gram.sweep import Budget, exponent, sweep

HEADER = ("cells", "times", "time ~ size ^")


@dataclass(frozen=True)
class Scaling:
    """The exponent of `by` ("n" or "bits per pair") in the time of the entries."""

    by: str
    entries: list[Entry]

    @property
    def exponent(self) -> float:
        return exponent([self.size(entry) for entry in self.entries], [entry.median_s for entry in self.entries])

    def size(self, entry: Entry) -> int:
        return entry.cell.n if self.by == "n" else entry.cell.bits_per_pair

    def row(self) -> tuple[str, ...]:
        sizes = ", ".join(str(self.size(entry)) for entry in self.entries)
        times = ", ".join(readable_seconds(entry.median_s) for entry in self.entries)
        return f"{self.by} = {sizes}", times, f"{self.exponent:.3f}"

    def to_json(self) -> dict[str, object]:
        return {"by": self.by, "exponent": self.exponent, "entries": [entry.to_json() for entry in self.entries]}


def scaling(
    by_n: Sequence[Cell], by_bits: Sequence[Cell], report: dict[str, object], budget: Budget, seed: int
) -> list[Scaling]:
    return [
        Scaling(by, sweep(cells, report, budget, peers=False, seed=seed))
        for by, cells in (("n", by_n), ("bits per pair", by_bits))
    ]
