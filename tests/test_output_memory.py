"""New results that are large ask the system for huge pages: a Gram is not held up by a page fault every 4 KiB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import gatedops
from gatedops import GateBits

SMAPS, HUGE_PAGES = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
N = 3000  # n x n float32: 36 MB, which malloc always maps anew

pytestmark = pytest.mark.skipif(
    not SMAPS.exists() or not HUGE_PAGES.exists(), reason="no transparent huge pages, or no /proc, on this system"
)


def asked_for_huge_pages(t: Tensor) -> bool:
    """Whether the mapping that holds the middle of t is marked so."""
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        head = line.split()[0]
        if head == "VmFlags:" and inside:
            return "hg" in line.split()
        if not head.endswith(":"):
            begin, end = (int(address, 16) for address in head.split("-"))
            inside = begin <= middle < end
    raise AssertionError("the tensor lies in no mapping")


@pytest.fixture
def gates() -> Tensor:
    return torch.rand(N, 32, generator=torch.Generator().manual_seed(0))


def test_torch_itself_does_not() -> None:
    assert not asked_for_huge_pages(torch.empty(N, N))


def test_gram(gates: Tensor) -> None:
    bits = GateBits.pack([gates - 0.5])
    assert asked_for_huge_pages(gatedops.npk_gram(None, bits))
    assert asked_for_huge_pages(gatedops.npk_gram(gates, bits, dtype=torch.float64))
    assert asked_for_huge_pages(gatedops.gate_overlap(bits))


def test_soft_gram(gates: Tensor) -> None:
    assert asked_for_huge_pages(gatedops.soft_npk_gram(None, [gates]))


def test_packed_and_unpacked_gates() -> None:
    bits = GateBits.pack([torch.ones(N, 32 * N, dtype=torch.bool)])
    assert asked_for_huge_pages(bits.words)
    assert asked_for_huge_pages(bits.unpack()[0])
