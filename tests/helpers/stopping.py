"""Runs dgn_training.py so that it sends itself a signal at one exact point:

    python stopping.py SCRIPT SIGINT|SIGKILL step|save NUMBER OPTIONS...

With `step` the signal comes in the middle of that training step (the first is 1), and with `save` when that checkpoint
is half written. A signal from outside could come too late: a run is over in seconds, and on a loaded machine the sender
can wait longer than that.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def stopping(function: Callable[..., Any], number: int, stop: Callable[..., None]) -> Callable[..., Any]:
    """Returns a function like this one, except that its call of that number first calls `stop` with the arguments."""
    calls = 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            stop(*args)
        return function(*args)

    return counted


def main() -> None:
    script, name, place, number, *options = sys.argv[1:]
    # SIGINT is ignored if a shell has started the tests in the background, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, str(Path(script).parent))

    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.Signals[name])

    def stop_writing(_: object, path: Path) -> None:
        path.write_bytes(b"PK\x03\x04")
        stop()

    if place == "save":
        torch.save = stopping(torch.save, int(number), stop_writing)
    else:
        optimizer = torch.optim.Adam
        optimizer.step = stopping(optimizer.step, int(number), stop)  # type: ignore[method-assign]
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
