"""Draws the curves of a run as one picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from _common.plots import new_figure, save

from _dgn_training.report import Figure, Row
from _dgn_training.run import Result
from _dgn_training.setup import Setup, Task
from _dgn_training.variants import CURVE, PAPERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = {"relu": "#222222", "fl": "#1b6ca8", "dl": "#e08e45", "fr-ii": "#4f9d69", "fr-di": "#b0506f"}
OURS, REGRESSION, THEIRS = "#1b6ca8", "#e08e45", "#222222"


def draw(path: Path, setup: Setup, task: Task, rows: Sequence[Row], results: Mapping[str, Result]) -> None:
    """Writes one PNG: the test accuracy by epoch, by stage of the features' training, and of all variants."""
    by_name = {row.name: row for row in rows}
    figure = new_figure(15, 10, 0.12)
    figure.suptitle(
        f"Deep gated networks on {setup.data}: {setup.arch}, {setup.optimizer} {setup.learning_rate:g}, "
        f"{setup.epochs} epochs, {setup.seeds} seeds",
        fontsize=15,
    )
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05), squeeze=False)[0]
    regression = f"NPK regression, same gates, {setup.points_of(task):,} points"
    _draw_variants(right, rows, regression)
    shown = [name for name in COLOURS if name in by_name]
    staged = [name for name in CURVE if name in by_name]
    upper, lower = left.subplots(2, 1)
    _draw_epochs(upper, {name: results[name].history.accuracy for name in shown}, by_name)
    _draw_stages(lower, setup, [by_name[name] for name in staged], by_name, regression)
    save(figure, path)


def _draw_epochs(axis: Axes, curves: Mapping[str, list[list[float]]], rows: Mapping[str, Row]) -> None:
    """Draws the mean over the seeds, with a band of one standard deviation."""
    lowest = 100.0
    for name, accuracy in curves.items():
        figures = [Figure.of(of_seeds) for of_seeds in accuracy]
        epochs = range(1, len(figures) + 1)
        mean = [figure.mean for figure in figures]
        axis.plot(epochs, mean, color=COLOURS[name], label=rows[name].title, linewidth=1.8)
        spread = [figure.std or 0.0 for figure in figures]
        edges = [[m - s for m, s in zip(mean, spread, strict=True)], [m + s for m, s in zip(mean, spread, strict=True)]]
        axis.fill_between(epochs, *edges, color=COLOURS[name], alpha=0.15, linewidth=0)
        lowest = min(lowest, statistics.median(mean))
    axis.set_ylim(bottom=lowest - 0.5 * (100 - lowest), top=100)
    _finish(axis, "test accuracy by epoch", "epoch", "test accuracy, %")


def _draw_stages(axis: Axes, setup: Setup, staged: Sequence[Row], rows: Mapping[str, Row], regression: str) -> None:
    """Draws FL-0 .. FL-6, and kernel regression with the same gates, over the epochs that trained the gates.

    regression: names the kernel regression in the legend.
    """
    epochs = [setup.stages[CURVE.index(row.name)] for row in staged]
    _with_bars(axis, epochs, [row.best for row in staged], OURS, "o", "FL-0 .. FL-6, maximum over epochs")
    if staged and staged[0].npk is not None:
        _with_bars(axis, epochs, [row.npk for row in staged], REGRESSION, "s", regression)
    for name, style in (("relu", "-"), ("fr-ii", ":")):
        if name in rows:
            axis.axhline(rows[name].best.mean, color=COLOURS[name], linestyle=style, label=rows[name].title)
    _finish(
        axis,
        "gates from stages of the ReLU network's training",
        "epochs the ReLU network had trained",
        "test accuracy, %",
    )


def _with_bars(
    axis: Axes, x: Sequence[float], figures: Sequence[Figure | None], colour: str, marker: str, label: str
) -> None:
    known = [(place, figure) for place, figure in zip(x, figures, strict=True) if figure is not None]
    mean, spread = [figure.mean for _, figure in known], [figure.std or 0.0 for _, figure in known]
    axis.errorbar([place for place, _ in known], mean, spread, color=colour, marker=marker, capsize=3, label=label)


def _draw_variants(canvas: Canvas, rows: Sequence[Row], regression: str) -> None:
    """Draws each variant's published accuracy, maximum over epochs, last epoch and kernel regression on one line."""
    axis = canvas.subplots()
    order = [row for row in rows if row.name in PAPERS] + [row for row in rows if row.name not in PAPERS]
    marks = (
        ("published", [row.published for row in order], "D", THEIRS),
        ("maximum over epochs", [row.best for row in order], "o", OURS),
        ("last epoch", [row.last for row in order], "|", OURS),
        (regression, [row.npk for row in order], "s", REGRESSION),
    )
    for shift, (label, figures, marker, colour) in zip((-0.24, -0.08, 0.08, 0.24), marks, strict=True):
        known = [(place, figure) for place, figure in enumerate(figures) if figure is not None]
        if not known:
            continue
        axis.errorbar(
            [figure.mean for _, figure in known],
            [place + shift for place, _ in known],
            xerr=[figure.std or 0.0 for _, figure in known],
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=2,
            markersize=6,
            label=label,
        )
    axis.set_yticks(range(len(order)), [row.title for row in order])
    axis.invert_yaxis()
    _finish(axis, "all variants, mean and standard deviation over the seeds", "test accuracy, %", "")
    axis.legend(fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)


def _finish(axis: Axes, title: str, below: str, left: str) -> None:
    axis.set_title(title, fontsize=13)
    axis.set_xlabel(below, fontsize=12)
    axis.set_ylabel(left, fontsize=12)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=10.5)
