"""`python -m gatedops`: what runs where, and commands."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_HELP = """usage: python -m gatedops [command]

Without a command it prints versions, what runs where, and what is missing.

commands:
  selftest   tries the kernels for GPUs on this machine; those that are right and faster run from then on

`python -m gatedops selftest --help` lists its options."""


def main(arguments: Sequence[str]) -> int:
    """Runs a command; its exit code."""
    command = arguments[0] if arguments else None
    if command is None:
        from gatedops.commands import report

        report.main()
        return 0
    if command == "selftest":
        from gatedops.commands import selftest

        return selftest.main(arguments[1:])
    if command in ("-h", "--help"):
        print(_HELP)
        return 0
    print(f"python -m gatedops: got {command!r}, needs selftest, --help, or nothing for the report", file=sys.stderr)
    return 2


def _exit_code() -> int:
    """That of the command; where nobody reads on what it prints, the one that shells give for that."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes as it ends
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(_exit_code())
