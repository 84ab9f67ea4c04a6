"""Bars of long work: on a terminal, or when asked for, and by one module."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatedops import progress
from gatedops.progress import shows_bars, stages, with_bar

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch) -> Callable[[], Terminal]:
    """Makes stderr a terminal. A test calls it, since pytest sets stderr anew between the fixtures and the test."""
    pytest.importorskip("tqdm")

    def opened() -> Terminal:
        monkeypatch.setattr(progress, "_DELAY", 0.0)
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return opened


@pytest.mark.parametrize("asked", [None, True])
def test_a_terminal_shows_a_bar_that_is_not_refused(asked, open_terminal):
    terminal = open_terminal()
    assert list(with_bar(range(3), "working", "piece", 3, asked)) == [0, 1, 2]
    assert "working:" in terminal.getvalue()
    assert "piece/s" in terminal.getvalue() or "?piece" in terminal.getvalue()


def test_a_bar_over_items_of_unknown_number(open_terminal):
    terminal = open_terminal()
    assert list(with_bar(iter("ab"), "working", "piece", 0, True)) == ["a", "b"]
    assert "working: 0piece" in terminal.getvalue()


def test_a_terminal_shows_no_bar_that_is_refused(open_terminal):
    terminal = open_terminal()
    assert list(with_bar(range(3), "working", "piece", 3, False)) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_work_of_less_than_a_second_has_no_bar(open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setattr(progress, "_DELAY", 1.0)
    list(with_bar(range(3), "working", "piece", 3, None))
    assert "piece" not in terminal.getvalue()


@pytest.mark.parametrize("stderr", [None, io.StringIO()], ids=["closed", "a file"])
def test_bars_are_off_elsewhere(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert not shows_bars()
    items = range(3)
    assert with_bar(items, "working", "piece", 3, None) is items
    with stages(2) as begin:
        begin("one")
    assert not stderr or stderr.getvalue() == ""


def test_a_bar_that_is_asked_for_is_shown_in_a_file_too(capsys, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    list(with_bar(range(3), "working", "piece", 3, True))
    assert "working" in capsys.readouterr().err


def test_stages_stand_at_the_head_of_their_bar(open_terminal):
    terminal = open_terminal()
    with stages(2) as begin:
        begin("reading")
        begin("fitting")
    shown = terminal.getvalue()
    assert shown.index("reading:") < shown.index("fitting:")
    assert "1/2" in shown
    assert "stage" in shown


def test_stages_of_named_work_stand_at_the_end_of_their_bar(open_terminal):
    terminal = open_terminal()
    with stages(9, "epoch", "training", done=7) as show:
        show("accuracy=50%")
    assert "training:  78%" in terminal.getvalue()
    assert re.search(r"training: .*accuracy=50%", terminal.getvalue())


def test_without_tqdm_only_a_bar_that_is_asked_for_is_an_error(open_terminal, monkeypatch):
    terminal = open_terminal()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert not shows_bars()
    assert list(with_bar(range(3), "working", "piece", 3, None)) == [0, 1, 2]
    with stages(2) as begin:
        begin("one")
    with pytest.raises(ModuleNotFoundError, match="tqdm, which is not installed: pip install tqdm"):
        with_bar(range(3), "working", "piece", 3, True)
    assert terminal.getvalue() == ""


def test_one_module_of_the_package_and_its_examples_imports_tqdm():
    files = [path for name in ("gatedops", "examples") for path in (ROOT / name).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if re.search(r"(import|from) tqdm", path.read_text())}
    assert found == {"gatedops/progress.py"}
