"""Lists the kinds of GPU that torch sees here. A kernel proves itself for one kind and one driver."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gatedops.backends import child

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
# A first product on a GPU, which starts CUDA and loads its libraries, may take this many seconds.
_LIMIT = 120
_TRIAL = "import sys, torch; d = sys.argv[1]; a = torch.ones(8, 8, device=d); print(float((a @ a + a).sum()))"
_EXPECTED = "576.0"


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its name, compute capability (9, 0), driver, and the indices of the GPUs of this kind."""

    name: str
    capability: tuple[int, int]
    driver: str
    indices: tuple[int, ...] = (0,)

    @property
    def device(self) -> str:
        """One GPU of this kind, as torch names it."""
        return f"cuda:{self.indices[0]}"


def gpus() -> list[Gpu]:
    """Returns one entry for each kind of GPU that torch sees, which may be none. It starts CUDA."""
    if not torch.cuda.is_available():
        return []
    kinds: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for index in range(torch.cuda.device_count()):
        kind = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        kinds.setdefault(kind, []).append(index)
    driver = driver_version()
    return [Gpu(name, capability, driver, tuple(found)) for (name, capability), found in kinds.items()]


def driver_version() -> str:
    """Returns the driver's release, such as "580.65.06", if its file says it; else the CUDA version that it serves."""
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    try:
        found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)*)\s", _DRIVER_FILE.read_text())
    except OSError:
        found = None
    return found[1] if found else _served_by_driver()


def _served_by_driver() -> str:
    version = ctypes.c_int()
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        failed = library.cuDriverGetVersion(ctypes.byref(version)) != 0
    except (OSError, AttributeError):
        return "unknown"
    return "unknown" if failed else f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def why_unusable(device: str) -> str | None:
    """Says in one sentence why torch cannot compute on a GPU that it sees; None if it can. It tries this in another
    process, because an error of CUDA leaves a process unusable."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, device],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
            env=child.environment(),
        )
    except subprocess.TimeoutExpired:
        return f"{device}: torch sees it, but a small product on it did not end within {_LIMIT} s"
    if done.returncode == 0 and done.stdout.strip() == _EXPECTED:
        return None
    said = done.stderr.strip().splitlines()
    reason = said[-1] if said else f"a small product gave {done.stdout.strip() or 'nothing'} instead of {_EXPECTED}"
    return f"{device}: torch sees it but cannot use it: {reason}"
