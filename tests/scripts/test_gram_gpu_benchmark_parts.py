"""The parts of benchmarks/gram.py --device cuda without a GPU: limits, sizes, kernels, peers and targets."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest
import torch
from script_runs import Importer

from gatedops import GateBits, backends, npk_gram
from gatedops.backends import choice

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"

pytest.importorskip("tqdm")


@pytest.fixture
def gpu(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gram.gpu")


def part(name: str) -> ModuleType:
    return importlib.import_module(f"_gram.{name}")


def test_the_limit_is_the_slowest_unit(gpu: ModuleType) -> None:
    limits, cell = part("gpu_limits"), part("entry").Cell
    rates = limits.rates_of(H200)
    mnist = limits.gpu_limit(cell(60000, 10, 1024), rates)
    pairs = 60000 * 60001 / 2
    assert mnist.counts_s == pytest.approx(2 * pairs * 10240 / 12.5e15)
    assert mnist.writes_s == pytest.approx(4 * 60000**2 / 4.3e12)
    assert mnist.epilogue_s == pytest.approx(pairs * 10 * 192 / (64 * 128) / (132 * 1.98e9))
    assert (mnist.by, mnist.sigma_s) == ("writes", 0.0)
    floats = limits.gpu_limit(cell(60000, 10, 1024), rates, 784, "float32")
    assert floats.by == "Sigma"
    assert floats.seconds == pytest.approx(17e-3, rel=0.02)  # 3xTF32
    assert limits.gpu_limit(cell(60000, 10, 1024), rates, 784, "uint8").sigma_s == pytest.approx(
        2 * pairs * 784 / 1979e12
    )
    assert limits.gpu_limit(cell(16384, 20, 8192), rates).by == "counts"
    assert limits.gpu_limit(cell(16384, 40, 128), rates).by == "epilogue"
    assert limits.gpu_limit(cell(16384, 1, 128), limits.rates_of(H100)).writes_s > 0
    assert limits.gpu_limit(cell(16384, 1, 128), limits.rates_of("NVIDIA A100")) is None


def test_a_layer_takes_whole_steps_of_the_tensor_cores(gpu: ModuleType) -> None:
    limits, cell = part("gpu_limits"), part("entry").Cell
    rates = limits.rates_of(H200)
    narrow, step, more = (limits.gpu_limit(cell(512, 3, w), rates).counts_s for w in (128, 256, 257))
    assert narrow == step
    assert more == pytest.approx(2 * step)
    square = limits.counts_limit(cell(512, 1, 256), rates)
    assert square.counts_s == pytest.approx(2 * 512**2 * 256 / 12.5e15)
    assert limits.counts_limit(cell(512, 1, 256), None) is None


def test_cells_cover_the_range_that_is_asked_for(gpu: ModuleType) -> None:
    sizes = part("gpu_sizes")
    for made in (sizes.default_sizes(), sizes.full_sizes()):
        for name, low, high in [("n", 4096, 65536), ("layers", 1, 20), ("width", 128, 8192)]:
            values = {getattr(cell, name) for cell in made.sweep}
            assert (min(values), max(values)) == (low, high)
    assert len(set(sizes.full_sizes().sweep)) == 125
    quick = sizes.quick_sizes()
    assert len(quick.sweep) < 6
    assert (str(quick.headline), quick.never_stored) == ("n=60000, 10 x 1024", None)
    assert str(sizes.default_sizes().never_stored) == "n=500000, 10 x 1024"
    given = sizes.given_sizes(quick, [64, 128], [2], [32])
    assert [str(cell) for cell in given.sweep] == ["n=64, 2 x 32", "n=128, 2 x 32"]
    assert (str(given.headline), str(given.one_layer)) == ("n=128, 2 x 32", "n=128, 1 x 32")


def test_every_kernel_there_is_stands_in_the_table(gpu: ModuleType) -> None:
    names = part("gpu_peers").kernel_names
    assert names("cuda", 9, True) == ["wgmma", "wgmma, no clusters", "mma.sync", "Triton", "portable"]
    assert names("cuda", 8, False) == ["mma.sync", "portable"]
    assert names("triton", 9, True) == ["Triton", "portable"]
    assert names("portable", 9, True) == names("portable", 7, False) == ["portable"]


def test_a_forced_kernel_stands_in_the_table_alone(gpu: ModuleType) -> None:
    names = part("gpu_peers").kernel_names
    assert names("cuda", 9, True, "sm90x1") == ["wgmma, no clusters"]
    assert names("cuda", 9, True, "sm80") == names("cuda", 8, True, "sm80") == ["mma.sync"]
    assert names("cuda", 8, True, "sm90") == names("cuda", 9, True, "abacus") == []
    assert names("portable", 9, True, "sm90") == []


def test_a_gpu_without_kernels_of_its_own_has_portable(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("GATEDOPS_BACKEND", "GATEDOPS_CUDA"):
        monkeypatch.delenv(name, raising=False)
    assert gpu.require_kernels() == ["portable"]
    monkeypatch.setenv("GATEDOPS_CUDA", "sm80")
    with pytest.raises(ValueError, match="got 'sm80', which is not a kernel of the portable backend on this GPU"):
        gpu.require_kernels()


@pytest.mark.parametrize(
    ("backend", "triton", "packs"),
    [("cuda", True, "Triton"), ("triton", True, "Triton"), ("cuda", False, "portable"), ("", True, "portable")],
)
def test_packing_is_named_after_what_packs(
    gpu: ModuleType, backend: str, triton: bool, packs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = part("gpu_peers")
    monkeypatch.setattr(backends, "_forced", backend or None)
    found = [b for b in choice.KERNEL_BACKENDS if triton or b.name != "triton"]
    monkeypatch.setattr(choice, "able_backends", lambda but=None: found if but else [])
    assert peers.packing_kernel() == packs


def test_a_forced_kernel_is_forced_inside_the_block_only(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = part("gpu_peers")
    monkeypatch.setenv("GATEDOPS_CUDA", "before")
    with peers.forced_kernel("mma.sync"):
        assert os.environ["GATEDOPS_CUDA"] == "sm80"
    assert os.environ["GATEDOPS_CUDA"] == "before"
    with peers.forced_kernel("wgmma"):
        assert os.environ["GATEDOPS_CUDA"] == "sm90"
    with peers.forced_kernel("Triton"):
        assert os.environ["GATEDOPS_CUDA"] == "before"
    monkeypatch.delenv("GATEDOPS_CUDA")
    with peers.forced_kernel("wgmma, no clusters"):
        assert os.environ["GATEDOPS_CUDA"] == "sm90x1"
    assert "GATEDOPS_CUDA" not in os.environ


def test_peers_too_slow_or_too_large_are_left_out(gpu: ModuleType) -> None:
    peers, cell = part("gpu_peers"), part("entry").Cell
    small, large = cell(4096, 4, 1024), cell(65536, 20, 8192)
    assert peers.affordable_peers(small, 0.4, 80 << 30) == ["torch int8", "torch float16"]
    assert peers.affordable_peers(small, 0.4, 1 << 20) == []
    assert peers.affordable_peers(large, 0.4, 1 << 40) == []
    assert peers.affordable_peers(large, 100, 70 << 30) == ["torch int8"]  # either would fit, both do not
    assert peers.affordable_peers(large, 100, 55 << 30) == ["torch float16"]
    assert peers.peer_bytes("torch int8", large) == 65536 * 20 * 8192 * 2 + 8 * 65536**2


@pytest.mark.parametrize("layers", [1, 3, 13])
def test_torchs_int8_way_is_the_gram(gpu: ModuleType, layers: int) -> None:
    """13 layers of 1024: multipliers have to come before float32 overflows."""
    generator = torch.Generator().manual_seed(layers)
    masks = [torch.rand(24, 1024, generator=generator) < 0.5 for _ in range(layers)]
    x = torch.randint(0, 256, (24, 40), generator=generator, dtype=torch.uint8)
    way = part("gpu_peers").Int8PerLayer(masks, [1 / 1024] * layers)
    for given in (None, x):
        expected = npk_gram(given, GateBits.pack(masks), dtype=torch.float64)
        found = way.with_inputs(given, tf32=given is not None)()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert torch.get_float32_matmul_precision() == "highest"


def entry(what: str, by: str, seconds: float, limit: object = None, n: int = 60000, width: int = 1024) -> object:
    made = part("entry")
    return made.Entry(what, by, made.Cell(n, 10, width), None, None, seconds, seconds, 5, limit)


def test_targets(gpu: ModuleType) -> None:
    limit = part("entry").Limit(2.0, 3.0)
    entries = [
        entry("Lambda", "wgmma", 4.0, limit),
        entry("Lambda", "torch int8", 88.0),
        entry("Gram with x, float32", "wgmma", 10.0, limit),
        entry("Gram with x, float32", "torch int8", 79.0),
        entry("matvec, 10 columns", "wgmma", 4.4),
        entry("matvec, 10 columns", "wgmma", 9.0, n=500000),
    ]
    found = {
        t.name.replace(", n=60000, 10 x 1024", ""): t
        for t in part("gpu_targets").headline_targets(entries, "wgmma", part("entry").Cell(500000, 10, 1024))
    }
    assert {name: (t.wanted, t.met) for name, t in found.items()} == {
        "Lambda, torch int8 / ours": (20, True),
        "Lambda, share of the limit": (0.7, True),
        "Gram with x, float32, torch int8 / ours": (8, False),
        "matvec, 10 columns / Lambda": (1.0, False),  # the Gram is bound by writing: the matvec has to be faster
        "matvec, 10 columns, n=500000, 10 x 1024, ran without its Gram of 1.0 TB": (1, True),
    }


def test_one_layer_counts_two_operations_a_pair_of_all_pairs(gpu: ModuleType) -> None:
    counted = entry("counts of two sets", "wgmma", 1.0)
    assert part("gpu_sections").operations(counted) == 2 * 60000**2 * 10240
    first, stretch = part("gpu_targets").one_layer_targets([counted], "wgmma")
    assert (first.wanted, stretch.wanted) == (8.6, 11)
    assert first.found == pytest.approx(0.0737, rel=1e-3)


def test_packing_is_held_to_the_bytes_that_a_copy_moves(gpu: ModuleType) -> None:
    pack = part("packing").PackEntry("q", 3200, 100, 1.0, 2.0, 5)
    assert pack.share_of_moved == pytest.approx(3300 / 1.0 / (6400 / 2.0))
    assert [t.met for t in part("gpu_targets").packing_targets([pack])] == [True]
