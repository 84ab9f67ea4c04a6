"""`python -m gatedops` and its options."""

from __future__ import annotations

import pytest
from python_process import run_python

from gatedops import __main__ as program
from gatedops import __version__


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_commands_and_options(option, capsys):
    assert program.main([option]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("usage: python -m gatedops")
    for name in ("selftest", "--help", "--version"):
        assert name in told.out
    assert "Versions" not in told.out
    assert told.err == ""


def test_version_is_printed_alone(capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["report"], "report"),
        (["--verbose"], "--verbose"),
        (["--help", "me"], "me"),
        (["--version", "-v"], "-v"),
        ([""], ""),
    ],
)
def test_what_is_unknown_is_named(arguments, wrong, capsys):
    assert program.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"python -m gatedops: got {wrong!r}, needs selftest, --help, --version")


def test_the_exit_codes_are_those_of_the_process():
    assert [run_python("-m", "gatedops", option).returncode for option in ("--version", "--verbose")] == [0, 2]
