"""The plot of gated_linear.py: speeds against eager torch, one panel for each kind of net."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _common.output import replacing

from _gated_linear.measure import EAGER, PRODUCTS, Entry
from _gated_linear.nets import KINDS

COLOURS = ("#1b6ca8", "#e08e45", "#c9a66b", "#b5b5b5")


def plot_speeds(path: Path, entries: Sequence[Entry], title: str) -> None:
    """One PNG: bars for forward and backward against eager torch, a mark where only the matrix products are left."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in KINDS if any(entry.kind == kind for entry in entries)]
    names = [name for name in dict.fromkeys(entry.by for entry in entries) if name not in (EAGER, PRODUCTS)]
    sizes = list(dict.fromkeys((entry.batch, entry.width, entry.depth) for entry in entries))
    figure, axes = pyplot.subplots(
        1,
        len(kinds),
        figsize=(4.6 * len(kinds), 1.6 + 0.95 * len(sizes)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=14)
    found = {(entry.kind, entry.batch, entry.width, entry.depth, entry.by): entry.speed for entry in entries}
    height = 0.8 / max(1, len(names))
    for axis, kind in zip(axes[0], kinds, strict=True):
        for index, name in enumerate(names):
            for place, size in enumerate(sizes):
                speed = found.get((kind, *size, name))
                if speed is None:
                    continue
                at = place + (index - (len(names) - 1) / 2) * height
                axis.barh(at, speed, height * 0.92, color=COLOURS[index], label=name if place == 0 else None)
                axis.text(speed + 0.01, at, f"{speed:.2f}", va="center", fontsize=9)
        for place, size in enumerate(sizes):
            limit = found.get((kind, *size, PRODUCTS))
            if limit is not None:
                label = "matrix products alone" if place == 0 else None
                axis.plot([limit, limit], [place - 0.45, place + 0.45], color="black", linewidth=1.6, label=label)
        axis.axvline(1, color="#555555", linewidth=0.8, linestyle="--")
        axis.set_title(KINDS[kind].replace(", ", "\n", 1), fontsize=12)
        axis.set_xlim(0, max(speed for (one, *_), speed in found.items() if one == kind) * 1.15)
        axis.set_xlabel("speed, torch eager = 1", fontsize=11)
    axes[0][0].set_yticks(range(len(sizes)), [f"{b} x {w}\n{d} layers" for b, w, d in sizes], fontsize=11)
    axes[0][0].invert_yaxis()
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=11, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
