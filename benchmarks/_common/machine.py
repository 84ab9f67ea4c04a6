"""What the figures were measured on: how fast it counts bits, writes and copies, and whether something else ran."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

import gatedops
from _common.timing import best_seconds
from gatedops import _C, backends
from gatedops.backends.choice import backend_of

REPOSITORY = Path(gatedops.__file__).resolve().parents[1]  # of the package that runs, wherever the scripts lie
Value = TypeVar("Value")
STAT = Path("/proc/stat")
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal
RUNS = 16  # of what tells how fast memory is written
QUIET = 0.1  # cores that others may use before figures count as rough: those from a busy machine are


def machine_report(device: str = "cpu", family: str = "gram") -> dict[str, object]:
    """What a figure has to stand beside: processor, threads, versions, what runs the family of ops, command, commit."""
    report: dict[str, object] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": backends.active_isa(),
        "backend": backend_of(device, family),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatedops": gatedops.__version__,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device == "cuda":
        report |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return report


def facts_line(report: dict[str, object]) -> str:
    """Names the processor and what ran on it, for the terminal and for titles of pictures."""
    if "gpu" in report:
        return f"{report['gpu']}, {report['backend']}, torch {report['torch']}, CUDA {report['cuda']}"
    runs = report["instruction_set"] if report["backend"] == "cpu" else report["backend"]
    return f"{report['cpu']}, {report['threads']} threads, {runs}, torch {report['torch']}"


@contextmanager
def setting(read: Callable[[], Value], write: Callable[[Value], None], value: Value) -> Iterator[None]:
    """Gives a setting of torch, which these functions read and write, another value inside the block."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def torch_threads(count: int) -> AbstractContextManager[None]:
    """Makes torch, and gatedops with it, run on `count` threads inside the block."""
    return setting(torch.get_num_threads, torch.set_num_threads, count)


def bit_pair_rate(isa: str, threads: int) -> float:
    """Measures how many bit-pairs per second the instructions of this set's inner loop count in registers.

    Nothing that counts with these instructions is faster. The clock of a shared machine wanders: measure this beside
    what it bounds, and take the larger of several measurements.
    """
    return _C.bit_pairs_per_second(isa, threads)


@cache
def write_bandwidth(size: int, threads: int) -> float:
    """Measures the bytes per second of writing `size` bytes, the best of many runs. Buffers in a cache are faster.

    memset writes large buffers past the caches; torch's fill uses ordinary stores. The faster of them counts, on one
    thread or on all of them.
    """
    buffer = torch.zeros(size, dtype=torch.uint8)
    fastest = float("inf")
    for used in {1, threads}:
        with torch_threads(used):
            for write in (lambda used=used: memset(buffer, used), lambda: buffer.fill_(1)):
                fastest = min(fastest, best_seconds(write, RUNS))
    return size / fastest


def memset(buffer: Tensor, threads: int) -> None:
    """Calls the C library's memset, each thread on its part of a contiguous buffer."""
    _in_parts(lambda at, size: ctypes.memset(buffer.data_ptr() + at, 1, size), buffer.nbytes, threads)


def memcpy(to: Tensor, source: Tensor, threads: int) -> None:
    """Calls the C library's memmove, which is memcpy where nothing overlaps, each thread on its part."""
    _in_parts(lambda at, size: ctypes.memmove(to.data_ptr() + at, source.data_ptr() + at, size), to.nbytes, threads)


def _in_parts(work: Callable[[int, int], object], size: int, threads: int) -> None:
    part = -(-size // threads)
    list(_pool(threads).map(lambda at: work(at, min(part, size - at)), range(0, size, part)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


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


def busy_sentence(cores: float | None) -> str:
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


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" after it if files differ; None outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
