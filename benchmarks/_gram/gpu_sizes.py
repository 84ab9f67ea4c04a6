"""What is run on a GPU: the cells of every section, for a default, a quick and a full run, or of given sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from _gram.entry import Cell

N = (4096, 8192, 16384, 32768, 65536)
LAYERS = (1, 2, 4, 10, 20)
WIDTHS = (128, 512, 1024, 4096, 8192)


@dataclass(frozen=True)
class GpuSizes:
    """Cells of each section; packing in bytes of input; a torch peer that would need more than peer_seconds for one
    run is left out; never_stored None: no matvec of a Gram that fits no memory."""

    sweep: tuple[Cell, ...]
    headline: Cell
    never_stored: Cell | None
    one_layer: Cell
    packing: int
    repeats: int
    peer_seconds: float


def default_sizes() -> GpuSizes:
    """n, L and w one at a time around 16384, 10, 1024, and corners."""
    sweep = [Cell(n, 10, 1024) for n in N]
    sweep += [Cell(16384, layers, 1024) for layers in LAYERS if layers != 10]
    sweep += [Cell(16384, 10, width) for width in WIDTHS if width != 1024]
    sweep += [
        Cell(4096, 1, 128),
        Cell(65536, 1, 128),
        Cell(65536, 20, 128),
        Cell(4096, 20, 8192),
        Cell(65536, 20, 8192),
    ]
    return GpuSizes(
        sweep=tuple(sweep),
        headline=Cell(60000, 10, 1024),
        never_stored=Cell(500000, 10, 1024),
        one_layer=Cell(32768, 1, 32768),
        packing=2**30,
        repeats=21,
        peer_seconds=1.0,
    )


def quick_sizes() -> GpuSizes:
    """Well under a minute: few cells, few runs, the headline at its own size."""
    sweep = (Cell(4096, 4, 1024), Cell(16384, 10, 1024), Cell(16384, 20, 128), Cell(16384, 1, 8192))
    return replace(default_sizes(), sweep=sweep, never_stored=None, packing=2**28, repeats=5, peer_seconds=0.4)


def full_sizes() -> GpuSizes:
    """Every combination of n, L and w in the sweep."""
    return replace(default_sizes(), sweep=tuple(Cell(*sizes) for sizes in product(N, LAYERS, WIDTHS)), repeats=11)


def given_sizes(
    base: GpuSizes, n: Sequence[int] | None, layers: Sequence[int] | None, widths: Sequence[int] | None
) -> GpuSizes:
    """The sweep runs all combinations, every other section the largest of each; what is not given is as in `base`."""
    at = base.headline
    n, layers, widths = n or [at.n], layers or [at.layers], widths or [at.width]
    largest = Cell(max(n), max(layers), max(widths))
    return replace(
        base,
        sweep=tuple(Cell(*sizes) for sizes in product(n, layers, widths)),
        headline=largest,
        never_stored=None,
        one_layer=Cell(largest.n, 1, largest.width),
        packing=min(base.packing, 4 * largest.n * largest.bits_per_pair),
    )
