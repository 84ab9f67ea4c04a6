"""Ops on two points of 32 gates, which cost no more than the call itself; `make bench` runs this."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_gram import random_gates
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import gate_neighbors, npk_gram, pack_gates, soft_npk_gram
from gatedops.ops.gate_counts import gate_counts

BITS, FLOATS = random_gates((32,), n=2), torch.rand(2, 32)
CALLS: dict[str, Callable[[], object]] = {
    "pack_gates": lambda: pack_gates(FLOATS),
    "gate_counts": lambda: gate_counts(BITS),
    "npk_gram": lambda: npk_gram(FLOATS, BITS),
    "gate_neighbors": lambda: gate_neighbors(BITS, 1),
    "soft_npk_gram": lambda: soft_npk_gram(None, [FLOATS]),
}


@pytest.mark.parametrize("name", CALLS)
def test_tiny(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(CALLS[name])
