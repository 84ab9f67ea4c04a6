"""benchmarks/gram.py --device cuda without a GPU: its kernels, peers and limits, and whole runs on CPU tensors."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer

import gatedops
from gatedops import GateBits, backends, npk_gram
from gatedops.backends import choice

H200, H100 = "NVIDIA H200", "NVIDIA H100 80GB HBM3"
PEERS = ["torch int8", "torch float16"]
GRAMS = ["Lambda", "Gram with x, uint8", "Gram with x, float32"]
MATVEC = "matvec, 10 columns"

Run = Callable[..., tuple[int, dict]]

pytest.importorskip("tqdm")


def part(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture
def gpu(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_gram.gpu")


@pytest.fixture
def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs sections with the CPU in the place of a GPU, whose kernels are the CPU's; returns the exit status and what
    the JSON has."""
    monkeypatch.setattr(gpu.Gpu, "device", "cpu")
    monkeypatch.setattr(gpu.Gpu, "memory", lambda _: float(1 << 40))
    monkeypatch.setattr(gpu, "kernels_here", lambda: ["wgmma", "mma.sync"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: H200)
    script = part("gram")

    def run_of(*sections: str, n: tuple[int, ...] = (64,), options: tuple[str, ...] = ()) -> tuple[int, dict]:
        given = ["--device", "cuda", "--quick", "--layers", "2", "--width", "64", "--n", *map(str, n), "--no-plot"]
        given += [*options, "--only", *sections, "--out", str(tmp_path)]
        return script.run(script.parser().parse_args(given)), written(tmp_path)

    return run_of


def written(folder: Path) -> dict:
    return json.loads((folder / "gram_cuda.json").read_text())


def timed(found: dict, section: str) -> list[tuple[int, str, str]]:
    return [(e.get("n"), e["what"], e["by"]) for e in found["sections"][section]]


def failed(found: dict) -> list[tuple[str, str, str]]:
    return [(failure["problem"], failure["what"], failure["by"]) for failure in found["failures"]]


def test_a_whole_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run("sweep", "headline", "one-layer", "packing", n=(64, 72))
    assert (status, found["failures"], found["complete"]) == (0, [], True)
    assert (found["machine"]["gpu"], found["machine"]["kernels"]) == (H200, ["wgmma", "mma.sync"])
    assert found["rates"]["bytes_per_second"] == 4.3e12
    assert timed(found, "sweep") == [(n, "Lambda", by) for n in (64, 72) for by in ("wgmma", "mma.sync", *PEERS)]
    headline = {(what, by) for _, what, by in timed(found, "headline")}
    grams = {(what, by) for what in GRAMS for by in ("wgmma", "mma.sync", "torch int8")}
    assert headline == grams | {(MATVEC, "wgmma"), ("Lambda", "torch float16")}
    for e in found["sections"]["one-layer"]:
        assert e["bit_pairs_per_second"] * e["median_s"] == pytest.approx(72**2 * 64)
    assert len(found["sections"]["packing"]) == 12
    assert "chosen kernel: wgmma" in capsys.readouterr().out


def test_portable_alone(run: Run, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """If GATEDOPS_BACKEND asks for nothing, everything is timed, and portable is the only kernel."""
    monkeypatch.undo()
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, lambda *_, **__: pytest.fail("this is the device's own kernel"))
    monkeypatch.setattr(gpu.Gpu, "device", "cpu")
    monkeypatch.setattr(gpu.Gpu, "memory", lambda _: float(1 << 40))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("GATEDOPS_BACKEND", "GATEDOPS_CUDA"):
        monkeypatch.delenv(name, raising=False)
    status, found = run("sweep", "headline", "one-layer", "packing")
    assert (status, found["machine"]["kernels"], "rates" in found) == (0, ["portable"], False)
    assert {by for _, _, by in timed(found, "sweep")} == {"portable", *PEERS}
    assert {what for _, what, by in timed(found, "headline") if by == "portable"} == {*GRAMS, MATVEC}
    assert timed(found, "one-layer") == [(64, "counts", "portable")]
    assert {by for _, _, by in timed(found, "packing")} == {"portable", "copy_"}
    monkeypatch.setenv("GATEDOPS_CUDA", "sm80")
    with pytest.raises(ValueError, match="got 'sm80', which is not a kernel of the portable backend on this GPU"):
        run("sweep")


def test_portable_beside_triton_is_called_itself(run: Run, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "kernels_here", lambda: ["Triton", "portable"])
    monkeypatch.setattr(gpu, "triton_gram", lambda bits, x, out: lambda: npk_gram(x, bits, out=out))
    broken = {"npk_gram_out": "the Gram is portable's", "gate_overlap": "the count is portable's"}
    for name, message in broken.items():
        monkeypatch.setattr(
            part("_gram.platform").portable, name, lambda *_, m=message, **__: (_ for _ in ()).throw(OSError(m))
        )
    status, found = run("sweep", "one-layer", options=("--no-peers",))
    assert (status, timed(found, "sweep"), timed(found, "one-layer")) == (
        1, [(64, "Lambda", "Triton")], [(64, "counts", "Triton")],
    )  # fmt: skip
    assert [failure["reason"] for failure in found["failures"]] == [f"OSError: {text}" for text in broken.values()]


def faulty_gram(fault: str, kernels: tuple[str, ...] = ("mma.sync",), n: int = 64) -> Callable[..., object]:
    """The Gram, for which some kernels have a fault at n points: wrong, idle, or an error at once or later."""
    runs = iter(range(1000))

    def gram(_: object, kernel: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> object:
        def call() -> torch.Tensor:
            faulty = kernel in kernels and bits.n == n
            if faulty and (fault == "error" or (fault == "later" and next(runs) == 2)):
                raise ArithmeticError("no such shared memory")  # as Triton's errors: they are no RuntimeError
            if faulty and fault == "idle":
                return out
            return npk_gram(x, bits, out=out).mul_(1.001 if faulty and fault == "wrong" else 1)

        return call

    return gram


WRONG, ERROR = (
    "RuntimeError: the Gram is wrong: it differs from the reference",
    "ArithmeticError: no such shared memory",
)


@pytest.mark.parametrize(("fault", "reason"), [("wrong", WRONG), ("idle", WRONG), ("error", ERROR), ("later", ERROR)])
def test_a_kernel_that_fails_is_named_and_the_others_are_timed(
    run: Run, gpu: ModuleType, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(gpu.Gpu, "gram", faulty_gram(fault))
    status, found = run("sweep", "headline", n=(64, 72))
    assert (status, found["complete"], failed(found)) == (1, True, [("n=64, 2 x 64", "Lambda", "mma.sync")])
    assert found["failures"][0]["reason"] == reason
    assert [(n, by) for n, _, by in timed(found, "sweep")] == [
        *((64, by) for by in ("wgmma", *PEERS)), *((72, by) for by in ("wgmma", "mma.sync", *PEERS)),
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert f"failed: Lambda, mma.sync, n=64, 2 x 64: {reason}" in told
    assert told.splitlines()[-1].startswith("1 failed and have no times here; the first is Lambda, mma.sync, n=64")


def test_every_gram_of_the_headline_fails_on_its_own(
    run: Run, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.Gpu, "gram", faulty_gram("error", ("wgmma", "mma.sync")))
    matvec, counts = gatedops.npk_matvec, gatedops.gate_overlap
    monkeypatch.setattr(gatedops, "npk_matvec", lambda x, bits, v: 1.001 * matvec(x, bits, v))
    forced = "GATEDOPS_CUDA"
    monkeypatch.setattr(gatedops, "gate_overlap", lambda x, y: counts(x, y) + (os.environ.get(forced) == "sm90"))
    status, found = run("headline", "one-layer")
    grams = [("n=64, 2 x 64", what, by) for what in GRAMS for by in ("wgmma", "mma.sync")]
    assert status == 1
    assert failed(found) == [*grams, ("n=64, 2 x 64", MATVEC, "wgmma"), ("n=64, 1 x 64", "counts", "wgmma")]
    assert {by for _, _, by in timed(found, "headline")} == set(PEERS)
    assert timed(found, "one-layer") == [(64, "counts", "mma.sync")]


def test_a_peer_a_cell_or_an_input_that_fails_leaves_the_rest(
    run: Run, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = part("_gram.sections")
    gates, images = sections.random_gates, sections.require_packed

    def raising(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "Int8PerLayer", raising)
    monkeypatch.setattr(sections, "random_gates", lambda cell, *more: (raising if cell.n == 72 else gates)(cell, *more))
    monkeypatch.setattr(
        sections, "require_packed", lambda q, call: (raising if q.dtype == torch.bool else images)(q, call)
    )
    status, found = run("sweep", "packing", n=(64, 72))
    assert timed(found, "sweep") == [(64, "Lambda", by) for by in ("wgmma", "mma.sync", "torch float16")]
    assert (status, failed(found)) == (1, [
        ("n=64, 2 x 64", "Lambda", "torch int8"), ("n=72, 2 x 64", "sweep", "all"),
        ("(n, 4096) bool", "packing", "portable"),
    ])  # fmt: skip
    assert len([by for _, _, by in timed(found, "packing") if by == "portable"]) == 5


@pytest.mark.parametrize("killed", [True, False])
def test_a_run_that_is_killed_or_loses_its_gpu_leaves_the_cells_before(
    run: Run, gpu: ModuleType, killed: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    gram, broken = gpu.Gpu.gram, []

    def ending(platform: object, kernel: str, bits: GateBits, *more: object) -> object:
        if kernel == "mma.sync" and bits.n == 72:
            broken.append(killed)
            raise KeyboardInterrupt if killed else RuntimeError("CUDA error: illegal memory access")
        return gram(platform, kernel, bits, *more)

    def synchronize() -> None:
        if broken:
            raise RuntimeError("CUDA error: illegal memory access")

    monkeypatch.setattr(gpu.Gpu, "gram", ending)
    monkeypatch.setattr(part("_common.contest"), "synchronize", synchronize)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            run("sweep", "headline", n=(64, 72, 80))
    else:
        assert run("sweep", "headline", n=(64, 72, 80))[0] == 1
        assert failed(written(tmp_path)) == [("n=72, 2 x 64", "Lambda", "mma.sync")]
    found, told = written(tmp_path), capsys.readouterr().out
    assert {n for n, _, _ in timed(found, "sweep")} == {64}
    assert (found["complete"], list(found["sections"])) == (False, ["sweep"])
    assert told.count("The run ends here") == (0 if killed else 1)
    assert "== headline" not in told


def test_sections_of_the_cpu_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="--only soft is about the CPU; with --device cuda there are sweep, headline"):
        run("sweep", "soft")


def test_the_limit_is_the_slowest_unit(gpu: ModuleType) -> None:
    limits, cell = part("_gram.gpu_limits"), part("_common.problems").Cell
    rates, mnist, pairs = limits.rates_of(H200), cell(60000, 10, 1024), 60000 * 60001 / 2
    limit = limits.gram_limit(mnist, rates)
    assert limit.parts == {
        "counting": pytest.approx(2 * pairs * 10240 / 12.5e15),
        "writing": pytest.approx(4 * 60000**2 / 4.3e12),
        "epilogue": pytest.approx(pairs * 10 * 192 / (64 * 128) / (132 * 1.98e9)),
        "Sigma": 0.0,
    }
    floats = limits.gram_limit(mnist, rates, 784, "float32")
    assert (limit.by, floats.by, floats.seconds) == ("writing", "Sigma", pytest.approx(17e-3, rel=0.02))  # 3xTF32
    exact = limits.gram_limit(mnist, rates, 784, "uint8").parts["Sigma"]
    assert exact == pytest.approx(2 * pairs * 784 / 1979e12)
    assert limits.gram_limit(cell(16384, 20, 8192), rates).by == "counting"
    assert limits.gram_limit(cell(16384, 40, 128), rates).by == "epilogue"
    narrow, step, more = (limits.gram_limit(cell(512, 3, w), rates).parts["counting"] for w in (128, 256, 257))
    assert (narrow, more) == (step, pytest.approx(2 * step))  # a layer takes whole steps of the tensor cores
    assert limits.counts_limit(cell(512, 1, 256), rates).parts["counting"] == pytest.approx(2 * 512**2 * 256 / 12.5e15)
    assert (limits.rates_of(H100).gpu, limits.rates_of("NVIDIA A100")) == ("H100", None)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("cuda", 9, True), ["wgmma", "wgmma, no clusters", "mma.sync", "Triton", "portable"]),
        (("cuda", 8, False), ["mma.sync", "portable"]),
        (("triton", 9, True), ["Triton", "portable"]),
        (("portable", 9, True), ["portable"]),
        (("portable", 7, False), ["portable"]),
        (("cuda", 9, True, "sm90x1"), ["wgmma, no clusters"]),
        (("cuda", 8, True, "sm80"), ["mma.sync"]),
        (("cuda", 8, True, "sm90"), []),
        (("cuda", 9, True, "abacus"), []),
        (("portable", 9, True, "sm90"), []),
    ],
)
def test_every_kernel_there_is_and_a_forced_one_alone(gpu: ModuleType, given: tuple, names: list[str]) -> None:
    assert gpu.kernel_names(*given) == names


@pytest.mark.parametrize(
    ("backend", "triton", "packs"),
    [("cuda", True, "Triton"), ("triton", True, "Triton"), ("cuda", False, "portable"), ("", True, "portable")],
)
def test_packing_is_named_after_what_packs(
    gpu: ModuleType, backend: str, triton: bool, packs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_forced", backend or None)
    found = [b for b in choice.KERNEL_BACKENDS if triton or b.name != "triton"]
    monkeypatch.setattr(choice, "able_backends", lambda but=None: found if but else [])
    assert gpu.packing_kernel() == packs


@pytest.mark.parametrize("before", ["before", None])
def test_a_kernel_is_forced_inside_the_block_only(
    gpu: ModuleType, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GATEDOPS_CUDA", raising=False)
    if before:
        monkeypatch.setenv("GATEDOPS_CUDA", before)
    for name, value in {"mma.sync": "sm80", "wgmma": "sm90", "wgmma, no clusters": "sm90x1", "Triton": before}.items():
        with gpu.forced_kernel(name):
            assert os.environ.get("GATEDOPS_CUDA") == value
        assert os.environ.get("GATEDOPS_CUDA") == before


def test_peers_too_slow_or_too_large_are_left_out(run: Run, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = part("_common.problems").Cell
    platform, small, large = gpu.Gpu(peers=True), cell(4096, 4, 1024), cell(65536, 20, 8192)
    for one, seconds, memory, names in [
        (small, 0.4, 80 << 30, PEERS),
        (small, 0.4, 1 << 20, []),
        (large, 0.4, 1 << 40, []),
        (large, 100, 63 << 30, PEERS[:1]),  # either would fit, both do not
        (large, 100, 50 << 30, PEERS[1:]),
    ]:
        monkeypatch.setattr(gpu.Gpu, "memory", lambda _, memory=memory: memory)
        assert platform.affordable(one, seconds) == names


@pytest.mark.parametrize("layers", [1, 3, 13])
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
