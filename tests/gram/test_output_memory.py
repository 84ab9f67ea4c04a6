"""Large new results ask the system for huge pages, so that a Gram does not wait for a page fault every 4 KiB."""

from __future__ import annotations

from pathlib import Path

import pytest
from python_process import run_python

SMAPS, HUGE_PAGES = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    not SMAPS.exists() or not HUGE_PAGES.exists(), reason="no transparent huge pages, or no /proc, on this system"
)

# This runs in a process in which nothing else has asked. n x n float32 are 36 MB, which malloc always maps anew.
SCRIPT = """
import torch
import gatedops
from gatedops import GateBits

def asked(t):
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in open("/proc/self/smaps"):
        head = line.split()[0]
        if head == "VmFlags:" and inside:
            return "hg" in line.split()
        if not head.endswith(":"):
            begin, end = (int(address, 16) for address in head.split("-"))
            inside = begin <= middle < end
    raise AssertionError("the tensor lies in no mapping")

n = 3000
gates = torch.rand(n, 32)
bits = GateBits.pack([gates - 0.5])
wide = GateBits.pack([torch.ones(n, 32 * n, dtype=torch.bool)])
for what, make in {
    "torch": lambda: torch.empty(n, n),
    "Lambda": lambda: gatedops.npk_gram(None, bits),
    "Gram in float64": lambda: gatedops.npk_gram(gates, bits, dtype=torch.float64),
    "counts": lambda: gatedops.gate_overlap(bits),
    "soft Gram": lambda: gatedops.soft_npk_gram(None, [gates]),
    "packed gates": lambda: wide.words,
    "unpacked gates": lambda: wide.unpack()[0],
}.items():
    print(asked(make()), what, sep=", ")
"""


def test_large_results_ask_for_huge_pages() -> None:
    done = run_python("-c", SCRIPT, THP_MEM_ALLOC_ENABLE="0")
    assert done.returncode == 0, done.stderr
    answers = dict(reversed(line.split(", ")) for line in done.stdout.splitlines())
    assert answers.pop("torch") == "False"  # Only the ops ask.
    assert answers == dict.fromkeys(
        ["Lambda", "Gram in float64", "counts", "soft Gram", "packed gates", "unpacked gates"], "True"
    )
