"""pack_gates, unpack_gates, rows of GateBits, and gate statistics beside memcpy and numpy; `make bench` runs this.

A result of the statistics has the bytes of words that it gets through in a second, "GB/s", in its extra_info, which is
saved with the timings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from bench_gram import random_gates
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits, backends, count_regions, gate_stats, pack_gates, unpack_gates
from gatedops.ops.gate_counts import gate_counts, on_per_input

POINTS, IMAGE = 2048, (64, 8, 8)
SHAPES = {"dense 1024": (1024,), "tokens 16 x 192": (16, 192), "image 64 x 8 x 8": IMAGE}
WIDTHS, MANY = (128,) * 5, 100_000  # 16 MB of words
FEW = 10_000  # for what makes a byte of every bit


def pre_activations(*shape: int) -> torch.Tensor:
    return torch.randn(POINTS, *shape, generator=torch.Generator().manual_seed(0))


INPUTS: dict[str, Callable[[], torch.Tensor]] = {
    "float64": lambda: pre_activations(1024).double(),
    "bfloat16": lambda: pre_activations(1024).bfloat16(),
    "bool": lambda: pre_activations(1024) > 0,
    "channels last": lambda: pre_activations(*IMAGE).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", [*SHAPES, *INPUTS])
def test_pack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(pack_gates, INPUTS[name]() if name in INPUTS else pre_activations(*SHAPES[name]))


@pytest.mark.parametrize("name", SHAPES)
def test_unpack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(unpack_gates, pack_gates(pre_activations(*SHAPES[name])))


@pytest.mark.parametrize("what", ["rows by index", "cat"])
def test_gate_bits(benchmark: BenchmarkFixture, what: str) -> None:
    bits = GateBits.pack([pre_activations(1024), pre_activations(257)])
    rows = torch.randperm(POINTS, generator=torch.Generator().manual_seed(1))
    benchmark(*((bits.__getitem__, rows) if what == "rows by index" else (GateBits.cat, [bits, bits])))


def run(benchmark: BenchmarkFixture, function: Callable[[GateBits], object], n: int = MANY) -> None:
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
    to = torch.empty_like(random_gates(WIDTHS, MANY).words)
    run(benchmark, lambda bits: to.copy_(bits.words))


def test_unpackbits_and_sum_in_numpy(benchmark: BenchmarkFixture) -> None:
    run(benchmark, lambda bits: np.unpackbits(bits.words.numpy().view(np.uint8), axis=1).sum(0), FEW)


def test_unpack_and_sum_in_torch(benchmark: BenchmarkFixture) -> None:
    run(benchmark, lambda bits: [gates.sum(0) for gates in bits.unpack()], FEW)
