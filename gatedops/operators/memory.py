"""Asks how much memory is free, and refuses results that are larger."""

from __future__ import annotations

from pathlib import Path

import torch

_GIB = 1 << 30
_MEMINFO = Path("/proc/meminfo")
# A container's limit and use: version 2 of control groups, and version 1.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available(device: torch.device) -> int | None:
    """Returns the bytes that are free on a device now, or None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = (_of_system(), *(_of_group(*pair) for pair in _LIMITS))
    return min((free for free in found if free is not None), default=None)


def require_memory(needed: int, what: str, device: torch.device) -> None:
    """Raises ValueError if a result of this many bytes does not fit into the free memory."""
    free = available(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{what} need {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB are free on {device}; take fewer rows or"
            " columns at a time, or multiply by the operator, which stores nothing of this size"
        )


def _of_system() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _of_group(limit: str, used: str) -> int | None:
    """Returns what a control group may still take; None if it has no limit."""
    try:
        return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
    except (OSError, ValueError):
        return None
