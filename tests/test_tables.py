"""Tables as text and as HTML."""

from __future__ import annotations

import html.parser

import pytest
import torch

from gatedops import GateBits
from gatedops.tables import Table, aligned, counted, percent


class Cells(html.parser.HTMLParser):
    """The cells of a table, and whether every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.caption = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


def numbered(count: int) -> Table:
    return Table("many", ("layer", "gates"), tuple((f"layer {i}", str(i)) for i in range(count)))


def test_names_begin_and_numbers_end_below_each_other():
    table = Table("title", ("layer", "gates"), (("a", "1"), ("longer name", "1,000")))
    assert table.text() == "title\n  layer        gates\n  a                1\n  longer name  1,000"


def test_aligned_words_begin_below_each_other():
    assert aligned([("a", "b", ""), ("long", "c", "d")]) == ["a     b", "long  c  d"]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_short_tables_are_shown_whole(count):
    assert len(numbered(count).text().splitlines()) == (2 + count if count else 1)
    assert len(Cells(numbered(count).html()).rows) == (1 + count if count else 0)


def test_long_tables_are_cut_in_the_middle():
    lines = numbered(200).text().splitlines()
    assert len(lines) == 43
    assert [line.split() for line in lines[21:24]] == [
        ["layer", "19", "19"],
        ["...", "160", "more", "rows", "..."],
        ["layer", "180", "180"],
    ]
    rows = Cells(numbered(200).html()).rows
    assert rows[20:23] == [["layer 19", "19"], ["... 160 more rows ..."], ["layer 180", "180"]]


def test_html_has_the_same_cells_and_its_names_are_escaped():
    name = "<script>alert('a')</script> & \"b\""
    table = Table(f"of {name}", ("layer", "<b>"), ((name, "1"),))
    text = table.html()
    assert "<script" not in text
    assert "<b>" not in text
    found = Cells(text)
    assert found.caption == table.title
    assert found.rows == [["layer", "<b>"], [name, "1"]]


def test_numbers_in_words():
    assert [counted(n, "layer") for n in (0, 1, 1234)] == ["0 layers", "1 layer", "1,234 layers"]
    assert [percent(share) for share in (0, 0.12345, 1)] == ["0.0", "12.3", "100.0"]


def test_gates_are_shown_as_a_table_of_their_layers():
    bits = GateBits.pack([torch.rand(3, 20), torch.rand(3, 4, 5, 5)], names=["fc", "<conv>"])
    assert repr(bits) == str(bits)
    assert repr(bits).splitlines() == [
        "GateBits of 3 inputs: 2 layers, 120 gates, on cpu",
        "  layer   shape  gates",
        "  fc         20     20",
        "  <conv>  4x5x5    100",
    ]
    assert Cells(bits._repr_html_()).rows[2] == ["<conv>", "4x5x5", "100"]


def test_choices_of_max_pools_are_told_from_gates():
    bits = GateBits.pack([torch.rand(3, 20), torch.rand(3, 4, 2, 2, 2) > 0.5])
    assert repr(bits).splitlines()[3].split() == ["1", "4x2x2x2", "32", "select"]


def test_a_long_net_is_cut():
    assert len(repr(GateBits.pack([torch.rand(1, 3)] * 200)).splitlines()) == 43
