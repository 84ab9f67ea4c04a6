"""The roofline plot of the sweep: rate against bits per pair, below the limits of writing and of counting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _common.output import replacing

from _gram.entry import Entry
from _gram.portable import PORTABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PEER_MARKERS = {
    PORTABLE: "v",
    "torch float32": "x",
    "torch bfloat16": "+",
    "numkong": "^",
    "torch int8": "x",
    "torch float16": "+",
    "mma.sync": "s",
    "wgmma, no clusters": "D",
    "Triton": "^",
}
FILLED = "^sDv"
PEER_COLOUR, PORTABLE_COLOUR = "#777777", "#d95f02"
LIMIT_COLOUR = "#222222"


def plot_roofline(path: Path, ours: Sequence[Entry], others: Sequence[Entry], title: str) -> None:
    """One PNG. ours: the sweep of gatedops, with or without limits; others: portable and peers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colormaps, pyplot

    figure, axis = pyplot.subplots(figsize=(11, 6.5), layout="constrained")
    _draw_limits(axis, ours, [entry.cell.bits_per_pair for entry in [*ours, *others]])
    sizes = sorted({entry.cell.n for entry in ours})
    colours = colormaps["viridis_r"]
    for index, n in enumerate(sizes):
        shown = [entry for entry in ours if entry.cell.n == n]
        colour = colours(0.12 + 0.88 * index / max(1, len(sizes) - 1))
        _scatter(axis, shown, f"gatedops, n = {n}", marker="o", s=55, color=colour, edgecolors="white", linewidths=0.6)
    for name, marker in PEER_MARKERS.items():
        shown = [entry for entry in others if entry.by == name]
        if shown:
            style = {"edgecolors": "none"} if marker in FILLED else {"linewidths": 1.6}
            colour, label = (PORTABLE_COLOUR, f"gatedops, {name}") if name == PORTABLE else (PEER_COLOUR, name)
            _scatter(axis, shown, label, marker=marker, s=50, color=colour, **style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("bits per pair of points, L * w", fontsize=12)
    axis.set_ylabel("bit-pairs per second, each pair of points once", fontsize=12)
    axis.set_title(title, fontsize=13)
    axis.grid(alpha=0.25, which="major")
    axis.legend(fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _scatter(axis: Axes, entries: Sequence[Entry], label: str, **style: object) -> None:
    x = [entry.cell.bits_per_pair for entry in entries]
    axis.scatter(x, [entry.bit_pairs_per_second for entry in entries], label=label, zorder=3, **style)


def _draw_limits(axis: Axes, ours: Sequence[Entry], bits: Sequence[int]) -> None:
    """The counting limit, and the writing limit of the largest output: smaller ones may stay in a cache."""
    known = [entry for entry in ours if entry.limit is not None]
    if not known:
        return
    largest = max(known, key=lambda entry: entry.cell.n)
    assert largest.limit is not None
    counts = largest.cell.bit_pairs / largest.limit.counts_s
    writes = largest.cell.bit_pairs / largest.limit.writes_s / largest.cell.bits_per_pair
    low, high = min(bits) / 1.6, max(bits) * 1.6
    knee = min(max(counts / writes, low), high)
    style = {"color": LIMIT_COLOUR, "linewidth": 1.6, "zorder": 2}
    axis.plot([knee, high], [counts, counts], label=f"limit of counting: {counts:.3g} bit-pairs/s", **style)
    axis.plot(
        [low, knee],
        [writes * low, counts],
        linestyle="--",
        label=f"limit of writing to memory: {writes:.2g} pairs/s\n(float32, n = {largest.cell.n})",
        **style,
    )
    axis.set_xlim(low, high)
