"""Timing peers fairly: same process, warmed up, in turns, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of every timed run of one function."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]],
    repeats: int = 21,
    *,
    least: int = 5,
    seconds: float = 2.5,
    label: str = "timing",
) -> dict[str, Timing]:
    """Time every function `repeats` times, in turns, after one run of each to warm up.

    Turns (a, b, c, a, b, c, ...) spread drifts of the machine over all of them and leave each a cache full of the
    others' data. A function that would take longer than `seconds` for all its runs gets fewer of them, though not
    fewer than `least`, spread over the turns; the number of samples says how many. A progress bar appears on a
    terminal.
    """
    warm_up = {name: _seconds(function) for name, function in functions.items()}
    runs = {name: min(repeats, max(least, int(seconds / warm_up[name]))) for name in functions}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    with tqdm(total=sum(runs.values()), desc=label, leave=False, disable=None) as bar:
        for turn in range(1, repeats + 1):
            for name, function in functions.items():
                if len(samples[name]) < turn * runs[name] // repeats:
                    samples[name].append(_seconds(function))
                    bar.update()
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def readable_seconds(seconds: float) -> str:
    """Three significant digits with a unit: "3.21 ms"."""
    unit, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    value = seconds / size
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
