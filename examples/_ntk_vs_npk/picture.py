"""Draws the plot of ntk_vs_npk.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _common.plots import new_figure, save

from _ntk_vs_npk.draws import Concentration, Drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

BLUE, ORANGE, GREY = "#1b6ca8", "#e08e45", "#8d99ae"


def plot_concentration(path: Path, drawn: Sequence[Drawn], figures: Sequence[Concentration], title: str) -> None:
    """Writes one PNG: the NPK and single draws of K^V, the ratio of each draw to the NPK, and its scatter by width."""
    figure = new_figure(13.5, 9.5)
    figure.suptitle(title, fontsize=15)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.05), squeeze=False)[:, 0]
    _draw_kernels(top, drawn)
    left, right = bottom.subplots(1, 2)
    _draw_ratios(left, drawn)
    _draw_scatter(right, figures)
    save(figure, path)


def _draw_kernels(figure: SubFigure, drawn: Sequence[Drawn]) -> None:
    """Shows the first draw of the narrowest and of the widest net beside the expectation of the widest net."""
    narrow, wide = drawn[0], drawn[-1]
    panels = {
        f"one draw of $K^V$, width {narrow.width}": narrow.kernels[0] / narrow.expected.diagonal().mean(),
        f"one draw of $K^V$, width {wide.width}": wide.kernels[0] / wide.expected.diagonal().mean(),
        f"$d\\,\\sigma^{{2(d-1)}} H$, width {wide.width}": wide.expected / wide.expected.diagonal().mean(),
    }
    axes = figure.subplots(1, len(panels))
    brightest = float(max(image.max() for image in panels.values()))
    for axis, (name, image) in zip(axes, panels.items(), strict=True):
        shown = axis.imshow(image.numpy(), vmin=0, vmax=brightest, cmap="magma", interpolation="nearest")
        axis.set_title(name, fontsize=13)
        axis.set_xlabel("point", fontsize=11)
    axes[0].set_ylabel("point", fontsize=11)
    figure.colorbar(shown, ax=axes, shrink=0.85).set_label("over the mean of the expected diagonal", fontsize=11)


def _draw_ratios(axis: Axes, drawn: Sequence[Drawn]) -> None:
    """Draws one dot for each draw of K^V: the mean of its diagonal, divided by the expectation."""
    for place, one in enumerate(drawn):
        ratios = one.kernels.diagonal(dim1=1, dim2=2).mean(1) / one.expected.diagonal().mean()
        spread = [place + 0.3 * (index / max(1, len(ratios) - 1) - 0.5) for index in range(len(ratios))]
        axis.plot(spread, ratios, ".", color=BLUE, markersize=5, alpha=0.5, label="one draw" if place == 0 else None)
        label = "mean of the draws" if place == 0 else None
        axis.plot([place - 0.3, place + 0.3], [ratios.mean()] * 2, color=ORANGE, linewidth=2.5, label=label)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set_xticks(range(len(drawn)), [str(one.width) for one in drawn])
    axis.set_xlabel("width", fontsize=12)
    axis.set_ylabel("trace of $K^V$ / trace of $d\\,\\sigma^{2(d-1)} H$", fontsize=12)
    axis.set_title("the mean is the path kernel at every width", fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=11)


def _draw_scatter(axis: Axes, figures: Sequence[Concentration]) -> None:
    widths = [one.width for one in figures]
    axis.loglog(widths, [one.std_over_mean for one in figures], "o-", color=BLUE, label="std / mean of an entry")
    axis.loglog(widths, [one.distance for one in figures], "s-", color=ORANGE, label="distance of a draw, relative")
    guide = [figures[-1].std_over_mean * (widths[-1] / width) ** 0.5 for width in widths]
    axis.loglog(widths, guide, "--", color=GREY, label="$1 / \\sqrt{width}$")
    for one in figures:
        at = (one.width, one.std_over_mean)
        axis.annotate(f"{one.std_over_mean:.2f}", at, (0, -16), textcoords="offset points", ha="center", fontsize=10)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("width", fontsize=12)
    axis.set_ylabel("relative scatter", fontsize=12)
    axis.set_title("a single draw comes closer with the width", fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=11)
