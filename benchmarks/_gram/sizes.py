"""What is run: the cells of every section on a CPU and on a GPU, in a default, a quick and a full run, or as given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from _common.problems import Cell

Axis = Sequence[int]


@dataclass(frozen=True)
class Budget:
    """Runs of one contestant: `repeats`, or on a CPU fewer if they take more than `seconds` together."""

    repeats: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """cells         those of each section ("never stored": matvecs whose Gram fits into no memory)
    packing          bytes of an input
    deep, wide       budgets of sections with few cells, and of those with many or large ones
    peer_seconds     a peer that would take longer for one run is left out of the sweep, as portable is on a CPU
    """

    cells: dict[str, tuple[Cell, ...]]
    packing: int
    deep: Budget
    wide: Budget
    peer_seconds: float

    def given(self, n: Axis | None, layers: Axis | None, widths: Axis | None) -> Sizes:
        """The sweep runs all combinations, every other section the largest of each; what is not given is that of the
        headline here."""
        at = self.cells["headline"][0]
        n, layers, widths = n or [at.n], layers or [at.layers], widths or [at.width]
        top = Cell(max(n), max(layers), max(widths))
        cells = dict.fromkeys(("headline", "data-set", "one-core", "soft"), (top,)) | {
            "sweep": _all(n, layers, widths),
            "one-layer": (Cell(top.n, 1, top.width),),
            "by n": _all((top.n // 2, top.n), [top.layers], [top.width]),
            "by bits": _all([top.n], (top.layers, 2 * top.layers), [top.width]),
        }
        return replace(self, cells=cells, packing=min(self.packing, 4 * top.n * top.bits_per_pair))


def _all(n: Axis, layers: Axis, widths: Axis) -> tuple[Cell, ...]:
    return tuple(Cell(*sizes) for sizes in product(n, layers, widths))


def _star(axes: tuple[Axis, Axis, Axis], centre: Cell, *corners: Cell) -> tuple[Cell, ...]:
    """n, L and w one at a time around the centre, and corners."""
    (n, layers, widths), at = axes, centre
    lines = _all(n, [at.layers], [at.width]), _all([at.n], layers, [at.width]), _all([at.n], [at.layers], widths)
    return tuple(dict.fromkeys([*lines[0], *lines[1], *lines[2], *corners]))


CPU_AXES = ((1024, 2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 20), (64, 256, 1024, 4096, 8192))
CPU_CORNERS = Cell(1024, 1, 64), Cell(1024, 20, 8192), Cell(32768, 1, 64), Cell(16384, 20, 256), Cell(8192, 1, 8192)
CPU_CELLS = {
    "sweep": _star(CPU_AXES, Cell(4096, 4, 1024), *CPU_CORNERS),
    "headline": (Cell(4096, 4, 1024),),
    "data-set": (Cell(60_000, 5, 128),),
    "one-core": (Cell(8192, 4, 4096),),
    "one-layer": (Cell(4096, 1, 1024),),
    "by n": _all((2048, 4096, 8192, 16384), [4], [1024]),
    "by bits": (Cell(4096, 4, 1024), Cell(4096, 10, 1024), Cell(4096, 4, 8192), Cell(4096, 20, 4096)),
    "soft": (Cell(2048, 4, 1024),),
}
CPU_FEW = {
    "sweep": (Cell(1024, 4, 1024), Cell(1024, 20, 256), Cell(2048, 1, 64), Cell(2048, 4, 1024)),
    "headline": (Cell(2048, 4, 1024),),
    "data-set": (Cell(10_000, 5, 128),),
    "one-core": (Cell(2048, 4, 4096),),
    "one-layer": (Cell(2048, 1, 1024),),
    "by n": _all((1024, 2048, 4096), [4], [1024]),
    "by bits": _all([2048], (4, 8, 16), [1024]),
    "soft": (Cell(1024, 4, 256),),
}
CPU_ALL = CPU_CELLS | {"sweep": _all(*CPU_AXES)}
GPU_AXES = ((4096, 8192, 16384, 32768, 65536), (1, 2, 4, 10, 20), (128, 512, 1024, 4096, 8192))
GPU_CORNERS = (*_all((4096, 65536), [1], [128]), Cell(65536, 20, 128), *_all((4096, 65536), [20], [8192]))
GPU_CELLS = {
    "sweep": _star(GPU_AXES, Cell(16384, 10, 1024), *GPU_CORNERS),
    "headline": (Cell(60_000, 10, 1024),),
    "never stored": (Cell(500_000, 10, 1024),),
    "one-layer": (Cell(32768, 1, 32768),),
}
GPU_FEW = GPU_CELLS | {
    "sweep": (Cell(4096, 4, 1024), Cell(16384, 10, 1024), Cell(16384, 20, 128), Cell(16384, 1, 8192)),
    "never stored": (),
}
GPU_ALL = GPU_CELLS | {"sweep": _all(*GPU_AXES)}
KINDS = {
    ("cpu", "default"): Sizes(CPU_CELLS, 2**27, deep=Budget(21, 14.0), wide=Budget(11, 2.0), peer_seconds=1.5),
    ("cpu", "quick"): Sizes(CPU_FEW, 2**26, deep=Budget(7, 2.0), wide=Budget(5, 1.0), peer_seconds=0.3),
    ("cpu", "full"): Sizes(CPU_ALL, 2**27, deep=Budget(21, 14.0), wide=Budget(11, 3.0), peer_seconds=5.0),
    ("cuda", "default"): Sizes(GPU_CELLS, 2**30, deep=Budget(21), wide=Budget(21), peer_seconds=1.0),
    ("cuda", "quick"): Sizes(GPU_FEW, 2**28, deep=Budget(5), wide=Budget(5), peer_seconds=0.4),
    ("cuda", "full"): Sizes(GPU_ALL, 2**30, deep=Budget(11), wide=Budget(11), peer_seconds=1.0),
}


def chosen_sizes(args: argparse.Namespace) -> Sizes:
    """Returns the sizes that the command line asks for."""
    sizes = KINDS[args.device, "quick" if args.quick else "full" if args.full else "default"]
    given = (args.n, args.layers, args.width)
    return sizes.given(*given) if any(given) else sizes
