"""Draws the gate statistics: each function draws into the given Axes, or into a new figure, and returns the Axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gatedops.stats.activity import GateStats
from gatedops.stats.change import GateChange
from gatedops.stats.classes import ClassOverlap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1b6ca8", "#e08e45", "#8d99ae", "#c44e52")
# This many letters fit side by side under a figure.
_LINE = 50
# A matrix of up to this many rows has its numbers written into its cells.
_MOST_WRITTEN = 12


def plot_gate_stats(stats: GateStats, ax: Axes | None = None) -> Axes:
    """Draws bars for every layer and the net: share on, entropy in bits, share of dead and of always-on gates."""
    parts = [*stats.layers, stats.net]
    bars = {
        "share on": [one.share_on for one in parts],
        "entropy (bits)": [one.entropy for one in parts],
        "dead": [one.dead / one.width for one in parts],
        "always on": [one.always_on / one.width for one in parts],
    }
    ax = _bars([one.name for one in parts], bars, ax)
    ax.set_title(f"Gates on {stats.net.inputs} inputs")
    ax.set_ylabel("share of gates, bits")
    return ax


def plot_gate_shares(stats: GateStats, ax: Axes | None = None) -> Axes:
    """Draws a line for every layer: the share of inputs for which each gate is on, with the gates sorted by it."""
    ax = _axes(ax)
    for layer, colour in zip(stats.layers, _shades(len(stats.layers)), strict=True):
        shares = layer.share_per_gate.flatten().sort().values.cpu()
        places = [(i + 0.5) / len(shares) for i in range(len(shares))]
        ax.plot(places, shares.tolist(), color=colour, label=layer.name)
    ax.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="gates of the layer, sorted", ylabel="share of inputs it is on for")
    ax.set_title("How often each gate is on")
    ax.legend(fontsize=9)
    return _with_grid(ax)


def plot_gate_change(change: GateChange, ax: Axes | None = None) -> Axes:
    """Draws bars for every layer and the net: the share of gates that differ between two checkpoints."""
    parts = [*change.layers, change.net]
    ax = _bars([one.name for one in parts], {"changed": [one.share for one in parts]}, ax)
    ax.set_title("Gates that differ between the checkpoints")
    ax.set_ylabel("share of gates")
    return ax


def plot_class_overlap(overlap: ClassOverlap, ax: Axes | None = None) -> Axes:
    """Draws bars for every layer and the net: mean normalised overlap within classes and across."""
    parts = [*overlap.layers, overlap.net]
    bars = {"within classes": [one.within for one in parts], "across classes": [one.across for one in parts]}
    ax = _bars([one.name for one in parts], bars, ax)
    ax.set_title("Overlap of the active gates of two inputs")
    ax.set_ylabel("mean normalised overlap")
    return ax


def plot_class_pairs(overlap: ClassOverlap, layer: int | None = None, ax: Axes | None = None) -> Axes:
    """Draws a matrix: the mean normalised overlap of each pair of classes, in one layer or (None) in the whole net."""
    chosen = overlap.net if layer is None else overlap.layers[layer]
    ax = _matrix(chosen.per_class, [str(label) for label in overlap.classes], "mean normalised overlap", ax)
    ax.set(title=f"Overlap between classes: {chosen.name}", xlabel="class", ylabel="class")
    return ax


def plot_alignments(alignments: Tensor, names: Sequence[str], ax: Axes | None = None) -> Axes:
    """Draws a matrix: the result of :func:`npk_alignments` for checkpoints with these names."""
    if tuple(alignments.shape) != (len(names), len(names)):
        raise ValueError(f"alignments: got shape {tuple(alignments.shape)}, needs a row and a column for each name")
    ax = _matrix(alignments, names, "centred alignment (CKA)", ax)
    ax.set_title("Alignment of neural path kernels")
    return ax


def plot_history(history: Mapping[str, Any], quantity: str = "alignment_to_first", ax: Axes | None = None) -> Axes:
    """Draws lines over the steps of a :class:`GateRecorder`'s history: one quantity of every layer and of the net."""
    records = history["records"]
    known = [name for name in records[0]["net"] if name != "name"] if records else []
    if quantity not in known:
        raise ValueError(f"quantity: got {quantity!r}, the history has {known or 'no records'}")
    ax = _axes(ax)
    steps = [record["step"] for record in records]
    names = [layer["name"] for layer in records[0]["layers"]]
    for index, (name, colour) in enumerate(zip(names, _shades(len(names)), strict=True)):
        ax.plot(steps, [_number(record["layers"][index][quantity]) for record in records], color=colour, label=name)
    net = [_number(record["net"][quantity]) for record in records]
    ax.plot(steps, net, color="black", linewidth=2, linestyle="--", label="net")
    ax.set(xlabel="step", ylabel=quantity.replace("_", " "))
    ax.set_title(f"{quantity.replace('_', ' ')}, {history['inputs']} inputs")
    ax.legend(fontsize=9)
    return _with_grid(ax)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError:
        raise ModuleNotFoundError("plots need matplotlib, which is not installed: pip install matplotlib") from None
    return pyplot.subplots(figsize=(7, 4.5), layout="constrained")[1]


def _bars(names: Sequence[str], bars: Mapping[str, Sequence[float]], ax: Axes | None) -> Axes:
    """Draws groups of bars: one group for each name, one colour for each entry of `bars`."""
    ax = _axes(ax)
    width = 0.8 / len(bars)
    for index, ((label, heights), colour) in enumerate(zip(bars.items(), _COLOURS, strict=False)):
        places = [group - 0.4 + (index + 0.5) * width for group in range(len(names))]
        ax.bar(places, heights, width, color=colour, label=label)
    _name_columns(ax, names)
    # This leaves room for the legend.
    ax.set_ylim(0, 1.15 * max(map(max, bars.values())) or 1)
    if len(bars) > 1:
        ax.legend(fontsize=9, ncols=len(bars), loc="upper center")
    return _with_grid(ax)


def _matrix(values: Tensor, names: Sequence[str], what: str, ax: Axes | None) -> Axes:
    """Draws a square matrix of numbers from 0 to 1, and writes them into the cells if there are few."""
    ax = _axes(ax)
    cells = values.double().cpu().numpy()
    image = ax.imshow(cells, vmin=0, vmax=1, cmap="magma")
    ax.figure.colorbar(image, ax=ax, label=what)
    _name_columns(ax, names)
    ax.set_yticks(range(len(names)), names)
    if len(names) <= _MOST_WRITTEN:
        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                colour = "black" if value > 0.6 else "white"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    return ax


def _name_columns(ax: Axes, names: Sequence[str]) -> None:
    """Writes names below the columns, slanted if they would run into each other."""
    if sum(map(len, names)) < _LINE:
        ax.set_xticks(range(len(names)), names)
    else:
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")


def _shades(count: int) -> list[Any]:
    """The colours of layers, from the first to the last."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * index / max(1, count - 1)) for index in range(count)]


def _with_grid(ax: Axes) -> Axes:
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    return ax


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
