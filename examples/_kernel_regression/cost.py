"""Measures what a piece of work costs: seconds, and bytes of memory at its peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")
_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """The seconds of a piece of work, and the bytes by which it raised this process's memory at its peak. memory is
    None if the system does not say (it is not Linux)."""

    seconds: float
    memory: int | None


def measured(work: Callable[[], _Result]) -> tuple[_Result, Cost]:
    """Returns the result of a piece of work and its cost."""
    before = _reset_peak()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, Cost(seconds, None if before is None else max(0, _bytes_of("VmHWM") - before))


def _reset_peak() -> int | None:
    """Resets the peak to the memory in use now, and returns that."""
    if not _PEAK.exists():
        return None
    # Linux takes the 5 as a command: it is not stored.
    _PEAK.write_text("5")
    return _bytes_of("VmRSS")


def _bytes_of(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))
