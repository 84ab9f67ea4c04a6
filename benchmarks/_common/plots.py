"""Plots of the benchmarks; the only place that imports matplotlib, and only when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from _common.gate_study import GramPicture
from _common.gram_speed import GramResult
from _common.output import replacing
from _common.timing import readable_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

COLOURS = ("#1b6ca8", "#e08e45", "#8d99ae", "#b5b5b5")
MAX_CLASS_LABELS = 20


def plot_npk_gram(
    path: Path,
    pictures: dict[str, GramPicture],
    captions: dict[str, str],
    labels: Tensor,
    classes: Sequence[str],
    results: Sequence[GramResult],
    title: str,
) -> None:
    """One PNG: two Grams sorted by class, their leading eigenvalues, a bar for every timing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = pyplot.figure(figsize=(14, 12.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]
    figure.suptitle(title, fontsize=15)
    axes = top.subplots(1, len(pictures))
    images = {captions[name]: picture.image for name, picture in pictures.items()}
    draw_grams(top, axes, images, labels, classes)
    left, right = bottom.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_eigenvalues(left, pictures)
    _draw_timings(right, results)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


def draw_grams(
    figure: FigureBase,
    axes: Sequence[Axes],
    images: dict[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
    darkest: float = 0.0,
) -> None:
    """Normalised Grams sorted by class, by caption, one in each of the axes, with one bar of their colours."""
    brightest = max(_typical_maximum(image) for image in images.values())
    for axis, (caption, image) in zip(axes, images.items(), strict=True):
        shown = axis.imshow(image.cpu().numpy(), vmin=darkest, vmax=brightest, cmap="magma", interpolation="nearest")
        axis.set_title(caption, fontsize=13)
        _label_classes(axis, labels, classes, len(image))
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, extend="both" if darkest else "max")
    bar.set_label("H(s, s') / sqrt(H(s, s) H(s', s'))", fontsize=12)


def _typical_maximum(image: Tensor) -> float:
    """The 99th percentile: the diagonal of ones would leave everything else dark."""
    return float(torch.quantile(image.flatten().double().cpu(), 0.99))


def _label_classes(axis: Axes, labels: Tensor, classes: Sequence[str], side: int) -> None:
    """Ticks in the middle of every class, thin lines between them."""
    axis.set_xticks([])
    axis.set_yticks([])
    if len(classes) > MAX_CLASS_LABELS:
        return
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).double()
    ends = counts.cumsum(0) * side / counts.sum()
    middles = (ends - counts * side / counts.sum() / 2 - 0.5).tolist()
    long_names = max(map(len, classes)) > 3
    axis.set_xticks(
        middles,
        classes,
        rotation=45 if long_names else 0,
        fontsize=11,
        ha="right" if long_names else "center",
    )
    axis.set_yticks(middles, classes, fontsize=11)
    axis.tick_params(length=0)
    for end in ends[:-1].tolist():
        axis.axhline(end - 0.5, color="white", linewidth=0.4, alpha=0.5)
        axis.axvline(end - 0.5, color="white", linewidth=0.4, alpha=0.5)


def _draw_eigenvalues(axis: Axes, pictures: dict[str, GramPicture]) -> None:
    for (name, picture), colour, marker in zip(pictures.items(), COLOURS, "os", strict=False):
        values = picture.eigenvalues.cpu().numpy()
        axis.semilogy(range(1, len(values) + 1), values, marker=marker, markersize=5, color=colour, label=name)
    axis.set_title("leading eigenvalues of these Grams", fontsize=13)
    axis.set_xlabel("rank", fontsize=12)
    axis.set_ylabel("eigenvalue / trace", fontsize=12)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)


def _in_two_lines(problem: str) -> str:
    """Broken at the last comma but one."""
    head, *tail = problem.rsplit(", ", 2)
    return f"{head}\n{', '.join(tail)}"


def _draw_timings(axis: Axes, results: Sequence[GramResult]) -> None:
    """Horizontal bars on a logarithmic axis, one group per problem, one colour per contestant."""
    contestants = list(dict.fromkeys(result.by for result in results))
    colours = dict(zip(contestants, COLOURS, strict=False))
    position, ticks = 0.0, {}
    for problem in dict.fromkeys(result.problem for result in results):
        group = [result for result in results if result.problem == problem]
        ticks[problem] = position + (len(group) - 1) / 2
        for result in group:
            axis.barh(position, result.median_s, height=0.85, color=colours[result.by])
            ratio = "" if result.by == "gatedops" else f"  ({result.ratio:.1f}x)"
            axis.text(
                result.median_s * 1.08,
                position,
                readable_seconds(result.median_s) + ratio,
                va="center",
                fontsize=10,
            )
            position += 1
        position += 0.8
    axis.set_yticks(list(ticks.values()), [_in_two_lines(name) for name in ticks], fontsize=11)
    axis.invert_yaxis()
    axis.set_xscale("log")
    times = [result.median_s for result in results]
    axis.set_xlim(min(times) / 3, max(times) * 8)
    axis.set_xlabel("seconds for one Gram (median, logarithmic)", fontsize=12)
    axis.set_title("time for one symmetric Gram (and its ratio to gatedops)", fontsize=13)
    axis.tick_params(axis="x", labelsize=11)
    handles = [axis.barh(0, 0, color=colour, label=by) for by, colour in colours.items()]
    axis.legend(handles=handles, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
