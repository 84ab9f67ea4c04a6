"""Backends for the self-test whose kernels run on the CPU: each is the portable op with something wrong.

Most of these faults would end the process of the tests, so they happen in processes of the self-test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import Kernel, KernelBackend
from gatedops.portable.register import OPS
from gatedops.selftest.case import Arguments, Timing
from gatedops.selftest.cases import gates

FAMILY, OP = "gates", "pack_gates"  # The backends have kernels for this op, because its cases take little time.
PIDS = "FAKE_BACKENDS_PIDS"  # This variable names a file to which HANGS writes the processes that must end.
_A_LITTLE = 0.002  # seconds


class CpuAsGpu(Gpu):
    """The CPU, which takes the place of a kind of GPU."""

    @property
    def device(self) -> str:
        return "cpu"


GPU = CpuAsGpu("Fake GPU", (9, 0), "580.65.06")


def _backend(name: str, change: Callable[[Kernel], Kernel], missing: str | None = None) -> KernelBackend:
    """Makes a backend whose kernel is the changed portable op."""

    def load() -> dict[str, Kernel]:
        gates.timings = _short_timings  # The timings for GPUs take too long here.
        return {OP: change(OPS[OP])}

    return KernelBackend(
        name.lower(), f"{__name__}:{name}", (OP,), lambda: missing, lambda: "a build", lambda: "sources", load
    )


def _short_timings() -> list[Timing]:
    def make(device: torch.device) -> Arguments:
        return [torch.linspace(-1, 1, 64 * 64, device=device).view(64, 1, 64)], {}

    return [Timing(f"{OP}, {size}", OP, size, make) for size in ("small", "large")]


def _before(happens: Callable[[], None]) -> Callable[[Kernel], Kernel]:
    """Makes something happen before each call of an op."""

    def change(op: Kernel) -> Kernel:
        @wraps(op)
        def run(*args: Any, **kwargs: Any) -> Any:
            happens()
            return op(*args, **kwargs)

        return run

    return change


def _flip_a_bit(words: Tensor) -> Tensor:
    """Returns the words with one bit flipped, if there are any."""
    flipped = words.clone()
    flipped.view(-1)[-1:] ^= 1
    return flipped


def _wrong_by_a_bit(op: Kernel) -> Kernel:
    return lambda *args: _flip_a_bit(op(*args))


def _unsteady(op: Kernel) -> Kernel:
    """Is right in every first call, and wrong in every second one."""
    calls = 0

    def run(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return op(*args) if calls % 2 else _flip_a_bit(op(*args))

    return run


def _raise() -> None:
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def _hang() -> None:
    """Never ends, not even by a signal, and starts a process that does not end either."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    if PIDS in os.environ:
        Path(os.environ[PIDS]).write_text(f"{os.getpid()} {child.pid}\n")
    while True:
        time.sleep(600)


def _exit_when_timed() -> None:
    if "time" in sys.argv:
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)


def _print_a_megabyte() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * 2**20 + '\n{"outcome": "wrong", "why": "it says so"}\n')


def _flooding(op: Kernel) -> Kernel:
    """Prints much in its first call. It is faster than the portable op because that is made slower."""
    OPS[OP] = _before(lambda: time.sleep(_A_LITTLE))(op)
    left = [_print_a_megabyte]
    return _before(lambda: left.pop()() if left else None)(op)


def _cannot_load(op: Kernel) -> Kernel:
    raise OSError("libcudart.so.13: cannot open shared object file")


def _segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


RIGHT_ONE = _backend("RIGHT_ONE", lambda op: op)
SLOWER = _backend("SLOWER", _before(lambda: time.sleep(_A_LITTLE)))
FLOODS = _backend("FLOODS", _flooding)
WRONG_BY_A_BIT = _backend("WRONG_BY_A_BIT", _wrong_by_a_bit)
UNSTEADY = _backend("UNSTEADY", _unsteady)
RAISES = _backend("RAISES", _before(_raise))
CANNOT_LOAD = _backend("CANNOT_LOAD", _cannot_load)
HANGS = _backend("HANGS", _before(_hang))
KILLS = _backend("KILLS", _before(_segfault))
CRASHES_ONLY_WHEN_TIMED = _backend("CRASHES_ONLY_WHEN_TIMED", _before(_exit_when_timed))
MISSING = _backend("MISSING", lambda op: op, missing="needs a thing that is not here")


def command(*backends: KernelBackend) -> int:
    """Runs `python -m gatedops selftest` with these backends, in a process of its own."""
    from gatedops.commands import selftest

    selftest.KERNEL_BACKENDS, selftest.gpus, selftest.why_unusable = backends, lambda: [GPU], lambda device: None
    return selftest.main(sys.argv[1:])
