"""Draws mnist_regression.png: accuracy, residuals, and time and memory beside the dense way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common.machine import facts_line
from _common.plots import COLOURS, DARK, LIGHT, new_figure, save

from _kernel_regression.fits import Dense, Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE = COLOURS[:2]
OF_GATES = {"untrained": (ORANGE, "s"), "trained": (BLUE, "o")}
NAMES = {"digits": "digits", "mnist": "MNIST"}
# Ticks of the accuracy's axis, as errors in %.
ERRORS = (0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 80)
SMALLEST_ERROR = 0.05


def draw(path: Path, content: Mapping[str, Any], fits: Mapping[str, Sequence[Fit]], dense: Sequence[Dense]) -> None:
    """Writes the PNG. content: that of the JSON."""
    figure, options = new_figure(13.5, 10, 0.1), content["options"]
    figure.suptitle(
        f"Kernel regression with the gates of a ReLU network: {content['kernel']} on {NAMES[options['data']]}, "
        f"ridge {options['ridge']:g}",
        fontsize=16,
    )
    (accuracy, residuals), (time, memory) = figure.subplots(2, 2)
    _draw_accuracy(accuracy, fits, content)
    _draw_residuals(residuals, fits, options["tol"])
    ours = fits["trained"]
    _draw_cost(time, ours, dense, lambda one: one.cost.seconds, lambda one: one.seconds, _time_text)
    _finish(time, "time of the regression", "seconds")
    _draw_cost(memory, ours, dense, lambda one: _mib(one.cost.memory), lambda one: _mib(one.memory), _memory_text)
    _finish(memory, "memory of the regression", "MiB at the peak")
    figure.supxlabel(facts_line(content["machine"]), fontsize=10, color=LIGHT)
    save(figure, path)


def _draw_accuracy(axis: Axes, fits: Mapping[str, Sequence[Fit]], content: Mapping[str, Any]) -> None:
    """Draws accuracies on an axis that is logarithmic in the error, so that a halved error is the same step
    everywhere."""
    for gates, (colour, marker) in OF_GATES.items():
        found = fits[gates]
        label = f"kernel, {gates} gates: {100 * found[-1].accuracy:.2f}"
        errors = [_error(one.accuracy) for one in found]
        axis.plot([one.n for one in found], errors, marker + "-", color=colour, label=label)
    network = content["network"]["accuracy"]
    label = f"the network, trained on all points: {100 * network:.2f}"
    axis.axhline(_error(network), color=DARK, linestyle="--", linewidth=1.4, label=label)
    _finish(axis, "accuracy by training points", "test accuracy, % (logarithmic in the error)")
    _by_points(axis, [one.n for one in fits["trained"]])
    axis.set_yscale("log")
    axis.invert_yaxis()
    largest, smallest = axis.get_ylim()
    shown = [error for error in ERRORS if smallest <= error <= largest]
    axis.set_yticks(shown, [f"{100 - error:g}" for error in shown])
    axis.set_yticks([], minor=True)


def _error(accuracy: float) -> float:
    """Returns the error in %; a logarithmic axis has no place for 0."""
    return max(SMALLEST_ERROR, 100 * (1 - accuracy))


def _draw_residuals(axis: Axes, fits: Mapping[str, Sequence[Fit]], tol: float) -> None:
    """Draws the curves of the largest regressions, and their true residuals at the end."""
    for gates, (colour, marker) in OF_GATES.items():
        largest = fits[gates][-1]
        axis.plot([1.0, *largest.curve], "-", color=colour, label=f"{gates} gates, {largest.n:,} points")
        label = f"its true residual at the end, {largest.residual:.1e}"
        axis.plot(len(largest.curve), largest.residual, marker, color=colour, markersize=7, label=label)
    axis.axhline(tol, color=DARK, linestyle=":", linewidth=1.2, label=f"tolerance {tol:g}")
    axis.set_yscale("log")
    _finish(axis, "residual of the slowest class", "relative residual")
    axis.set_xlabel("iteration (one product with the kernel)", fontsize=12)


def _draw_cost(
    axis: Axes,
    ours: Sequence[Fit],
    dense: Sequence[Dense],
    cost: Callable[[Fit], float | None],
    dense_cost: Callable[[Dense], float | None],
    words: Callable[[float], str],
) -> None:
    """Draws what was measured as solid lines, and what is extrapolated as a dashed one."""
    for points, colour, marker, label in (
        ([(one.n, cost(one)) for one in ours], BLUE, "o", "kernel_ridge, no Gram stored"),
        ([(one.n, dense_cost(one)) for one in dense], ORANGE, "s", "dense way: Gram and Cholesky"),
    ):
        known = [(n, value) for n, value in points if value]
        if known:
            axis.plot(*zip(*known, strict=True), marker + "-", color=colour, label=label)
            _annotate(axis, *known[-1], words(known[-1][1]), colour)
    last, most = dense[-1], ours[-1].n
    reached, beyond = dense_cost(last), dense_cost(last.at(most))
    if most > last.n and reached and beyond:
        line = [(last.n * (most / last.n) ** (step / 20)) for step in range(21)]
        values = [dense_cost(last.at(round(n))) or 0.0 for n in line]
        axis.plot(line, values, "--", color=ORANGE, label="dense way, extrapolated")
        axis.plot(most, beyond, "s", color=ORANGE, markerfacecolor="white")
        _annotate(axis, most, beyond, f"{words(beyond)} (extrapolated)", ORANGE)
    axis.set_yscale("log")
    _by_points(axis, [one.n for one in (*ours, *dense)])


def _annotate(axis: Axes, x: float, y: float, text: str, colour: str) -> None:
    place = {"textcoords": "offset points", "ha": "right", "fontsize": 11, "color": colour, "fontweight": "bold"}
    axis.annotate(text, (x, y), (-6, 7), **place)


def _mib(memory: int | None) -> float | None:
    """Returns MiB; None below 1 MiB, where the peak of a process says nothing about one regression."""
    return None if memory is None or memory < 2**20 else memory / 2**20


def _time_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _memory_text(mib: float) -> str:
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def _by_points(axis: Axes, points: Sequence[int]) -> None:
    """Gives the horizontal axis the numbers of points, each at least 1.5 times the one before it."""
    ticks: list[int] = []
    for n in sorted(set(points), reverse=True):
        if not ticks or ticks[-1] >= 1.5 * n:
            ticks.append(n)
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("training points", fontsize=12)


def _finish(axis: Axes, title: str, left: str) -> None:
    axis.set_title(title, fontsize=14)
    axis.set_ylabel(left, fontsize=12)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    axis.margins(x=0.06, y=0.12)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=11)
