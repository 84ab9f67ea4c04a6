"""benchmarks/gram.py --device cuda without a GPU: its kernels, peers and limits, and whole runs on CPU tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gram_runs import StandIn, cell, part
from script_runs import Importer

import gatedops
from gatedops import GateBits, backends, npk_gram
from gatedops.backends import choice

KERNELS, PEERS = ("wgmma", "mma.sync"), ["torch int8", "torch float16"]
GRAMS, MATVEC = ["Lambda", "Gram with x, uint8", "Gram with x, float32"], "matvec, 10 columns"
FORCED = "GATEDOPS_CUDA"

pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def gpu(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gram.gpu")


@pytest.fixture
def stand_in(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    return StandIn(monkeypatch, tmp_path)


def raising(error: BaseException) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_a_whole_run(stand_in: StandIn) -> None:
    assert stand_in.run("sweep", "headline", "one-layer", "packing", n=(64, 72)) == 0
    found = stand_in.found
    assert (found["failures"], found["complete"], found["rates"]["bytes_per_second"]) == ([], True, 4.3e12)
    assert (found["machine"]["gpu"], found["machine"]["kernels"]) == ("NVIDIA H200", [*KERNELS])
    assert stand_in.timed("sweep") == [(n, "Lambda", by) for n in (64, 72) for by in (*KERNELS, *PEERS)]
    grams = {(72, what, by) for what in GRAMS for by in (*KERNELS, "torch int8")}
    assert set(stand_in.timed("headline")) == grams | {(72, MATVEC, "wgmma"), (72, "Lambda", "torch float16")}
    for e in found["sections"]["one-layer"]:
        assert e["bit_pairs_per_second"] * e["median_s"] == pytest.approx(72**2 * 64)
    assert len(found["sections"]["packing"]) == 12


def test_portable_alone(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If GATEDOPS_BACKEND asks for nothing, everything is timed, and portable is the only kernel."""
    stand_in = StandIn(monkeypatch, tmp_path, kernels=())
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, lambda *_, **__: pytest.fail("this is the device's own kernel"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("GATEDOPS_BACKEND", FORCED):
        monkeypatch.delenv(name, raising=False)
    assert stand_in.run("sweep", "headline", "one-layer", "packing") == 0
    assert (stand_in.found["machine"]["kernels"], "rates" in stand_in.found) == (["portable"], False)
    assert {what for _, what, by in stand_in.timed("headline") if by == "portable"} == {*GRAMS, MATVEC}
    assert stand_in.timed("one-layer") == [(64, "counts", "portable")]
    assert {by for _, _, by in stand_in.timed("sweep") + stand_in.timed("packing")} == {"portable", *PEERS, "copy_"}
    monkeypatch.setenv(FORCED, "sm80")
    with pytest.raises(ValueError, match="got 'sm80', which is not a kernel of the portable backend on this GPU"):
        stand_in.run("sweep")
    with pytest.raises(ValueError, match="--only soft is about the CPU; with --device cuda there are sweep, headline"):
        stand_in.run("sweep", "soft")


def test_portable_beside_triton_is_called_itself(stand_in: StandIn) -> None:
    stand_in.patch(stand_in.gpu, "kernels_here", lambda: ["Triton", "portable"])
    stand_in.patch(stand_in.gpu, "triton_gram", lambda bits, x, out: npk_gram(x, bits, out=out))
    for name in ("npk_gram_out", "gate_overlap"):
        stand_in.patch(part("_gram.platform").portable, name, raising(OSError(f"portable's {name}")))
    assert stand_in.run("sweep", "one-layer", options=("--no-peers",)) == 1
    assert stand_in.timed("sweep") + stand_in.timed("one-layer") == [(64, "Lambda", "Triton"), (64, "counts", "Triton")]
    reasons = [failure["reason"] for failure in stand_in.found["failures"]]
    assert reasons == ["OSError: portable's npk_gram_out", "OSError: portable's gate_overlap"]


@pytest.mark.parametrize("fault", ["wrong", "idle", "error", "error later"])
def test_a_kernel_that_fails_is_named_and_the_others_are_timed(stand_in: StandIn, fault: str) -> None:
    runs = iter(range(1000))

    def gram(_: object, kernel: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        faulty = kernel == "mma.sync" and bits.n == 64
        if faulty and (fault == "error" or (fault == "error later" and next(runs) == 2)):
            raise ArithmeticError("no shared memory")  # Triton's errors are not RuntimeErrors either.
        if faulty and fault == "idle":
            return out
        return npk_gram(x, bits, out=out).mul_(1.001 if faulty and fault == "wrong" else 1)

    stand_in.patch(stand_in.gpu.Gpu, "gram", gram)
    assert stand_in.run("sweep", "headline", n=(64, 72)) == 1
    assert (stand_in.found["complete"], stand_in.failed()) == (True, [("n=64, 2 x 64", "Lambda", "mma.sync")])
    wrong, error = "RuntimeError: the Gram is wrong: it differs from the reference", "ArithmeticError: no shared memory"
    assert stand_in.found["failures"][0]["reason"] == (error if "error" in fault else wrong)
    all_timed = [(n, "Lambda", by) for n in (64, 72) for by in (*KERNELS, *PEERS)]
    assert stand_in.timed("sweep") == [one for one in all_timed if one != (64, "Lambda", "mma.sync")]


def test_every_contestant_fails_on_its_own(stand_in: StandIn) -> None:
    matvec, counts = gatedops.npk_matvec, gatedops.gate_overlap
    stand_in.patch(stand_in.gpu.Gpu, "gram", raising(OSError("none")))
    stand_in.patch(gatedops, "npk_matvec", lambda x, bits, v: 1.001 * matvec(x, bits, v))
    stand_in.patch(gatedops, "gate_overlap", lambda x, y: counts(x, y) + (os.environ.get(FORCED) == "sm90"))
    assert stand_in.run("headline", "one-layer") == 1
    grams = [("n=64, 2 x 64", what, by) for what in GRAMS for by in KERNELS]
    assert stand_in.failed() == [*grams, ("n=64, 2 x 64", MATVEC, "wgmma"), ("n=64, 1 x 64", "counts", "wgmma")]
    assert {by for _, _, by in stand_in.timed("headline")} == set(PEERS)
    assert stand_in.timed("one-layer") == [(64, "counts", "mma.sync")]


def test_a_peer_a_cell_or_an_input_that_fails_leaves_the_rest(stand_in: StandIn) -> None:
    sections, full = part("_gram.sections"), raising(torch.OutOfMemoryError("CUDA out of memory"))
    gates, packed = sections.random_gates, sections.require_packed
    stand_in.patch(stand_in.gpu, "Int8PerLayer", full)
    stand_in.patch(sections, "random_gates", lambda cell, *more: (full if cell.n == 72 else gates)(cell, *more))
    stand_in.patch(sections, "require_packed", lambda q, call: (full if q.dtype == torch.bool else packed)(q, call))
    assert stand_in.run("sweep", "packing", n=(64, 72)) == 1
    assert stand_in.timed("sweep") == [(64, "Lambda", by) for by in (*KERNELS, "torch float16")]
    cells = [("n=64, 2 x 64", "Lambda", "torch int8"), ("n=72, 2 x 64", "sweep", "all")]
    assert stand_in.failed() == [*cells, ("(n, 4096) bool", "packing", "portable")]
    assert [by for _, _, by in stand_in.timed("packing")].count("portable") == 5


@pytest.mark.parametrize("killed", [True, False])
def test_a_run_that_is_killed_or_loses_its_gpu_leaves_the_cells_before(
    stand_in: StandIn, killed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    gram, illegal = stand_in.gpu.Gpu.gram, RuntimeError("CUDA error: illegal memory access")

    def ending(platform: object, kernel: str, bits: GateBits, *more: object) -> object:
        if kernel == "mma.sync" and bits.n == 72:
            stand_in.patch(part("_common.contest"), "synchronize", raising(illegal))
            raise KeyboardInterrupt if killed else illegal
        return gram(platform, kernel, bits, *more)

    stand_in.patch(stand_in.gpu.Gpu, "gram", ending)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            stand_in.run("sweep", "headline", n=(64, 72, 80))
    else:
        assert stand_in.run("sweep", "headline", n=(64, 72, 80)) == 1
        assert stand_in.failed() == [("n=72, 2 x 64", "Lambda", "mma.sync")]
    assert {n for n, _, _ in stand_in.timed("sweep")} == {64}
    assert (stand_in.found["complete"], list(stand_in.found["sections"])) == (False, ["sweep"])
    assert capsys.readouterr().out.count("The run ends here") == (not killed)


def test_the_limit_is_the_slowest_unit(gpu: ModuleType) -> None:
    limits = part("_gram.gpu_limits")
    rates, mnist, pairs = limits.rates_of("NVIDIA H200"), cell(60000, 10, 1024), 60000 * 60001 / 2
    limit = limits.gram_limit(mnist, rates)
    assert limit.parts == {
        "counting": pytest.approx(2 * pairs * 10240 / 12.5e15),
        "writing": pytest.approx(4 * 60000**2 / 4.3e12),
        "epilogue": pytest.approx(pairs * 10 * 192 / (64 * 128) / (132 * 1.98e9)),
        "Sigma": 0.0,
    }
    floats, pixels = (limits.gram_limit(mnist, rates, 784, dtype) for dtype in ("float32", "uint8"))
    assert (limit.by, floats.by, floats.seconds) == ("writing", "Sigma", pytest.approx(17e-3, rel=0.02))  # 3xTF32
    assert pixels.parts["Sigma"] == pytest.approx(2 * pairs * 784 / 1979e12)
    many = (cell(16384, 20, 8192), cell(16384, 40, 128))
    assert [limits.gram_limit(one, rates).by for one in many] == ["counting", "epilogue"]
    narrow, step, more = (limits.gram_limit(cell(512, 3, w), rates).parts["counting"] for w in (128, 256, 257))
    assert (narrow, more) == (step, pytest.approx(2 * step))  # a layer takes whole steps of the tensor cores
    assert limits.counts_limit(cell(512, 1, 256), rates).parts["counting"] == pytest.approx(2 * 512**2 * 256 / 12.5e15)
    assert (limits.rates_of("NVIDIA H100 80GB HBM3").gpu, limits.rates_of("NVIDIA A100")) == ("H100", None)


def test_kernels_are_all_there_are_or_the_forced_one_alone(gpu: ModuleType) -> None:
    for names, *given in [
        (["wgmma", "wgmma, no clusters", "mma.sync", "Triton", "portable"], "cuda", 9, True),
        (["mma.sync", "portable"], "cuda", 8, False),
        (["Triton", "portable"], "triton", 9, True),
        (["portable"], "portable", 9, True),
        (["wgmma, no clusters"], "cuda", 9, True, "sm90x1"),
        (["mma.sync"], "cuda", 8, True, "sm80"),
        ([], "cuda", 8, True, "sm90"),
        ([], "cuda", 9, True, "abacus"),
        ([], "portable", 9, True, "sm90"),
    ]:
        assert gpu.kernel_names(*given) == names


def test_packing_is_named_after_what_packs(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend, triton, packs in [("cuda", True, "Triton"), ("cuda", False, "portable"), (None, True, "portable")]:
        found = [b for b in choice.KERNEL_BACKENDS if triton or b.name != "triton"]
        monkeypatch.setattr(backends, "_forced", backend)
        monkeypatch.setattr(choice, "able_backends", lambda but=None, found=found: found if but else [])
        assert gpu.packing_kernel() == packs


@pytest.mark.parametrize("before", ["before", None])
def test_a_kernel_is_forced_inside_the_block_only(
    gpu: ModuleType, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FORCED, raising=False)
    if before:
        monkeypatch.setenv(FORCED, before)
    for name, value in {"mma.sync": "sm80", "wgmma": "sm90", "wgmma, no clusters": "sm90x1", "Triton": before}.items():
        with gpu.forced_kernel(name):
            assert os.environ.get(FORCED) == value
        assert os.environ.get(FORCED) == before


def test_peers_too_slow_or_too_large_are_left_out(stand_in: StandIn) -> None:
    platform = stand_in.gpu.Gpu(peers=True)
    for sizes, seconds, memory, names in [
        ((4096, 4, 1024), 0.4, 80 << 30, PEERS),
        ((4096, 4, 1024), 0.4, 1 << 20, []),
        ((65536, 20, 8192), 0.4, 1 << 40, []),
        ((65536, 20, 8192), 100, 63 << 30, PEERS[:1]),  # either would fit, both do not
        ((65536, 20, 8192), 100, 50 << 30, PEERS[1:]),
    ]:
        stand_in.patch(stand_in.gpu.Gpu, "memory", lambda _, memory=memory: memory)
        assert platform.affordable(cell(*sizes), seconds) == names


@pytest.mark.parametrize("layers", [3, 13])
def test_torchs_int8_way_is_the_gram(gpu: ModuleType, layers: int) -> None:
    """13 layers of 1024: multipliers have to come before float32 overflows."""
    generator = torch.Generator().manual_seed(layers)
    masks = [torch.rand(24, 1024, generator=generator) < 0.5 for _ in range(layers)]
    x = torch.randint(0, 256, (24, 40), generator=generator, dtype=torch.uint8)
    way = gpu.Int8PerLayer(masks, [1 / 1024] * layers)
    for given in (None, x):
        expected = npk_gram(given, GateBits.pack(masks), dtype=torch.float64)
        torch.testing.assert_close(way.with_inputs(given)().double(), expected, rtol=1e-5, atol=0)
    assert torch.get_float32_matmul_precision() == "highest"
