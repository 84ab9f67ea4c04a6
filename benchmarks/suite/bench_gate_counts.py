"""Gate statistics on the gates of 5 x 128 units: a positional popcount beside memcpy and numpy; `make bench` runs this.

Each result has the bytes of words that it gets through in a second, "GB/s", in its extra_info (saved with the timings).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bench_gram import random_gates
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits, backends, count_regions, gate_stats
from gatedops.ops.gate_counts import gate_counts, on_per_input

WIDTHS = (128,) * 5
POINTS = 100_000  # 16 MB of words
FEW = 10_000  # for numpy, which makes a byte of every bit


def run(benchmark: BenchmarkFixture, function: Callable[[GateBits], object], n: int = POINTS) -> None:
    bits = random_gates(WIDTHS, n)
    benchmark(function, bits)
    if benchmark.stats is not None:  # None if timing is off
        benchmark.extra_info["GB/s"] = round(bits.nbytes / benchmark.stats.stats.median / 1e9, 2)


@pytest.mark.parametrize("isa", backends.available_isas())
def test_gate_counts(benchmark: BenchmarkFixture, isa: str) -> None:
    with backends.force_cpu(isa):
        run(benchmark, gate_counts)


@pytest.mark.parametrize("op", [on_per_input, gate_stats, count_regions])
def test_statistics(benchmark: BenchmarkFixture, op: Callable[[GateBits], object]) -> None:
    run(benchmark, op)


def test_memcpy(benchmark: BenchmarkFixture) -> None:
    """Reads and writes the words on all threads; the counts only read them."""
    to = torch.empty_like(random_gates(WIDTHS, POINTS).words)
    run(benchmark, lambda bits: to.copy_(bits.words))


def test_unpackbits_and_sum_in_numpy(benchmark: BenchmarkFixture) -> None:
    run(benchmark, lambda bits: np.unpackbits(bits.words.numpy().view(np.uint8), axis=1).sum(0), FEW)


def test_unpack_and_sum_in_torch(benchmark: BenchmarkFixture) -> None:
    run(benchmark, lambda bits: [gates.sum(0) for gates in bits.unpack()], FEW)
