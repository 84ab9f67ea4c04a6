"""pack_gates, unpack_gates and rows of GateBits, at sizes of a few milliseconds; `make bench` runs this."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from gatedops import GateBits, pack_gates, unpack_gates

POINTS = 2048
IMAGE = (64, 8, 8)
SHAPES = {"dense 1024": (1024,), "tokens 16 x 192": (16, 192), "image 64 x 8 x 8": IMAGE}


def pre_activations(*shape: int) -> torch.Tensor:
    return torch.randn(POINTS, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SHAPES)
def test_pack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(pack_gates, pre_activations(*SHAPES[name]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool], ids=lambda dtype: str(dtype)[6:])
def test_pack_gates_of_dtype(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    q = pre_activations(1024)
    benchmark(pack_gates, q > 0 if dtype == torch.bool else q.to(dtype))


def test_pack_gates_channels_last(benchmark: BenchmarkFixture) -> None:
    benchmark(pack_gates, pre_activations(*IMAGE).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", SHAPES)
def test_unpack_gates(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(unpack_gates, pack_gates(pre_activations(*SHAPES[name])))


def test_rows_by_index(benchmark: BenchmarkFixture) -> None:
    bits = GateBits.pack([pre_activations(1024), pre_activations(257)])
    benchmark(bits.__getitem__, torch.randperm(POINTS, generator=torch.Generator().manual_seed(1)))


def test_cat(benchmark: BenchmarkFixture) -> None:
    bits = GateBits.pack([pre_activations(1024), pre_activations(257)])
    benchmark(GateBits.cat, [bits, bits])
