"""Runs the self-test: every family of every backend in processes of its own, one after another.

For each family one process checks its kernels and, if they are right, a second process times them
(gatedops/selftest/worker.py). Whatever such a process does, the self-test goes on: it kills a process that takes too
long for a case, with all processes that this one started, and it knows a crash by the exit code.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatedops.backends import child
from gatedops.backends.kernels import KernelBackend
from gatedops.backends.verdict_files import Verdicts
from gatedops.backends.verdicts import OUTCOMES, RIGHT, Verdict

# It takes a family, the name of a backend, and its verdict.
Progress = Callable[[str, str, Verdict], None]

SIZES = ("small", "large")
# A case may take this many seconds, with compiling its kernels.
LIMIT = 120.0

# These signals end the self-test.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The first two choose kernels, and the test chooses its own. The others let products of float32 be less precise.
_NOT_PASSED_ON = ("GATEDOPS_BACKEND", "GATEDOPS_CUDA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")
# A worker ends by itself this many seconds after the limit, in case nobody is there to kill it.
_GRACE = 30
# A report is looked at every this many seconds.
_LOOK = 0.1
# A killed process gets this many seconds to end; a process that waits for a GPU may never end.
_DYING = 10.0
# This many bytes of a worker's output are read.
_TAIL = 4096
# A sentence is cut off at this many characters.
_LONGEST = 300


@dataclass(frozen=True)
class _Report:
    """A worker's report: how many cases were right, the case that began but did not end, and the last line."""

    right: int
    within: str | None
    last: dict[str, Any] | None


@dataclass(frozen=True)
class _End:
    """The end of a worker. `code` is its exit code, or minus the number of a signal, or None if it passed the limit."""

    code: int | None
    report: _Report
    printed: str


def run(
    backends: Sequence[KernelBackend], families: Sequence[str], device: str, limit: float, progress: Progress
) -> Verdicts:
    """Returns the verdicts on families of backends. They are tested one after another, because two at once would
    disturb each other's times."""
    found: Verdicts = {}
    for family in families:
        for backend in backends:
            if backend.ops_of(family):
                verdict = verdict_on(backend, family, device, limit)
                found.setdefault(family, {})[backend.name] = verdict
                progress(family, backend.name, verdict)
    return found


def verdict_on(backend: KernelBackend, family: str, device: str, limit: float) -> Verdict:
    """Returns the verdict on the kernels that a backend has for a family; no case may take longer than the limit."""
    today = datetime.date.today().isoformat()
    verdict = replace(_checked(_worker(backend, family, device, "check", limit), limit), date=today)
    if not verdict.is_right:
        return verdict
    return _timed(verdict, _worker(backend, family, device, "time", limit), limit)


# --- verdicts -------------------------------------------------------------------------------------------------------


def _checked(end: _End, limit: float) -> Verdict:
    last, right = end.report.last, end.report.right
    if last is not None and "outcome" in last:  # How the process ends after that does not matter.
        return Verdict(last["outcome"], last["why"], cases=right)
    failed = _failed(end, limit)
    return Verdict(RIGHT, cases=right) if failed is None else Verdict(*failed, cases=right)


def _timed(verdict: Verdict, end: _End, limit: float) -> Verdict:
    """Adds the times to the verdict on kernels that were right. Right kernels may lack the memory to be timed, but
    kernels that crash, hang or raise an error now are not right."""
    failed = _failed(end, limit)
    if failed is not None:
        return replace(verdict, outcome=failed[0], why=f"while it was timed, {failed[1]}")
    last = end.report.last
    assert last is not None
    if "outcome" in last:
        return replace(verdict, outcome=last["outcome"], why=f"while it was timed, {last['why']}")
    if "untimed" in last:
        return replace(verdict, why=f"not timed: {last['untimed']}")
    timings = tuple(last["timings"])
    faster = _faster(timings)
    return replace(verdict, faster=faster, timings=timings, why="" if faster else "none of its calls is timed")


def _failed(end: _End, limit: float) -> tuple[str, str] | None:
    """Returns the outcome and what went wrong, for a worker that did not end well."""
    begun = end.report.last is not None or end.report.right > 0
    where = end.report.within or ("after the last case" if begun else "loading the kernels")
    if end.code is None:
        return "hung", f"{where}: not done after {limit:g} s"
    if end.code == 0 and end.report.last is not None:
        return None
    said = f": {end.printed}" if end.printed else ""
    name = _exit_name(end.code) if end.code else "exit code 0 and no valid report"
    return "crashed", f"{where}: the process ended with {name}{said}"


def _exit_name(code: int) -> str:
    """Names an exit code: "SIGSEGV" for -11, "exit code 3" for 3."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _faster(timings: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Returns how many times as fast as the portable ops the kernels are, as the geometric mean at each size; empty if
    a size was not timed."""
    ratios = {size: [t["portable_s"] / t["kernel_s"] for t in timings if t["size"] == size] for size in SIZES}
    if not all(ratios.values()):
        return ()
    return tuple(statistics.geometric_mean(ratios[size]) for size in SIZES)


# --- processes ------------------------------------------------------------------------------------------------------


def _worker(backend: KernelBackend, family: str, device: str, part: str, limit: float) -> _End:
    """Runs a worker. Whatever happens, even Ctrl-C, no process of its group and no file stays behind."""
    with tempfile.TemporaryDirectory(prefix="gatedops-selftest-") as folder:
        report, printed = Path(folder, "report"), Path(folder, "stderr")
        command = [sys.executable, "-m", "gatedops.selftest.worker", "--backend", backend.at, "--family", family]
        command += ["--device", device, "--part", part, "--report", str(report)]
        command += ["--limit", str(math.ceil(limit) + _GRACE)]
        with printed.open("wb") as stderr:
            code = _exit_code(command, stderr, report, limit)
        return _End(code, _read(report), _last_line(printed))


def _exit_code(command: Sequence[str], stderr: Any, report: Path, limit: float) -> int | None:
    """Runs a command in a process group of its own, which is killed in the end. Returns the exit code, or None if the
    command took too long."""
    quiet = subprocess.DEVNULL
    environment, process = child.environment(_NOT_PASSED_ON), None
    try:
        with _signals_wait():  # Before the process exists, a signal could not kill it.
            # A `with` block of its own would wait for a process that cannot be killed.
            process = subprocess.Popen(
                command, stdin=quiet, stdout=quiet, stderr=stderr, env=environment, start_new_session=True
            )
        return _watched(process, report, limit)
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # All processes of the group have ended.
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_DYING)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Delays signals that end the self-test until the end of the block."""
    came: list[int] = []
    in_charge = threading.current_thread() is threading.main_thread()  # Other threads get no signals.
    heeded = [number for number in ENDING if in_charge and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _watched(process: subprocess.Popen[bytes], report: Path, limit: float) -> int | None:
    """Returns the exit code of a process, or None if it added nothing to its report for `limit` seconds."""
    size, since = 0, time.monotonic()
    while time.monotonic() - since <= limit:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(_LOOK, limit))
        now = report.stat().st_size if report.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
    return None


def _read(path: Path) -> _Report:
    """Reads a report, as far as it was written and its lines are valid."""
    right, within, last = 0, None, None
    try:
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        told = _told(line)
        if told is None or told.get("cases", right) != right:
            break  # The process was killed while it wrote this line, or another process wrote it.
        if "begins" in told:
            within = told["begins"]
        elif "ends" in told:
            right, within = right + 1, None
        else:
            last = told
    return _Report(right, within, last)


def _told(line: str) -> dict[str, Any] | None:
    """Returns what a line of a report says, or None if a worker does not write such a line."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match told:
        case {"begins": str(name)} | {"ends": str(name)} | {"untimed": str(name)}:
            return {key: _shortened(name) for key in told}
        case {"outcome": outcome, "why": str(why)} if outcome in OUTCOMES and outcome != RIGHT:
            return {"outcome": outcome, "why": _shortened(why)}
        case {"cases": int(_)}:
            return told
        case {"timings": [*timings]} if all(map(_is_timing, timings)):
            return told
    return None


def _is_timing(told: object) -> bool:
    match told:
        case {"what": str(_), "size": size, "kernel_s": float(kernel), "portable_s": float(portable)}:
            return size in SIZES and 0 < kernel < math.inf and 0 < portable < math.inf
    return False


def _shortened(text: str) -> str:
    """Shortens a text to one line that a terminal shows as it is."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 4] + " ..."


def _last_line(path: Path) -> str:
    """Returns the last line of a file that is not blank, shortened; empty if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _shortened(last)
