"""What is run: the cells of every section, for a default, a quick and a full run, or of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from _gram.entry import Cell
from _gram.sweep import Budget

N = (1024, 2048, 4096, 8192, 16384, 32768)
LAYERS = (1, 2, 4, 8, 20)
WIDTHS = (64, 256, 1024, 4096, 8192)


@dataclass(frozen=True)
class Sizes:
    """Cells of each section; packing in bytes of input."""

    sweep: tuple[Cell, ...]
    headline: Cell
    data_set: Cell
    one_core: Cell
    one_layer: Cell
    by_n: tuple[Cell, ...]
    by_bits: tuple[Cell, ...]
    soft: Cell
    packing: int
    budget: Budget
    sweep_budget: Budget


def default_sizes() -> Sizes:
    """n, L and w one at a time around 4096, 4, 1024, and corners."""
    sweep = [Cell(n, 4, 1024) for n in N]
    sweep += [Cell(4096, layers, 1024) for layers in LAYERS if layers != 4]
    sweep += [Cell(4096, 4, width) for width in WIDTHS if width != 1024]
    sweep += [Cell(1024, 1, 64), Cell(1024, 20, 8192), Cell(32768, 1, 64), Cell(16384, 20, 256), Cell(8192, 1, 8192)]
    return Sizes(
        sweep=tuple(sweep),
        headline=Cell(4096, 4, 1024),
        data_set=Cell(60_000, 5, 128),
        one_core=Cell(8192, 4, 4096),
        one_layer=Cell(4096, 1, 1024),
        by_n=tuple(Cell(n, 4, 1024) for n in N[1:5]),
        by_bits=(Cell(4096, 4, 1024), Cell(4096, 10, 1024), Cell(4096, 4, 8192), Cell(4096, 20, 4096)),
        soft=Cell(2048, 4, 1024),
        packing=2**27,
        budget=Budget(repeats=21, seconds=14.0, peer_seconds=2.0),
        sweep_budget=Budget(repeats=11, seconds=2.0, peer_seconds=1.5),
    )


def quick_sizes() -> Sizes:
    """A minute or less; the figures are rough."""
    return Sizes(
        sweep=(Cell(1024, 4, 1024), Cell(1024, 20, 256), Cell(2048, 1, 64), Cell(2048, 4, 1024)),
        headline=Cell(2048, 4, 1024),
        data_set=Cell(10_000, 5, 128),
        one_core=Cell(2048, 4, 4096),
        one_layer=Cell(2048, 1, 1024),
        by_n=tuple(Cell(n, 4, 1024) for n in (1024, 2048, 4096)),
        by_bits=tuple(Cell(2048, layers, 1024) for layers in (4, 8, 16)),
        soft=Cell(1024, 4, 256),
        packing=2**26,
        budget=Budget(repeats=7, seconds=2.0, peer_seconds=1.0),
        sweep_budget=Budget(repeats=5, seconds=1.0, peer_seconds=0.3),
    )


def full_sizes() -> Sizes:
    """Every combination of n, L and w in the sweep: about an hour on two cores."""
    cells = tuple(Cell(*sizes) for sizes in product(N, LAYERS, WIDTHS))
    budget = Budget(repeats=11, seconds=3.0, peer_seconds=5.0)
    return Sizes(**vars(default_sizes()) | {"sweep": cells, "sweep_budget": budget})


def given_sizes(
    base: Sizes, n: Sequence[int] | None, layers: Sequence[int] | None, widths: Sequence[int] | None
) -> Sizes:
    """The sweep runs all combinations, every other section the largest of each; what is not given is as in `base`."""
    at = base.headline
    n, layers, widths = n or [at.n], layers or [at.layers], widths or [at.width]
    largest = Cell(max(n), max(layers), max(widths))
    halves = (largest.n // 2 or 1, largest.n)
    return Sizes(
        sweep=tuple(Cell(*sizes) for sizes in product(n, layers, widths)),
        headline=largest,
        data_set=largest,
        one_core=largest,
        one_layer=Cell(largest.n, 1, largest.width),
        by_n=tuple(Cell(half, largest.layers, largest.width) for half in halves),
        by_bits=tuple(Cell(largest.n, times * largest.layers, largest.width) for times in (1, 2)),
        soft=largest,
        packing=min(base.packing, 4 * largest.n * largest.bits_per_pair),
        budget=base.budget,
        sweep_budget=base.sweep_budget,
    )
