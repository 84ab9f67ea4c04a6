"""soft_npk_gram and its gradient at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import soft_npk_gram

POINTS, INPUTS = 512, 784
NETS = {"4 x 256": (256,) * 4, "10 x 64": (64,) * 10, "1 x 1024": (1024,)}


def soft_gates(net: str = "4 x 256", seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(POINTS, width, generator=generator) for width in NETS[net]]


@pytest.mark.parametrize("net", NETS)
def test_soft_gram(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(soft_npk_gram, None, soft_gates(net))


def test_soft_gram_with_inputs(benchmark: BenchmarkFixture) -> None:
    benchmark(soft_npk_gram, torch.rand(POINTS, INPUTS), soft_gates())


def test_soft_gram_of_two_sets(benchmark: BenchmarkFixture) -> None:
    benchmark(soft_npk_gram, None, soft_gates(), None, soft_gates(seed=1))


def test_soft_gram_in_float64(benchmark: BenchmarkFixture) -> None:
    benchmark(soft_npk_gram, None, soft_gates(), dtype=torch.float64)


@pytest.mark.parametrize("net", NETS)
def test_soft_gram_backward(benchmark: BenchmarkFixture, net: str) -> None:
    gates = [gate.requires_grad_() for gate in soft_gates(net)]
    gram, cotangent = soft_npk_gram(None, gates), torch.rand(POINTS, POINTS)
    benchmark(torch.autograd.grad, gram, gates, cotangent, retain_graph=True)
