"""What the figures were measured on, and the rate that the machine's instructions allow."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import gatedops
from gatedops import backends

REPOSITORY = Path(__file__).resolve().parents[2]

# Instruction set -> (pairs of bits a core looks at in a cycle, why).
# avx512: three operations on two 512-bit ports (Intel; AMD Zen 4 has four ports of 256 bits, which is the same).
# avx2: 6.5 operations, without a vector popcount, on four ports (AMD; on three ports of Intel it is 118).
BIT_PAIRS_PER_CYCLE = {
    "amx": (1024, "16 x 16 x 64 bits as bytes per 16 cycles (TDPBUUD)"),
    "avx512": (512 / 1.5, "512 bits per 1.5 cycles (AND, VPOPCNTQ, ADD on two ports)"),
    "avx2": (256 * 4 / 6.5, "256 bits per 1.6 cycles (two ANDs, shuffles and adds, half a shift, on four ports)"),
}

MULTIPLY_CYCLES = 3  # latency of a 64-bit integer multiply: Intel since Nehalem (2008), AMD since Zen (2017)


@dataclass(frozen=True)
class Bound:
    """Bit-pairs per second that the instruction set in use cannot exceed; None where no bound is known."""

    bit_pairs_per_second: float | None
    explanation: str


def machine_report() -> dict[str, object]:
    """CPU, threads, versions, instruction set, command and commit: what a figure has to stand beside."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": instruction_set(),
        "clock_hz": clock_hz(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gatedops": gatedops.__version__,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def instruction_set() -> str:
    """The instruction set that the CPU kernels run with: "serial", "avx2", "avx512" or "amx"."""
    return backends.active_isa()


def clock_hz() -> float | None:
    """The clock of one core under load, measured; None where the method does not apply (not x86-64).

    cumprod of int64 multiplies into one register: every element waits for a multiply of 3 cycles, and nothing
    else is in the way. The difference of two lengths drops the cost of the call, the best of many the
    interruptions. (/proc/cpuinfo shows the nominal clock on a virtual machine.) Cores that slow down under
    512-bit instructions are not noticed: the bound is then too high and the share too low.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    length = 1 << 14
    seconds = _cumprod_seconds(2 * length) - _cumprod_seconds(length)
    return MULTIPLY_CYCLES * length / seconds if seconds > 0 else None


def _cumprod_seconds(length: int, repeats: int = 60) -> float:
    values, products = torch.ones(length, dtype=torch.int64), torch.empty(length, dtype=torch.int64)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.cumprod(values, 0, out=products)
        best = min(best, time.perf_counter() - start)
    return best


def bit_pair_bound(report: dict[str, object]) -> Bound:
    """The bound for counting overlaps, from the report of `machine_report`."""
    isa, clock, threads = report["instruction_set"], report["clock_hz"], report["threads"]
    if isa not in BIT_PAIRS_PER_CYCLE or not isinstance(clock, float) or not isinstance(threads, int):
        return Bound(None, f"none known for {isa} on {report['architecture']}")
    per_cycle, why = BIT_PAIRS_PER_CYCLE[str(isa)]
    rate = per_cycle * clock * threads
    return Bound(rate, f"{rate:.3g} bit-pairs/s: {why} x {threads} threads x {clock / 1e9:.2f} GHz (measured)")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" after it when files differ; None outside git."""
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
