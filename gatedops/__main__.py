"""`python -m gatedops`: what runs where, and commands."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from gatedops._version import __version__

_HELP = """usage: python -m gatedops [-h] [--version] [command]

Without a command it prints versions, what runs where, and what is missing.

commands:
  selftest   tries the kernels for GPUs on this machine; those that are right and faster run from then on

options:
  -h, --help  prints this
  --version   prints the version of gatedops

`python -m gatedops selftest --help` lists its options."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command; its exit code."""
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
        f"python -m gatedops: got {wrong!r}, needs selftest, --help, --version, or nothing for the report",
        file=sys.stderr,
    )
    return 2


def _exit_code() -> int:
    """That of the command; where nobody reads on what it prints, the one that shells give for that."""
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
        print(f"python -m gatedops: what it prints has no place: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _open_streams() -> None:
    """Makes everything printable, where a stream is closed, or has not got all letters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
        else:
            stream.reconfigure(errors="backslashreplace")


def _print_no_more() -> None:
    """For what Python itself flushes as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(_exit_code())
