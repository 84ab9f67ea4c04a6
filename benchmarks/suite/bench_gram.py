"""gate_overlap, npk_gram, npk_diag and npk_matvec at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits, gate_overlap, npk_diag, npk_gram, npk_matvec

POINTS, INPUTS = 1024, 784
NETS = {"4 x 1024": (1024,) * 4, "10 x 128": (128,) * 10, "1 x 64": (64,), "mixed": (31, 512, 257)}


def random_gates(widths: Sequence[int], n: int = POINTS, seed: int = 0) -> GateBits:
    generator = torch.Generator().manual_seed(seed)
    return GateBits.pack([torch.rand(n, width, generator=generator) > 0.5 for width in widths])


def random_inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randint(0, 256, (POINTS, INPUTS), generator=torch.Generator().manual_seed(2))
    return x.to(dtype) if dtype == torch.uint8 else (x / 255).to(dtype)


@pytest.mark.parametrize("net", NETS)
def test_gate_overlap(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(gate_overlap, random_gates(NETS[net]))


@pytest.mark.parametrize("net", NETS)
def test_lambda_alone(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(npk_gram, None, random_gates(NETS[net]), out=torch.empty(POINTS, POINTS))


def test_lambda_alone_of_two_sets(benchmark: BenchmarkFixture) -> None:
    bits, y_bits = random_gates(NETS["4 x 1024"]), random_gates(NETS["4 x 1024"], seed=1)
    benchmark(npk_gram, None, bits, None, y_bits, out=torch.empty(POINTS, POINTS))


def test_lambda_alone_in_float64(benchmark: BenchmarkFixture) -> None:
    out = torch.empty(POINTS, POINTS, dtype=torch.float64)
    benchmark(npk_gram, None, random_gates(NETS["4 x 1024"]), dtype=torch.float64, out=out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=lambda dtype: str(dtype)[6:])
def test_gram_with_inputs(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    bits, out = random_gates(NETS["4 x 1024"]), torch.empty(POINTS, POINTS)
    benchmark(npk_gram, random_inputs(dtype), bits, out=out)


def test_gram_normalized(benchmark: BenchmarkFixture) -> None:
    benchmark(npk_gram, random_inputs(), random_gates(NETS["4 x 1024"]), normalize=True)


def test_gram_backward(benchmark: BenchmarkFixture) -> None:
    x, bits, grad = (
        random_inputs().requires_grad_(),
        random_gates(NETS["4 x 1024"]),
        torch.rand(POINTS, POINTS),
    )
    gram = npk_gram(x, bits)
    benchmark(torch.autograd.grad, gram, x, grad, retain_graph=True)


def test_gram_tiny(benchmark: BenchmarkFixture) -> None:
    """The cost of the call itself."""
    benchmark(npk_gram, torch.rand(2, 3), random_gates((32,), n=2))


def test_diag(benchmark: BenchmarkFixture) -> None:
    benchmark(npk_diag, random_inputs(), random_gates(NETS["4 x 1024"]))


@pytest.mark.parametrize("columns", [1, 10])
def test_matvec(benchmark: BenchmarkFixture, columns: int) -> None:
    bits, v = random_gates(NETS["4 x 1024"]), torch.randn(POINTS, columns)
    benchmark(npk_matvec, random_inputs(), bits, v)
