"""Whether something else was running: a figure from a busy machine is rough."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal
QUIET = 0.1  # cores that others may use before figures count as rough


class Contention:
    """Measures, from the moment it is made, how many cores the other processes keep busy."""

    def __init__(self) -> None:
        self.wall, self.others = time.perf_counter(), _other_seconds()

    def cores(self) -> float | None:
        """The mean number of cores that others kept busy; None if the system does not say (it is not Linux)."""
        now = _other_seconds()
        if now is None or self.others is None:
            return None
        return max(0.0, (now - self.others) / (time.perf_counter() - self.wall))


def sentence(cores: float | None) -> str:
    """A line for the end of a table."""
    if cores is None:
        return "this system does not say what else ran meanwhile"
    rough = ": BUSY, these figures are rough" if cores > QUIET else ""
    return f"other processes kept {cores:.2f} of {os.cpu_count()} cores busy meanwhile{rough}"


def _other_seconds() -> float | None:
    """CPU seconds of all processes but this one since some fixed time."""
    if not STAT.exists():
        return None
    ticks = STAT.read_text().split("\n", 1)[0].split()[1:]
    busy = sum(int(ticks[field]) for field in BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system - own.children_user - own.children_system
