"""Tests the kernels of one backend for one family of ops, in a process of its own, so that kernels that crash or hang
harm nothing else. `gatedops.selftest.run` starts it as

    python -m gatedops.selftest.worker --backend MODULE:NAME --family F --device cuda:0 --part check --report FILE

It writes what it finds to the report at once, one JSON object per line; nothing that kernels print goes there. The
lines are

    {"begins": "a case"}, {"ends": "a case"}    around each case
    {"outcome": "wrong", "why": "..."}          the last line, if something failed
    {"untimed": "why"}                          the last line, if there was too little memory to time it
    {"cases": 12} or {"timings": [...]}         the last line, if nothing failed
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gatedops.backends.kernels import Kernel, KernelBackend
from gatedops.backends.verdicts import UNKNOWN
from gatedops.portable.register import OPS
from gatedops.selftest.case import Case, Timing
from gatedops.selftest.cases import cases_of, timings_of
from gatedops.selftest.compare import Fault, fault_of, fault_when_timed, unsteady_when_timed

# It writes a line of the report.
Tell = Callable[[dict[str, Any]], None]

_NO_MEMORY = "too little memory is free; free some and run the self-test again"
# The kernel and the portable op each run for this many seconds in all.
_ENOUGH = 0.3
# If one of the two is far slower, both together run for at most this many seconds.
_AT_MOST = 3.0
# Each runs at least and at most this many times.
_RUNS = (3, 50)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one part of the test of a family."""
    options = _parse(arguments)
    # The alarm ends this process even if its parent is gone and a kernel hangs.
    signal.alarm(options.limit)
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("highest")
    with open(options.report, "a", encoding="utf-8") as report:

        def tell(line: dict[str, Any]) -> None:
            signal.alarm(options.limit)
            report.write(json.dumps(line) + "\n")
            report.flush()

        try:
            backend = _found(options.backend)
            kernels = backend.load()
        except Exception as error:
            tell(_raised("loading the kernels", error))
            return
        ops = backend.ops_of(options.family)
        if options.part == "check":
            tell(_check(cases_of(options.family, ops), kernels, device, tell))
        else:
            tell(_time(timings_of(options.family, ops), kernels, device, tell))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gatedops.selftest.worker", description=__doc__)
    parser.add_argument("--backend", required=True, help="where the KernelBackend is, MODULE:NAME")
    parser.add_argument("--family", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--part", required=True, choices=["check", "time"])
    parser.add_argument("--report", required=True, help="file to which lines are added")
    parser.add_argument(
        "--limit",
        type=int,
        default=0,
        help="the process ends by itself this many seconds after the last line of its report; 0: never",
    )
    return parser.parse_args(arguments)


def _found(at: str) -> KernelBackend:
    module, _, name = at.partition(":")
    backend: KernelBackend = getattr(importlib.import_module(module), name)
    return backend


def _raised(what: str, error: Exception) -> dict[str, Any]:
    """Returns the line of the report for an error."""
    message = (str(error).strip().splitlines() or ["no message"])[0]
    return {"outcome": "raised", "why": f"{what}: {type(error).__name__}: {message}"}


def _check(cases: Sequence[Case], kernels: dict[str, Kernel], device: torch.device, tell: Tell) -> dict[str, Any]:
    """Returns the last line: the fault of the first case that fails, else how many cases were right."""
    for case in cases:
        tell({"begins": case.name})
        try:
            fault = fault_of(case, kernels[case.op], device)
        except torch.OutOfMemoryError:
            return {"outcome": UNKNOWN, "why": f"{case.name}: {_NO_MEMORY}"}
        except Exception as error:  # The portable op failed, so the kernel cannot be compared with it.
            return _raised(f"{case.name}, by the portable op", error) | {"outcome": UNKNOWN}
        if fault is not None:
            outcome, why = fault
            return {"outcome": outcome, "why": f"{case.name}: {why}"}
        tell({"ends": case.name})
    return {"cases": len(cases)}


def _time(timings: Sequence[Timing], kernels: dict[str, Kernel], device: torch.device, tell: Tell) -> dict[str, Any]:
    """Returns the last line: all times, or the first fault. Too little memory is not a fault of a kernel."""
    found = []
    for timing in timings:
        tell({"begins": timing.name})
        try:
            fault, (kernel_s, portable_s) = _medians(timing, kernels[timing.op], device)
        except torch.OutOfMemoryError:
            return {"untimed": f"{timing.name}: {_NO_MEMORY}"}
        except Exception as error:
            return _raised(timing.name, error)
        if fault is not None:
            return {"outcome": fault[0], "why": f"{timing.name}: {fault[1]}"}
        found.append({"what": timing.name, "size": timing.size, "kernel_s": kernel_s, "portable_s": portable_s})
        tell({"ends": timing.name})
    return {"timings": found}


def _medians(timing: Timing, kernel: Kernel, device: torch.device) -> tuple[Fault | None, list[float]]:
    """Returns what is wrong with the kernel's results, first or in a timed run, and the median seconds that the kernel
    and the portable op take. Each runs once first, which compiles it; then they are timed in turns."""
    calls = [(op, timing.make(device)) for op in (kernel, OPS[timing.op])]
    seconds: list[list[float]] = [[], []]
    with torch.no_grad():
        first, expected = (op(*args, **kwargs) for op, (args, kwargs) in calls)
        fault = fault_when_timed(timing, first, expected)
        del expected
        while fault is None and not _is_enough(seconds):
            for (op, (args, kwargs)), taken in zip(calls, seconds, strict=True):
                _wait_for(device)
                begin = time.perf_counter()
                returned = op(*args, **kwargs)
                _wait_for(device)
                taken.append(time.perf_counter() - begin)
                fault = fault or (unsteady_when_timed(returned, first) if op is kernel else None)
                del returned
    return fault, [statistics.median(taken or [math.nan]) for taken in seconds]


def _is_enough(seconds: list[list[float]]) -> bool:
    runs, totals = len(seconds[0]), [sum(taken) for taken in seconds]
    if runs < _RUNS[0]:
        return False
    return runs >= _RUNS[1] or min(totals) >= _ENOUGH or sum(totals) >= _AT_MOST


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
