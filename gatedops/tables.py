"""Makes tables for people: as text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# A table with more rows is cut in the middle.
_MOST_ROWS = 40
# A list with more values is cut in the middle.
_MOST_LISTED = 20
_GAP = "  "


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Returns a line for each row, with its cells in columns.

    Args:
        rows: rows with the same number of cells.
        numbers: whether all columns except the first are aligned on the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return lines


@dataclass(frozen=True)
class Table:
    """The table that an object shows of itself: a title, and for each layer a row of cells.

    Args:
        title: one line.
        head: the names of the columns.
        rows: the cells; the first of each row is a name, the others are numbers or short words.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def _parts(self) -> tuple[tuple[tuple[str, ...], ...], str, tuple[tuple[str, ...], ...]]:
        """The first rows, a line about those left out, and the last rows."""
        if len(self.rows) <= _MOST_ROWS:
            return self.rows, "", ()
        half = _MOST_ROWS // 2
        return self.rows[:half], f"... {len(self.rows) - 2 * half} more rows ...", self.rows[-half:]

    def text(self) -> str:
        """The title and the rows in columns; a long table shows its first and last rows."""
        above, cut, below = self._parts
        lines = aligned([self.head, *above, *below], numbers=True)
        if cut:
            lines.insert(1 + len(above), cut)
        return "\n".join([self.title, *(f"{_GAP}{line}" for line in lines if self.rows)])

    def html(self) -> str:
        """The same as an HTML table, with every name escaped."""
        above, cut, below = self._parts
        body = [*map(_html_row, above)]
        if cut:
            body.append(f'<tr><td colspan="{len(self.head)}">{escape(cut)}</td></tr>')
        body.extend(map(_html_row, below))
        head = "".join(f"<th>{escape(name)}</th>" for name in self.head)
        rows = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>" if self.rows else ""
        return f"<table><caption>{escape(self.title)}</caption>{rows}</table>"


def _html_row(row: Sequence[str]) -> str:
    name, *cells = (escape(cell) for cell in row)
    return f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


class ShownAsTable:
    """An object whose text, and whose HTML in a notebook, is a table."""

    def table(self) -> Table:
        """The table that is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def listed(values: Sequence[object]) -> str:
    """The values as a list in text; a long list shows its first values and the last one."""
    if len(values) <= _MOST_LISTED:
        return str(list(values))
    shown = ", ".join(map(repr, values[: _MOST_LISTED - 1]))
    return f"[{shown}, ... {len(values) - _MOST_LISTED} more ..., {values[-1]!r}]"


def counted(number: int, thing: str, things: str = "") -> str:
    """Returns "1 layer" or "3 layers". `things` is the plural, if it is not the singular with an s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def percent(share: float | None) -> str:
    """Writes a share of 1 in per cent: "12.3"; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def decimal(value: float | None) -> str:
    """Writes a number with three digits after the point; "-" for None."""
    return "-" if value is None else f"{value:.3f}"


def whole(value: int | None) -> str:
    """Writes a whole number with thousands apart: "1,234"; "-" for None."""
    return "-" if value is None else f"{value:,}"
