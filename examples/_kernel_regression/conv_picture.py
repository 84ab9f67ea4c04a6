"""Draws conv_regression_DATA.png: accuracy by points, the kernel sorted by class, and accuracy by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _common.machine import facts_line
from _common.plots import COLOURS, DARK, LIGHT, decoded, label_classes, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

BLUE, ORANGE = COLOURS[:2]
NAMES = {"digits": "digits", "cifar10": "CIFAR-10"}
OF_GATES = {"untrained": (ORANGE, "s"), "trained": (BLUE, "o")}


def draw(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the PNG from the content of the JSON."""
    figure, points = new_figure(17, 6.2, 0.1), content["points"]
    note = content["options"]["note"]
    figure.suptitle(
        f"Convolutional neural path kernel: VCONV on {points['train']:,} training points of "
        f"{NAMES[content['options']['data']]}" + (f" ({note})" if note else ""),
        fontsize=16,
    )
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1, 1.05, 1), squeeze=False)[0]
    _draw_accuracy(left.subplots(), content)
    _draw_kernel(middle, content)
    _draw_classes(right.subplots(), content)
    figure.supxlabel(facts_line(content["machine"]), fontsize=10, color=LIGHT)
    save(figure, path)


def _draw_accuracy(axis: Axes, content: Mapping[str, Any]) -> None:
    for gates, found in content["kernels"].items():
        colour, marker = OF_GATES[gates]
        percent = [100 * accuracy for accuracy in found["accuracy"]]
        label = f"kernel, {gates} gates: {percent[-1]:.1f}"
        axis.plot(found["points"], percent, marker + "-", color=colour, label=label)
    network, most = 100 * content["network"]["accuracy"], content["points"]["train"]
    axis.axhline(network, color=DARK, linestyle="--", linewidth=1.4)
    axis.plot(most, network, "D", color=DARK, label=f"the network, trained on all of them: {network:.1f}")
    axis.set_xscale("log")
    ticks = next(iter(content["kernels"].values()))["points"]
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("training points of the regression", fontsize=12)
    axis.set_ylabel("test accuracy, %", fontsize=12)
    axis.margins(x=0.08, y=0.15)
    _finish(axis, "accuracy by training points")


def _draw_kernel(figure: SubFigure, content: Mapping[str, Any]) -> None:
    gates, packed = list(content["pictures"].items())[-1]
    image, axis = decoded(packed), figure.subplots()
    # The bright diagonal would leave everything else dark.
    low, high = (float(torch.quantile(image.flatten(), share)) for share in (0.01, 0.99))
    shown = axis.imshow(image.numpy(), vmin=low, vmax=high, cmap="magma", interpolation="nearest")
    label_classes(axis, content["classes"], len(image))
    axis.set_title(f"kernel of the {gates} gates, by class", fontsize=13)
    bar = figure.colorbar(shown, ax=axis, shrink=0.85, extend="both")
    bar.set_label("K(s, s') / sqrt(K(s, s) K(s', s'))", fontsize=11)


def _draw_classes(axis: Axes, content: Mapping[str, Any]) -> None:
    network, names = content["network"]["by_class"], list(content["classes"])
    places = range(len(names))
    marks = [
        (f"kernel, {gates} gates", found["by_class"], *OF_GATES[gates]) for gates, found in content["kernels"].items()
    ]
    for place in places:
        ends = [100 * shares[place] for shares in (network, *(mark[1] for mark in marks))]
        axis.plot([min(ends), max(ends)], [place, place], "-", color=LIGHT, linewidth=1, alpha=0.6)
    for label, shares, colour, marker in marks:
        axis.plot([100 * share for share in shares], places, marker, color=colour, label=label)
    # A hollow diamond does not hide a kernel of equal accuracy.
    percent = [100 * share for share in network]
    axis.plot(percent, places, "D", color=DARK, fillstyle="none", markersize=10, label="the network")
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlabel("test accuracy, %", fontsize=12)
    _finish(axis, "accuracy by class")


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=13)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=10.5)
