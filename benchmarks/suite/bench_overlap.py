"""gate_agreement, gate_hamming and gate_neighbors at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

import pytest
import torch
from bench_gram import NETS, POINTS, random_gates
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import gate_agreement, gate_hamming, gate_neighbors


@pytest.mark.parametrize("net", NETS)
def test_gate_agreement(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(gate_agreement, random_gates(NETS[net]))


@pytest.mark.parametrize("net", NETS)
def test_gate_hamming(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(gate_hamming, random_gates(NETS[net]))


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("net", ["4 x 1024", "1 x 64"])
def test_gate_neighbors(benchmark: BenchmarkFixture, net: str, k: int) -> None:
    benchmark(gate_neighbors, random_gates(NETS[net]), k)


def test_gate_neighbors_of_two_sets(benchmark: BenchmarkFixture) -> None:
    bits, y_bits = random_gates(NETS["4 x 1024"]), random_gates(NETS["4 x 1024"], seed=1)
    benchmark(gate_neighbors, bits, 10, y_bits)


def test_gate_neighbors_in_float64(benchmark: BenchmarkFixture) -> None:
    benchmark(gate_neighbors, random_gates(NETS["4 x 1024"]), 10, dtype=torch.float64)


def test_gate_neighbors_tiny(benchmark: BenchmarkFixture) -> None:
    """The cost of the call itself."""
    benchmark(gate_neighbors, random_gates((32,), n=2), 1)


def test_gate_neighbors_of_one_layer_among_many(benchmark: BenchmarkFixture) -> None:
    bits = random_gates((1024,) * 20, n=POINTS).select_layers([7])
    benchmark(gate_neighbors, bits, 10)
