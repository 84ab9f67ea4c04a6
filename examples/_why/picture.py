"""Draws why.png: each test point with its helpers, its opponents, and the gates that it shares with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common.plots import COLOURS, DARK, LIGHT, decoded, new_figure, save
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = Mapping[str, Any]

GROUPS = {"helpers": COLOURS[0], "opponents": COLOURS[1]}
RED, MINUS = "#b3261e", "\N{MINUS SIGN}"
# The widths of a test image, a gap and the bars, and the height of the headings, in images with their labels.
TEST, GAP, BARS, HEADINGS = 1.25, 0.22, 2.5, 0.3
# The size of an image with its label and its share, in inches.
WIDTH, HEIGHT = 0.98, 1.5
# Names of two classes do not fit into a line if they have this many letters.
LONG = 6

BELOW = (
    "Below each training point: what it adds to the score of the predicted class, as a share of the sum of what all "
    "training points\nadd or take away. Bars: how many more gates of a layer are on for both than are on average over "
    "all training points."
)


def draw(path: Path, content: Json) -> None:
    """Writes the PNG from the content of the JSON."""
    shown, k = content["shown"], content["options"]["k"]
    across = [TEST, GAP, *[1] * k, GAP, *[1] * k, GAP, BARS]
    down = [HEADINGS, *[1] * len(shown)]
    figure = new_figure(WIDTH * sum(across) + 0.6, HEIGHT * sum(down) + 1.0, 0.05)
    accuracy = f"{content['accuracy']['regression']:.1%}"
    figure.suptitle(
        f"Which training points make a prediction: regression on {content['options']['data']} with the neural path "
        f"kernel (test accuracy {accuracy})",
        fontsize=14,
    )
    figure.supxlabel(BELOW, fontsize=11, color=LIGHT)
    grid = figure.subplots(len(down), len(across), squeeze=False, width_ratios=across, height_ratios=down)
    for axis in [*grid[0], *grid[:, [1, k + 2, 2 * k + 3]].flatten()]:
        axis.set_axis_off()
    for column, text, colour in (
        (0, "test point", DARK),
        (2, "helpers raise the score", GROUPS["helpers"]),
        (k + 3, "opponents lower it", GROUPS["opponents"]),
        (2 * k + 4, "gates on for both", DARK),
    ):
        _write(grid[0, column], text, colour)
    gains = [_gains(one) for one in shown]
    every = [gain for of_groups in gains for of_layers in of_groups.values() for gain in of_layers]
    for axes, one, picture, gain in zip(grid[1:], shown, content["pictures"], gains, strict=True):
        test, *images = decoded(picture).chunk(1 + 2 * k, 1)
        _draw_test(axes[0], test, one)
        for first, name, of_name in ((2, "helpers", images[:k]), (k + 3, "opponents", images[k:])):
            _draw_points(axes[first : first + k], of_name, one[name], GROUPS[name])
        _draw_bars(axes[-1], gain, (min(0.0, *every), max(0.0, *every)))
    save(figure, path)


def _write(axis: Axes, text: str, colour: str) -> None:
    """Writes a heading, which may be wider than the axis."""
    written = axis.text(0, 0, text, fontsize=13, color=colour, transform=axis.transAxes, va="bottom", fontweight="bold")
    written.set_in_layout(False)


def _draw_image(axis: Axes, image: Tensor, colour: str, thickness: float) -> None:
    axis.imshow(image.numpy(), cmap="gray_r", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(thickness)


def _draw_test(axis: Axes, image: Tensor, one: Json) -> None:
    is_right = one["label"] == one["predicted"]
    colour = DARK if is_right else RED
    _draw_image(axis, image, colour, 1.6)
    between = " " if len(one["label"] + one["predicted"]) < LONG else "\n"
    title = f"{one['label']}, right" if is_right else f"{one['label']},{between}taken for {one['predicted']}"
    axis.set_title(title, fontsize=10.5, color=colour, fontweight="bold", pad=3)
    below = f"score {one['score']:.2f}"
    if not is_right:
        below = f"{one['predicted']}: {one['score']:.2f},{between}{one['label']}: {one['score_of_label']:.2f}"
    axis.set_xlabel(below, fontsize=10, labelpad=2, color=colour)


def _draw_points(axes: Sequence[Axes], images: Sequence[Tensor], points: Sequence[Json], colour: str) -> None:
    for axis in axes[len(points) :]:
        axis.set_axis_off()
    for axis, image, point in zip(axes, images, points, strict=False):
        _draw_image(axis, image, colour, 1.2)
        axis.set_title(point["label"], fontsize=11, pad=3)
        sign = "+" if point["contribution"] > 0 else MINUS
        axis.set_xlabel(f"{sign}{point['share']:.1%}", fontsize=10, labelpad=2)


def _gains(one: Json) -> dict[str, list[float]]:
    """Returns for the helpers and for the opponents how many more gates are on for both, in per cent of the mean of all
    training points, layer by layer."""
    groups = {name: [point["share_on_in_both"] for point in one[name]] for name in GROUPS}
    return {
        name: [
            100 * (sum(shares) / len(shares) / mean - 1) if mean else 0.0
            for shares, mean in zip(zip(*points, strict=True), one["share_on_in_both_of_all"], strict=True)
        ]
        for name, points in groups.items()
        if points
    }


def _draw_bars(axis: Axes, gains: Mapping[str, Sequence[float]], ends: tuple[float, float]) -> None:
    """Draws a bar per layer for the helpers, and one for the opponents."""
    room = 0.28 * (ends[1] - ends[0] or 1)
    for order, (name, values) in enumerate(gains.items()):
        places = [layer + 0.4 * (order - (len(gains) - 1) / 2) for layer in range(len(values))]
        axis.barh(places, values, 0.37, color=GROUPS[name])
        for place, value in zip(places, values, strict=True):
            text = f"{value:+.0f}%".replace("-", MINUS)
            axis.text(max(value, 0) + 0.07 * room, place, text, va="center", fontsize=9)
    layers = max(map(len, gains.values()), default=0)
    axis.set_yticks(range(layers), [f"layer {layer + 1}" for layer in range(layers)], fontsize=10)
    axis.set_ylim(layers - 0.45, -0.55)
    axis.set_xlim(ends[0] - (room if ends[0] < 0 else 0), ends[1] + room)
    axis.set_xticks([])
    axis.tick_params(axis="y", length=0)
    axis.axvline(0, color=DARK, linewidth=0.8)
    for spine in axis.spines.values():
        spine.set_visible(False)
