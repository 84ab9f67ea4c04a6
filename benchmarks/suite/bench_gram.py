"""Counts of common gates, the Gram and what is made of it, at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import (
    GateBits,
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    npk_diag,
    npk_gram,
    npk_matvec,
)

POINTS, INPUTS = 1024, 784
WIDE = (1024,) * 4
NETS = {"4 x 1024": WIDE, "10 x 128": (128,) * 10, "1 x 64": (64,), "mixed": (31, 512, 257)}


def random_gates(widths: Sequence[int] = WIDE, n: int = POINTS, seed: int = 0) -> GateBits:
    generator = torch.Generator().manual_seed(seed)
    return GateBits.pack([torch.rand(n, width, generator=generator) > 0.5 for width in widths])


VARIANTS = {"two sets": {"y_bits": random_gates(seed=1)}, "float64": {"dtype": torch.float64}}


def random_inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randint(0, 256, (POINTS, INPUTS), generator=torch.Generator().manual_seed(2))
    return x.to(dtype) if dtype == torch.uint8 else (x / 255).to(dtype)


def square(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A buffer for the Gram."""
    return torch.empty(POINTS, POINTS, dtype=dtype)


@pytest.mark.parametrize("op", [gate_overlap, gate_agreement, gate_hamming])
@pytest.mark.parametrize("net", NETS)
def test_counts(benchmark: BenchmarkFixture, net: str, op: Callable[..., object]) -> None:
    benchmark(op, random_gates(NETS[net]))


@pytest.mark.parametrize("net", NETS)
def test_lambda_alone(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(npk_gram, None, random_gates(NETS[net]), out=square())


@pytest.mark.parametrize("variant", VARIANTS)
def test_lambda_alone_variants(benchmark: BenchmarkFixture, variant: str) -> None:
    given = VARIANTS[variant]
    benchmark(npk_gram, None, random_gates(), **given, out=square(given.get("dtype", torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=lambda dtype: str(dtype)[6:])
def test_gram_with_inputs(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    benchmark(npk_gram, random_inputs(dtype), random_gates(), out=square())


@pytest.mark.parametrize("op", [partial(npk_gram, normalize=True), npk_diag], ids=["gram normalized", "diag"])
def test_with_inputs(benchmark: BenchmarkFixture, op: Callable[..., object]) -> None:
    benchmark(op, random_inputs(), random_gates())


def test_gram_backward(benchmark: BenchmarkFixture) -> None:
    x, grad = random_inputs().requires_grad_(), torch.rand(POINTS, POINTS)
    benchmark(torch.autograd.grad, npk_gram(x, random_gates()), x, grad, retain_graph=True)


@pytest.mark.parametrize("columns", [1, 10])
def test_matvec(benchmark: BenchmarkFixture, columns: int) -> None:
    benchmark(npk_matvec, random_inputs(), random_gates(), torch.randn(POINTS, columns))


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("net", ["4 x 1024", "1 x 64"])
def test_neighbors(benchmark: BenchmarkFixture, net: str, k: int) -> None:
    benchmark(gate_neighbors, random_gates(NETS[net]), k)


@pytest.mark.parametrize("variant", VARIANTS)
def test_neighbors_variants(benchmark: BenchmarkFixture, variant: str) -> None:
    benchmark(gate_neighbors, random_gates(), 10, **VARIANTS[variant])


def test_neighbors_of_one_layer_among_many(benchmark: BenchmarkFixture) -> None:
    benchmark(gate_neighbors, random_gates((1024,) * 20).select_layers([7]), 10)
