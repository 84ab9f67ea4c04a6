"""Measures the peak memory of one call in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from forked import run_forked

from gatedops import backends

# An op may take this much beside its result. The portable ops have larger tiles than the kernels in C++.
WORKSPACE_MIB = 256 if backends.forced_backend() == "portable" else 64
ROOT = Path(__file__).resolve().parents[2]

needs_proc = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")

# A small call comes first, so that thread pools and libraries are loaded. Writing 5 to clear_refs resets the peak.
SCRIPT = """
import torch
from strategies import dense, random_bits, rows_of
{setup}

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 1024

torch.set_num_threads(2)
for n in {sizes}:
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    result = {call}
    grown = status("VmHWM") - before
    del result
"""


def peak_mib(setup: str, call: str, *, sizes: Sequence[int]) -> float:
    """Returns the MiB by which `call`, an expression of n, raises the resident memory at its peak, for the last n."""
    return run_forked(SCRIPT.format(setup=setup, call=call, sizes=tuple(sizes)), "grown")
