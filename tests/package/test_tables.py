"""Tests tables as text and as HTML."""

from __future__ import annotations

import html.parser

import pytest
import torch
from torch import nn

from gatedops import GateBits, count_regions, gate_stats
from gatedops.path_kernels.regression import fit
from gatedops.stats import GateRecorder, class_overlap, gate_change
from gatedops.tables import Table, aligned, counted, decimal, percent, whole


class Cells(html.parser.HTMLParser):
    """Reads the cells of a table, and checks that tags are closed in order."""

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
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [percent(share) for share in (0, 0.12345, 1, None)] == ["0.0", "12.3", "100.0", "-"]
    assert [decimal(0.12345), decimal(None), whole(12345), whole(None)] == ["0.123", "-", "12,345", "-"]


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


# --- what shows itself as a table ---------------------------------------------------------------------------

GATES = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
FLAT = GateBits.pack([GATES, GATES[:, :2]], names=["a", "<b>"])
MAP = GateBits.pack([GATES[:, :, None, None].expand(4, 4, 3, 3), GATES], names=["conv", "fc"])


def lines_of(shown: object) -> list[list[str]]:
    return [line.split() for line in str(shown).splitlines()]


def test_statistics_are_a_table():
    assert lines_of(gate_stats(FLAT)) == [
        ["GateStats", "of", "4", "inputs:", "2", "layers,", "6", "gates"],
        ["layer", "shape", "gates", "on", "%", "dead", "always", "on", "entropy"],
        ["a", "4", "4", "50.0", "1", "1", "0.500"],
        ["<b>", "2", "2", "50.0", "1", "1", "0.000"],
        ["net", "6", "6", "50.0", "2", "2", "0.333"],
    ]


def test_a_dead_channel_stands_beside_its_dead_gates():
    shown = lines_of(gate_stats(MAP))
    assert shown[1][-4:] == ["dead", "channels", "always-on", "channels"]
    assert shown[2:] == [
        ["conv", "4x3x3", "36", "50.0", "9", "9", "0.500", "1", "1"],
        ["fc", "4", "4", "50.0", "1", "1", "0.500", "-", "-"],
        ["net", "40", "40", "50.0", "10", "10", "0.500", "-", "-"],
    ]


def test_change_is_a_table():
    shown = lines_of(gate_change(FLAT, GateBits.pack([~GATES, GATES[:, :2]])))
    assert shown[1:] == [["layer", "gates", "changed", "%", "distance"], *map(str.split, LINES_OF_CHANGE)]


LINES_OF_CHANGE = ["a 4 100.0 16", "<b> 2 0.0 0", "net 6 66.7 16"]


def test_overlaps_are_a_table():
    shown = lines_of(class_overlap(GateBits.pack([GATES[:, 2:3] ^ GATES[:, :1] | GATES[:, 3:]]), [0, 1, 0, 1]))
    assert shown[0] == ["ClassOverlap", "of", "2", "classes"]
    assert shown[1] == ["layer", "within", "classes", "across"]
    assert [line[0] for line in shown[2:]] == ["0", "net"]


def test_regions_are_a_table():
    assert lines_of(count_regions(FLAT)) == [
        ["RegionCounts", "of", "4", "inputs"],
        ["layer", "regions"],
        ["a", "4"],
        ["<b>", "1"],
        ["net", "4"],
    ]


def test_a_regression_is_a_table():
    fitted = fit(torch.eye(5), torch.rand(5, 2), 0.01)
    assert lines_of(fitted)[2:] == [["training", "points", "5"], ["targets", "2"], ["ridge", "0.01"]]


def test_a_recorder_is_a_table_of_its_records():
    net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 3)
    recorder = GateRecorder(net, x)
    assert str(recorder) == "GateRecorder: 0 records"
    recorder.record(1)
    recorder.record(20)
    shown = lines_of(recorder)
    assert shown[0] == ["GateRecorder:", "2", "records", "of", "6", "inputs"]
    assert [line[0] for line in shown[1:]] == ["step", "1", "20"]
    assert shown[3][-2:] == ["0.0", "1.000"]


@pytest.mark.parametrize(
    "make", [gate_stats, lambda b: gate_change(b, b), count_regions, lambda b: gate_stats(b).layers[1]]
)
def test_notebooks_get_the_cells_of_the_text_with_names_escaped(make):
    shown = make(FLAT)
    assert "<b>" not in shown._repr_html_()
    found = Cells(shown._repr_html_())
    assert [cell for row in found.rows for cell in row] == [
        cell for row in (shown.table().head, *shown.table().rows) for cell in row
    ]
    assert repr(shown) == str(shown) == shown.table().text()


def test_statistics_of_a_long_net_are_cut_and_keep_the_net():
    bits = GateBits.pack([torch.rand(2, 3)] * 200)
    shown = str(gate_stats(bits)).splitlines()
    assert len(shown) == 43
    assert shown[-1].split()[0] == "net"
    assert "more rows" in shown[22]
