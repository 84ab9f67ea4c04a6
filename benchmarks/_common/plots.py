"""All pictures of the benchmarks, drawn from their JSON alone, so that any result can be drawn again; the images in it.

Nothing else in benchmarks/ imports matplotlib, and this module does so only when it draws.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from _common.contest import OURS
from _common.machine import facts_line
from _common.problems import LAYER_KINDS, Cell
from _common.timing import readable_seconds
from gatedops.atomic_file import written_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Json = Mapping[str, Any]

COLOURS = ("#1b6ca8", "#e08e45", "#8d99ae", "#c9a66b", "#b5b5b5", "#6b8f71")
DARK, LIGHT = "#222222", "#777777"
DPI, SHADES = 110, 256
MAX_CLASS_LABELS = 20
LARGEST = 255  # of the levels in which an image is kept

# Contestants of gated_linear.py: the unit of speed, and the limit.
EAGER, PRODUCTS, BACKWARD = "torch eager", "matrix products alone", "forward + backward"

# Markers of the roofline for all but the chosen kernel.
PORTABLE, PORTABLE_COLOUR, NUMKONG = "portable", "#d95f02", "numkong"
MARKERS = {
    PORTABLE: "v",
    "torch float32": "x",
    "torch bfloat16": "+",
    NUMKONG: "^",
    "torch int8": "x",
    "torch float16": "+",
    "mma.sync": "s",
    "wgmma, no clusters": "D",
    "Triton": "^",
}
FILLED = "^sDv"


def encoded(image: Tensor) -> dict[str, object]:
    """A matrix of finite numbers as JSON can hold it, each rounded to one of 256 levels."""
    values = image.detach().double().cpu()
    low, high = float(values.min()), float(values.max())
    levels = ((values - low) / (high - low or 1.0) * LARGEST).round().to(torch.uint8)
    packed = base64.b64encode(zlib.compress(levels.numpy().tobytes(), 9)).decode("ascii")
    return {"height": len(values), "width": values.shape[1], "low": low, "high": high, "levels": packed}


def decoded(image: Mapping[str, Any]) -> Tensor:
    """Float64 (height, width), to half a level what was encoded."""
    levels = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(image["levels"]))), dtype=torch.uint8)
    values = levels.double() / LARGEST * (image["high"] - image["low"]) + image["low"]
    return values.view(image["height"], image["width"])


def draw(content: Json, path: Path) -> bool:
    """Draws the JSON of a benchmark as a PNG; returns False, and writes nothing, if it holds nothing to draw."""
    for key, figure_of in FIGURES.items():
        if content.get(key):
            figure = figure_of(content)
            if figure is not None:
                save(figure, path)
            return figure is not None
    return False


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG of 256 colours, which takes a third of the bytes, whole or not at all."""
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    # Coverage first: the default gives a rare colour, as in a bar of colours, the shade of a frequent one.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    reduced = Image.open(buffer).convert("RGB").quantize(SHADES, method, kmeans=1, dither=dither)
    with written_whole(path) as temporary:
        reduced.save(temporary, format="PNG", optimize=True)


def new_figure(width: float, height: float, padding: float = 0.04) -> Figure:
    """An empty figure of this size in inches, which no window shows."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=padding, h_pad=padding))


# --- gram.py: rate against bits per pair, below the limits of writing and of counting ---


def _cell(entry: Json) -> Cell:
    return Cell(entry["n"], entry["layers"], entry["width"])


def _roofline(content: Json) -> Figure | None:
    """The sweep of the kernel that was chosen, the first of machine.kernels, and of all that ran beside it."""
    from matplotlib import colormaps

    sweep = content["sections"].get("sweep")
    if not sweep:
        return None
    by = content["machine"]["kernels"][0]
    ours = [entry for entry in sweep if entry["by"] == by]
    figure = new_figure(11, 6.5)
    axis = figure.subplots()
    _draw_roofs(axis, ours, [_cell(entry).bits_per_pair for entry in sweep])
    sizes = sorted({entry["n"] for entry in ours})
    for index, n in enumerate(sizes):
        colour = colormaps["viridis_r"](0.12 + 0.88 * index / max(1, len(sizes) - 1))
        style = {"marker": "o", "s": 55, "color": colour, "edgecolors": "white", "linewidths": 0.6}
        _scatter(axis, [entry for entry in ours if entry["n"] == n], f"{by}, n = {n}", style)
    others = [entry for entry in [*sweep, *_numkong(content)] if entry["by"] != by]
    for name in dict.fromkeys(entry["by"] for entry in others):
        marker = MARKERS.get(name, "d")
        style = {"edgecolors": "none"} if marker in FILLED else {"linewidths": 1.6}
        style |= {"marker": marker, "s": 50, "color": PORTABLE_COLOUR if name == PORTABLE else LIGHT}
        _scatter(axis, [entry for entry in others if entry["by"] == name], name, style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("bits per pair of points, L * w", fontsize=12)
    axis.set_ylabel("bit-pairs per second, each pair of points once", fontsize=12)
    axis.set_title(f"Lambda: {facts_line(content['machine'])}", fontsize=13)
    axis.grid(alpha=0.25, which="major")
    axis.legend(fontsize=10, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _numkong(content: Json) -> list[Json]:
    """Returns what NumKong needs for its half of the square, on as many threads as the sweep."""
    found = [entry for entry in content["sections"].get("one-layer", []) if entry["by"] == NUMKONG]
    return [one for one in found if "upper" in one["what"] and one["threads"] == content["machine"]["threads"]]


def _scatter(axis: Axes, entries: Sequence[Json], label: str, style: dict[str, Any]) -> None:
    rates = [entry["bit_pairs_per_second"] for entry in entries]
    axis.scatter([_cell(entry).bits_per_pair for entry in entries], rates, label=label, zorder=3, **style)


def _draw_roofs(axis: Axes, ours: Sequence[Json], bits: Sequence[int]) -> None:
    """The highest limit of counting, and the limit of writing the largest output: smaller ones may stay in a cache."""
    known = [entry for entry in ours if {"counting", "writing"} <= entry.get("limit_s", {}).keys()]
    if not known:
        return
    largest = max(known, key=lambda entry: entry["n"])
    counts = max(_cell(entry).bit_pairs / entry["limit_s"]["counting"] for entry in known)
    writes = _cell(largest).bit_pairs / _cell(largest).bits_per_pair / largest["limit_s"]["writing"]
    low, high = min(bits) / 1.6, max(bits) * 1.6
    knee = min(max(counts / writes, low), high)
    writing = f"limit of writing to memory: {writes:.2g} pairs/s\n(float32, n = {largest['n']})"
    style: dict[str, Any] = {"color": DARK, "linewidth": 1.6, "zorder": 2}
    axis.plot([knee, high], [counts, counts], label=f"limit of counting: {counts:.3g} bit-pairs/s", **style)
    axis.plot([low, knee], [writes * low, writes * knee], linestyle="--", label=writing, **style)
    axis.set_xlim(low, high)


# --- gated_linear.py: speeds against eager torch, one panel for each kind of layer ---


def _layer_speeds(content: Json) -> Figure | None:
    """Bars for forward and backward; a mark where only the matrix products are left."""
    entries = [entry for entry in content["entries"] if entry.get("kind") in LAYER_KINDS and entry["what"] == BACKWARD]
    speeds = _speeds(entries)
    if not speeds:
        return None
    kinds = [kind for kind in LAYER_KINDS if any(key[0] == kind for key in speeds)]
    sizes = list(dict.fromkeys(key[1] for key in speeds))
    names = [name for name in dict.fromkeys(key[2] for key in speeds) if name not in (EAGER, PRODUCTS)]
    figure = new_figure(4.6 * len(kinds), 1.6 + 0.95 * len(sizes))
    dtype = content.get("options", {}).get("dtype", "float32")
    title = f"Gated layers, forward and backward, {dtype}: {facts_line(content['machine'])}"
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        _draw_speeds(axis, {key[1:]: speed for key, speed in speeds.items() if key[0] == kind}, sizes, names)
        axis.set_title(",\n".join(LAYER_KINDS[kind].rsplit(", ", 1)), fontsize=12)
    axes[0].set_yticks(range(len(sizes)), [f"{b} x {w}\n{d} layers" for b, w, d in sizes], fontsize=11)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=11, frameon=False)
    return figure


def _speeds(entries: Sequence[Json]) -> dict[tuple[Any, ...], float]:
    """By kind, size and contestant: the time of eager torch over the time of the contestant."""
    times = {(one["kind"], (one["batch"], one["width"], one["depth"]), one["by"]): one["median_s"] for one in entries}
    return {key: times[*key[:2], EAGER] / time for key, time in times.items() if (*key[:2], EAGER) in times}


def _draw_speeds(
    axis: Axes, speeds: Mapping[tuple[Any, ...], float], sizes: Sequence[Any], names: Sequence[str]
) -> None:
    height = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        found = {sizes.index(size): speed for (size, by), speed in speeds.items() if by == name}
        places = [place + (index - (len(names) - 1) / 2) * height for place in found]
        axis.barh(places, list(found.values()), height * 0.92, color=COLOURS[index], label=name)
        for place, speed in zip(places, found.values(), strict=True):
            axis.text(speed + 0.01, place, f"{speed:.2f}", va="center", fontsize=9)
    limits = {sizes.index(size): speed for (size, by), speed in speeds.items() if by == PRODUCTS}
    for order, (place, limit) in enumerate(limits.items()):
        label = None if order else PRODUCTS
        axis.plot([limit, limit], [place - 0.45, place + 0.45], color="black", linewidth=1.6, label=label)
    axis.axvline(1, color="#555555", linewidth=0.8, linestyle="--")
    axis.set_xlim(0, max(speeds.values()) * 1.15)
    axis.set_xlabel("speed, torch eager = 1", fontsize=11)


# --- npk_gram.py: two Grams, their eigenvalues, the times ---


def _npk_gram(content: Json) -> Figure:
    gates, options = content["gates"], content["options"]
    figure = new_figure(14, 12.5, 0.12)
    width = f"{options['depth'] - 1} gated layers of {options['width']}"
    figure.suptitle(f"NPK of {content['points']['n']} points of {options['data']}: {width}", fontsize=15)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]
    _draw_grams(top, content, gates, from_zero=True)
    left, right = bottom.subplots(1, 2, width_ratios=(1, 1.25))
    for (name, one), colour, marker in zip(gates.items(), COLOURS, "os", strict=False):
        values = one["eigenvalues_over_trace"]
        left.semilogy(range(1, len(values) + 1), values, marker=marker, markersize=5, color=colour, label=name)
    left.set_title("leading eigenvalues of these Grams", fontsize=13)
    left.set_xlabel("rank", fontsize=12)
    left.set_ylabel("eigenvalue / trace", fontsize=12)
    left.tick_params(labelsize=11)
    left.grid(alpha=0.3)
    left.legend(fontsize=12)
    _draw_times(right, content.get("speed", []), lambda entry: entry["median_s"], 8)
    right.set_xlabel("seconds for one Gram (median, logarithmic)", fontsize=12)
    right.set_title("time for one symmetric Gram (and its ratio to gatedops)", fontsize=13)
    return figure


def _draw_grams(figure: SubFigure, content: Json, figures: Json, *, from_zero: bool) -> None:
    """The normalised Grams, sorted by class, with one bar of their colours; nothing if the JSON has no images."""
    images = {name: decoded(image) for name, image in content.get("pictures", {}).items()}
    if not images:
        return
    axes = figure.subplots(1, len(images))
    # The diagonal of ones would leave everything else dark.
    brightest = max(float(torch.quantile(image.flatten(), 0.99)) for image in images.values())
    # The averages over pixels make all images alike: from 0 on, the colours would hardly differ.
    darkest = 0.0 if from_zero else min(float(torch.quantile(image.flatten(), 0.01)) for image in images.values())
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        shown = axis.imshow(image.numpy(), vmin=darkest, vmax=brightest, cmap="magma", interpolation="nearest")
        axis.set_title(f"NPK, {name}: test accuracy {figures[name]['accuracy']:.1%}", fontsize=13)
        label_classes(axis, content["classes"], len(image))
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, extend="max" if from_zero else "both")
    bar.set_label("H(s, s') / sqrt(H(s, s) H(s', s'))", fontsize=12)


def label_classes(axis: Axes, sizes: Mapping[str, int], side: int) -> None:
    """Ticks in the middle of every class, thin lines between them. sizes: the points of each class."""
    axis.set_xticks([])
    axis.set_yticks([])
    if len(sizes) > MAX_CLASS_LABELS:
        return
    counts = torch.tensor(list(sizes.values()), dtype=torch.float64)
    ends = counts.cumsum(0) * side / counts.sum()
    middles = (ends - counts * side / counts.sum() / 2 - 0.5).tolist()
    turned = max(map(len, sizes)) > 3
    axis.set_xticks(middles, list(sizes), rotation=45 if turned else 0, fontsize=11, ha="right" if turned else "center")
    axis.set_yticks(middles, list(sizes), fontsize=11)
    axis.tick_params(length=0)
    for end in ends[:-1].tolist():
        axis.axhline(end - 0.5, color="white", linewidth=0.4, alpha=0.5)
        axis.axvline(end - 0.5, color="white", linewidth=0.4, alpha=0.5)


def _draw_times(axis: Axes, entries: Sequence[Json], seconds: Callable[[Json], float], room: float) -> None:
    """Horizontal bars on a logarithmic axis, one group for each problem, which is broken at its last comma but one."""
    if not entries:
        return
    colours = dict(zip(dict.fromkeys(entry["by"] for entry in entries), COLOURS, strict=False))
    position, ticks = 0.0, {}
    for problem in dict.fromkeys(entry["problem"] for entry in entries):
        group = [entry for entry in entries if entry["problem"] == problem]
        ticks["\n".join(", ".join(part) for part in _halves(problem.split(", ")))] = position + (len(group) - 1) / 2
        for entry in group:
            time, ratio = seconds(entry), entry["ratio"]
            axis.barh(position, time, height=0.85, color=colours[entry["by"]])
            beside = "" if ratio is None or entry["by"] == OURS else f"  ({_readable_ratio(ratio)}x)"
            axis.text(time * 1.1, position, readable_seconds(time) + beside, va="center", fontsize=10)
            position += 1
        position += 0.8
    axis.set_yticks(list(ticks.values()), list(ticks), fontsize=11)
    axis.invert_yaxis()
    axis.set_xscale("log")
    times = [seconds(entry) for entry in entries]
    axis.set_xlim(min(times) / 3, max(times) * room)
    axis.tick_params(axis="x", labelsize=11)
    handles = [axis.barh(0, 0, color=colour, label=by) for by, colour in colours.items()]
    axis.legend(handles=handles, fontsize=11, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _halves(parts: list[str]) -> list[list[str]]:
    return [parts[:-2], parts[-2:]] if len(parts) > 2 else [parts]


def _readable_ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


# --- conv_npk.py: two Grams, the time of a pair ---


def _conv_npk(content: Json) -> Figure:
    figure = new_figure(14, 12, 0.12)
    layers, options = content["net"]["layers"], content["options"]
    title = f"Path kernel of GCONV {layers} on {content['points']['n']} points of {options['data']}"
    figure.suptitle(title, fontsize=15)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.35, 1), squeeze=False)[:, 0]
    _draw_grams(top, content, content["kernels"], from_zero=False)
    axis = bottom.subplots()
    _draw_times(axis, content.get("speed", []), lambda entry: 1 / entry["pairs_per_second"], 200)
    axis.set_xlabel("seconds for a pair (median, logarithmic)", fontsize=12)
    axis.set_title("4 convolutions of 64 channels, global average pooling", fontsize=13)
    return figure


# --- modern_npk.py: the time of a pair, network by network ---


def _modern_npk(content: Json) -> Figure | None:
    entries = [entry for entry in content["networks"] if "ms_per_pair" in entry]
    if not entries:
        return None
    figure, size = new_figure(11, 1.6 + 0.9 * len(entries)), entries[0]["image_size"]
    axis = figure.subplots()
    _draw_times(axis, entries, lambda entry: entry["ms_per_pair"] / 1e3, 8)
    axis.set_xlabel("seconds for a pair (median, logarithmic)", fontsize=12)
    axis.set_title(f"npk of {size}x{size} images: {facts_line(content['machine'])}", fontsize=13)
    return figure


# --- solve.py: products by their inputs, and by their columns ---


def _solve(content: Json) -> Figure | None:
    products, columns = content["products"], content.get("columns", [])
    rows = [part for part in (products, columns) if part]
    if not rows:
        return None
    figure = new_figure(11, 3 + 0.45 * (len(products) + len(columns)))
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[len(part) for part in rows])[:, 0]
    for axis, entries in zip(axes, rows, strict=True):
        _draw_times(
            axis, [{**entry, "problem": entry["what"]} for entry in entries], lambda entry: entry["median_s"], 4
        )
        axis.set_title(entries[0]["problem"], fontsize=12)
    axes[-1].set_xlabel("seconds for a product (median, logarithmic)", fontsize=12)
    figure.suptitle(f"Products with the kernel: {facts_line(content['machine'])}", fontsize=13)
    return figure


# The figure of a JSON by the key that only its benchmark writes.
FIGURES: dict[str, Callable[[Json], Figure | None]] = {
    "sections": _roofline,
    "entries": _layer_speeds,
    "gates": _npk_gram,
    "kernels": _conv_npk,
    "networks": _modern_npk,
    "products": _solve,
}
