"""`python -m gatedops` reports what runs where, and runs commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from gatedops._version import __version__

_HELP = """usage: python -m gatedops [-h] [--version] [command]

Without a command, it prints versions, which kernels run on which device, and what is missing.

commands:
  selftest   tests the kernels for GPUs on this machine; those that are right and faster are used from then on

options:
  -h, --help  prints this help
  --version   prints the version of gatedops

`python -m gatedops selftest --help` lists its options."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit code."""
    if not arguments:
        from gatedops.commands import report

        report.main()
        return 0
    command, *rest = arguments
    if command == "selftest":
        from gatedops.commands import selftest

        return selftest.main(rest)
    told = {"-h": _HELP, "--help": _HELP, "--version": __version__}
    if command in told and not rest:
        print(told[command])
        return 0
    wrong = rest[0] if command in told else command
    print(
        f"python -m gatedops: got {wrong!r}, needs selftest, --help, --version, or no argument for the report",
        file=sys.stderr,
    )
    return 2


def _exit_code() -> int:
    """Runs the command and returns its exit code, or that of a broken pipe if the reader of its output has gone."""
    _open_streams()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        _print_no_more()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _print_no_more()
        print(f"python -m gatedops: the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _open_streams() -> None:
    """Lets every print succeed, even if a stream is closed or its encoding lacks a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (the stream must stay open)
        else:
            stream.reconfigure(errors="backslashreplace")


def _print_no_more() -> None:
    """Sends standard output to the null device, so that the flush at Python's exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(_exit_code())
