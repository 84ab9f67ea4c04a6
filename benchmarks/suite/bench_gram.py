"""Counts of common gates, the Gram and what is made of it, hard and soft gates; `make bench` runs this.

The sizes take a few milliseconds, but for two points of 32 gates, which cost no more than the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import gatedops
from gatedops import GateBits, gate_neighbors, npk_gram, soft_npk_gram
from gatedops.ops.gate_counts import gate_counts

POINTS, SOFT_POINTS, INPUTS = 1024, 512, 784
WIDE, NARROW = (1024,) * 4, (64,)
NETS = {"4 x 1024": WIDE, "10 x 128": (128,) * 10, "1 x 64": NARROW, "mixed": (31, 512, 257)}
SOFT_NETS = {"4 x 256": (256,) * 4, "10 x 64": (64,) * 10, "1 x 1024": (1024,)}


def soft_gates(widths: Sequence[int] = SOFT_NETS["4 x 256"], n: int = SOFT_POINTS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, width, generator=generator) for width in widths]


def random_gates(widths: Sequence[int] = WIDE, n: int = POINTS, seed: int = 0) -> GateBits:
    return GateBits.pack([gates > 0.5 for gates in soft_gates(widths, n, seed)])


def random_inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randint(0, 256, (POINTS, INPUTS), generator=torch.Generator().manual_seed(2))
    return x.to(dtype) if dtype == torch.uint8 else (x / 255).to(dtype)


def gram_into_a_buffer(x: torch.Tensor | None, bits: GateBits, **options: object) -> Callable[[], object]:
    return partial(npk_gram, x, bits, **options, out=torch.empty(POINTS, POINTS, dtype=options.get("dtype")))


VARIANTS = {"two sets": {"y_bits": random_gates(seed=1)}, "float64": {"dtype": torch.float64}, "slope": {"slope": 0.01}}
NEIGHBORS = {f"k={k}, {net}": (NETS[net], {"k": k}) for net in ("4 x 1024", "1 x 64") for k in (1, 10, 100)}
NEIGHBORS |= {name: (WIDE, {"k": 10, **options}) for name, options in VARIANTS.items()}
FEW, FLOATS = random_gates((32,), n=2), torch.rand(2, 32)
TINY: dict[str, Callable[[], object]] = {
    "pack_gates": lambda: gatedops.pack_gates(FLOATS),
    "gate_counts": lambda: gate_counts(FEW),
    "npk_gram": lambda: npk_gram(FLOATS, FEW),
    "gate_neighbors": lambda: gate_neighbors(FEW, 1),
    "soft_npk_gram": lambda: soft_npk_gram(None, [FLOATS]),
}


@pytest.mark.parametrize("op", ["gate_overlap", "gate_agreement", "gate_hamming"])
@pytest.mark.parametrize("net", NETS)
def test_counts(benchmark: BenchmarkFixture, net: str, op: str) -> None:
    benchmark(getattr(gatedops, op), random_gates(NETS[net]))


@pytest.mark.parametrize("name", [*NETS, *VARIANTS])
def test_lambda_alone(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(gram_into_a_buffer(None, random_gates(NETS.get(name, WIDE)), **VARIANTS.get(name, {})))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=lambda dtype: str(dtype)[6:])
def test_gram_with_inputs(benchmark: BenchmarkFixture, dtype: torch.dtype) -> None:
    benchmark(gram_into_a_buffer(random_inputs(dtype), random_gates()))


@pytest.mark.parametrize("op", [partial(npk_gram, normalize=True), gatedops.npk_diag], ids=["gram normalized", "diag"])
def test_with_inputs(benchmark: BenchmarkFixture, op: Callable[..., object]) -> None:
    benchmark(op, random_inputs(), random_gates())


def test_gram_backward(benchmark: BenchmarkFixture) -> None:
    x, grad = random_inputs().requires_grad_(), torch.rand(POINTS, POINTS)
    benchmark(torch.autograd.grad, npk_gram(x, random_gates()), x, grad, retain_graph=True)


@pytest.mark.parametrize("columns", [1, 10])
def test_matvec(benchmark: BenchmarkFixture, columns: int) -> None:
    benchmark(gatedops.npk_matvec, random_inputs(), random_gates(), torch.randn(POINTS, columns))


@pytest.mark.parametrize("name", NEIGHBORS)
def test_neighbors(benchmark: BenchmarkFixture, name: str) -> None:
    widths, options = NEIGHBORS[name]
    benchmark(gate_neighbors, random_gates(widths), **options)


def test_neighbors_of_one_layer_among_many(benchmark: BenchmarkFixture) -> None:
    benchmark(gate_neighbors, random_gates((1024,) * 20).select_layers([7]), 10)


@pytest.mark.parametrize("net", SOFT_NETS)
def test_soft_gram(benchmark: BenchmarkFixture, net: str) -> None:
    benchmark(soft_npk_gram, None, soft_gates(SOFT_NETS[net]))


@pytest.mark.parametrize("variant", ["with inputs", "two sets", "float64"])
def test_soft_gram_variants(benchmark: BenchmarkFixture, variant: str) -> None:
    x = torch.rand(SOFT_POINTS, INPUTS) if variant == "with inputs" else None
    options = {"two sets": {"y_gates": soft_gates(seed=1)}, "float64": {"dtype": torch.float64}}.get(variant, {})
    benchmark(soft_npk_gram, x, soft_gates(), **options)


@pytest.mark.parametrize("net", SOFT_NETS)
def test_soft_gram_backward(benchmark: BenchmarkFixture, net: str) -> None:
    gates = [gate.requires_grad_() for gate in soft_gates(SOFT_NETS[net])]
    gram, cotangent = soft_npk_gram(None, gates), torch.rand(SOFT_POINTS, SOFT_POINTS)
    benchmark(torch.autograd.grad, gram, gates, cotangent, retain_graph=True)


@pytest.mark.parametrize("name", TINY)
def test_tiny(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(TINY[name])
