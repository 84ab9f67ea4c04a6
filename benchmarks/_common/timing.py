"""Timing contestants fairly: same process, warmed up, in turns, medians; on a GPU by CUDA events, with a cold cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gatedops.progress import with_bar

UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
FLUSH = 256 << 20  # bytes written before each run on a GPU: several times its second-level cache
GPU_WARM_UP = 3  # runs that compile, choose tiles and allocate

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed run of one function."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


def interleaved_medians(
    functions: Calls, repeats: int = 21, *, least: int = 5, seconds: float = 2.5, label: str = "timing"
) -> dict[str, Timing]:
    """Times every function `repeats` times, in turns, after one run of each to warm up.

    Turns (a, b, c, a, b, c, ...) spread drifts of the machine over all functions, and each function finds the caches
    full of the others' data. A function that would take longer than `seconds` for all its runs gets fewer runs, but at
    least `least`, spread over the turns; the number of samples says how many. A terminal shows a progress bar.
    """
    warm_up = {name: _seconds(function) for name, function in functions.items()}
    runs = {name: min(repeats, max(least, int(seconds / warm_up[name]))) for name in functions}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    due = [
        name
        for turn in range(repeats)
        for name, count in runs.items()
        if (turn + 1) * count // repeats > turn * count // repeats
    ]
    for name in with_bar(due, label, "run", len(due), None):
        samples[name].append(_seconds(functions[name]))
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def interleaved_gpu_medians(functions: Calls, repeats: int = 21, *, label: str = "timing") -> dict[str, Timing]:
    """Times every function `repeats` times on the GPU, in turns, after three runs of each to warm up."""
    for function in functions.values():
        for _ in range(GPU_WARM_UP):
            function()
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in functions}
    for _ in with_bar(range(repeats), label, "turn", repeats, None):
        for name, function in functions.items():
            flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: Timing(tuple(b.elapsed_time(e) / 1e3 for b, e in taken)) for name, taken in events.items()}


def best_seconds(function: Callable[[], object], runs: int) -> float:
    """Returns the time of the fastest run; the first one warms up."""
    return min(_seconds(function) for _ in range(runs))


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def readable_seconds(seconds: float) -> str:
    """Three significant digits with a unit: "3.21 ms"."""
    unit, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    value = seconds / size
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
