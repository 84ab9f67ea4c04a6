"""The plot of conv_npk.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _common.output import replacing
from _common.plots import COLOURS, draw_grams
from _common.timing import readable_seconds
from torch import Tensor

from _conv_npk.shifts import Shifts
from _conv_npk.speed import Entry
from _conv_npk.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure


def plot_conv_npk(
    path: Path,
    study: Study,
    labels: Tensor,
    classes: Sequence[str],
    shifts: Sequence[Shifts],
    entries: Sequence[Entry],
    title: str,
) -> None:
    """One PNG: both Grams sorted by class, the kernel over rotations of one image, the time per pair."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = pyplot.figure(figsize=(14, 12), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    figure.suptitle(title, fontsize=15)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.35, 1), squeeze=False)[:, 0]
    captions = {
        f"NPK, {name}: test accuracy {study.figures[name].accuracy:.1%}": image for name, image in study.images.items()
    }
    # Averages over pixels make all images alike: from 0 on, the colours would hardly differ.
    darkest = min(float(torch.quantile(image.flatten().double(), 0.01)) for image in captions.values())
    draw_grams(top, top.subplots(1, len(captions)), captions, labels, classes, darkest)
    left, right = bottom.subfigures(1, 2, width_ratios=(1, 1.25), squeeze=False)[0]
    _draw_shifts(left, shifts)
    _draw_times(right.subplots(), entries)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def _draw_shifts(figure: SubFigure, shifts: Sequence[Shifts]) -> None:
    axes = figure.subplots(1, len(shifts))
    reach = max(float((one.map - 1).abs().max()) for one in shifts)
    for axis, one in zip(axes, shifts, strict=True):
        shown = axis.imshow(one.map.numpy(), vmin=1 - reach, vmax=1 + reach, cmap="RdBu_r", interpolation="nearest")
        axis.set_title(f"{one.padding} padding\n(max - min) / mean: {one.spread:.1e}", fontsize=12)
        axis.set_xlabel("columns rotated", fontsize=11)
    axes[0].set_ylabel("rows rotated", fontsize=11)
    figure.suptitle("H(x, x' rotated) / its mean over rotations", fontsize=13)
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8)


def _draw_times(axis: Axes, entries: Sequence[Entry]) -> None:
    """Horizontal bars on a logarithmic axis, one group per problem."""
    contestants = list(dict.fromkeys(entry.by for entry in entries))
    position, ticks = 0.0, {}
    for problem in dict.fromkeys(entry.problem for entry in entries):
        group = [entry for entry in entries if entry.problem == problem]
        ticks[f"{problem}\nimages"] = position + (len(group) - 1) / 2
        for entry in group:
            axis.barh(position, entry.us_per_pair, height=0.85, color=COLOURS[contestants.index(entry.by)])
            ratio = "" if entry.by == "gatedops" else f"  ({entry.ratio:,.0f}x)"
            label = readable_seconds(entry.us_per_pair / 1e6) + ratio
            axis.text(entry.us_per_pair * 1.1, position, label, va="center", fontsize=10)
            position += 1
        position += 0.8
    axis.set_yticks(list(ticks.values()), list(ticks), fontsize=11)
    axis.invert_yaxis()
    axis.set_xscale("log")
    times = [entry.us_per_pair for entry in entries]
    axis.set_xlim(min(times) / 3, max(times) * 200)
    axis.set_xlabel("microseconds per computed pair (logarithmic)", fontsize=12)
    axis.set_title("4 convolutions of 64 channels, global average pooling", fontsize=13)
    axis.tick_params(axis="x", labelsize=11)
    handles = [axis.barh(0, 0, color=COLOURS[index], label=by) for index, by in enumerate(contestants)]
    axis.legend(handles=handles, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
