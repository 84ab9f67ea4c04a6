"""pack_gates, unpack_gates and rows of GateBits, at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits, pack_gates, unpack_gates

POINTS = 2048
SHAPES = {"dense 1024": (1024,), "tokens 16 x 192": (16, 192), "image 64 x 8 x 8": (64, 8, 8)}


def pre_activations(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(POINTS, *shape, generator=generator).to(dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_pack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(pack_gates, pre_activations(SHAPES[name]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool], ids=lambda dtype: str(dtype)[6:])
def test_pack_gates_of_dtype(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    q = pre_activations((1024,))
    benchmark(pack_gates, q > 0 if dtype == torch.bool else q.to(dtype))


def test_pack_gates_channels_last(benchmark: BenchmarkFixture) -> None:
    q = pre_activations(SHAPES["image 64 x 8 x 8"]).contiguous(memory_format=torch.channels_last)
    benchmark(pack_gates, q)


def test_pack_gates_tiny(benchmark: BenchmarkFixture) -> None:
    """The cost of the call itself."""
    benchmark(pack_gates, torch.randn(2, 32))


@pytest.mark.parametrize("name", SHAPES)
def test_unpack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(unpack_gates, pack_gates(pre_activations(SHAPES[name])))


def test_rows_by_index(benchmark: BenchmarkFixture) -> None:
    bits = GateBits.pack([pre_activations((1024,)), pre_activations((257,))])
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(1))
    benchmark(bits.__getitem__, order)


def test_cat(benchmark: BenchmarkFixture) -> None:
    bits = GateBits.pack([pre_activations((1024,)), pre_activations((257,))])
    benchmark(GateBits.cat, [bits, bits])
