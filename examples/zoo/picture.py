"""Draws the table of the zoo as a picture: it has a row for each network and a coloured cell for each step."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from outcome import Outcome
from table import STEP_COLUMNS, Row, counts

from gatedops.atomic_file import written_whole

_COLOURS = {"yes": "#9fd3a8", "no": "#f3d9a4", "none": "#e3e5e8", "fault": "#e58b83"}
_MEANING = {"yes": "works", "no": "refused, with a reason", "none": "nothing to replace", "fault": "a fault"}
# In inches, these are the width of the column of names, the width of every other column, and the height of a row.
_NAMES, _CELL, _HEIGHT = 2.0, 2.35, 0.36
# With this many colours the file is a third as large.
_SHADES = 64


def plot_table(path: Path, rows: Sequence[Row]) -> None:
    """Writes the picture as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch, Rectangle
    from PIL import Image  # matplotlib needs PIL too.

    width, height = _NAMES + _CELL * len(STEP_COLUMNS), _HEIGHT * (len(rows) + 2.6)
    figure = pyplot.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(0.1, 0.55 * _HEIGHT, f"What works: {counts(rows)}", va="center", fontsize=10, weight="bold")
    for column, step in enumerate(STEP_COLUMNS):
        left = _NAMES + column * _CELL
        axes.text(left + _CELL / 2, 1.4 * _HEIGHT, step, ha="center", va="center", fontsize=9, weight="bold")
        for line, row in enumerate(rows):
            top, one = (line + 1.8) * _HEIGHT, row.outcomes[step]
            box = Rectangle((left, top), _CELL, _HEIGHT, facecolor=_COLOURS[one.kind], edgecolor="white", linewidth=1.5)
            axes.add_patch(box)
            size = 9 if one.kind == "yes" else 6
            axes.text(left + _CELL / 2, top + _HEIGHT / 2, _label(one), ha="center", va="center", fontsize=size)
    for line, row in enumerate(rows):
        axes.text(0.1, (line + 2.3) * _HEIGHT, row.network.name, va="center", fontsize=9)
    used = [kind for kind in _COLOURS if any(one.kind == kind for row in rows for one in row.outcomes.values())]
    patches = [Patch(facecolor=_COLOURS[kind], label=_MEANING[kind]) for kind in used]
    figure.legend(handles=patches, loc="lower left", ncols=len(used), frameon=False, fontsize=8, borderaxespad=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=90)
    pyplot.close(figure)
    with written_whole(path) as part:
        Image.open(buffer).convert("RGB").quantize(_SHADES).save(part, optimize=True)


def _label(one: Outcome) -> str:
    """Returns a cell's text in at most two lines."""
    lines = textwrap.wrap(one.cell.replace("$", "\\$"), 42)
    return "\n".join(lines[:2]) + (" ..." if len(lines) > 2 else "")
