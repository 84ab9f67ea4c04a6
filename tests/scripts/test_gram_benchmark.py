"""benchmarks/gram.py: sizes, limits, who is left out, and that nothing wrong is timed; the CPU stands in for a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from gram_runs import StandIn, cell, part
from script_runs import Importer, run_and_read

import gatedops
from gatedops import GateBits, backends, npk_gram, reference
from gatedops.backends import choice

OTHERS = {"portable", "torch float32", "torch bfloat16"}
KERNELS, PEERS = ("wgmma", "mma.sync"), ["torch int8", "torch float16"]
GRAMS, MATVEC = ["Lambda", "Gram with x, uint8", "Gram with x, float32"], "matvec, 10 columns"
FORCED = "GATEDOPS_CUDA"
Run = Callable[..., tuple[int, dict[str, Any]]]

pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def patch(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces a name in a module of benchmarks/; peers have the time, and limits take none to measure."""

    def replace(module: str, name: str, value: object) -> None:
        monkeypatch.setattr(part(module), name, value)

    benchmark_module("gram")
    replace("_gram.cpu", "best_seconds", lambda call, runs: 0.0)
    replace("_gram.cpu", "multiply_rate", lambda dtype: 1e12)
    replace("_gram.cpu", "bit_pair_rate", lambda isa, threads: 1e12)
    replace("_gram.cpu", "write_bandwidth", lambda size, threads: 1e9)
    return replace


@pytest.fixture
def run(patch: Callable[..., None], tmp_path: Path) -> Run:
    """Runs some sections; returns the exit status and what the JSON has."""
    given = ("--quick", "--n", "40", "--layers", "2", "--width", "33", "--no-plot")
    return lambda *sections, more=(): run_and_read(part("gram"), tmp_path, *given, *more, "--only", *sections)


def random_gates(*sizes: int, seed: int = 0) -> GateBits:
    return part("_common.problems").random_gates(cell(*sizes), seed)


def test_who_is_timed(run: Run) -> None:
    with part("_common.machine").torch_threads(2):
        status, found = run("headline", "one-core", "sweep", "packing", "scaling")
    sections, sets = found["sections"], backends.available_isas()[::-1]
    assert (status, found["machine"]["kernels"]) == (0, ["gatedops", *sets, "portable"])
    assert {e["by"] for e in sections["sweep"]} == {"gatedops", *OTHERS}
    for threads in (1, 2):
        shown = {e["by"]: e for e in sections["headline"] if (e["what"], e["threads"]) == ("Lambda", threads)}
        assert set(shown) == {"gatedops", *sets, *OTHERS}
        assert all(shown[by]["instruction_set"] == (by if by in sets else None) for by in {*sets, *OTHERS})
    assert [e["by"] for e in sections["one-core"]] == sets[:2]
    assert (len({e["problem"] for e in sections["packing"]}), len(sections["scaling"])) == (6, 4)
    for e in sections["sweep"]:
        assert (e["n"], e["layers"], e["width"]) == (40, 2, 33)
        assert e["bit_pairs_per_second"] == pytest.approx(40 * 41 // 2 * 66 / e["median_s"])
    _, found = run("sweep", "headline", more=("--no-peers",))
    assert {e["by"] for part in found["sections"].values() for e in part} == {"gatedops", *sets}


def test_a_data_set_that_does_not_fit_is_left_out(
    run: Run, patch: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [e["what"] for e in run("data-set")[1]["sections"]["data-set"]][-1] == "Lambda"
    patch("_gram.sections", "available_memory", lambda: 1000)
    status, found = run("data-set", "soft")
    assert "left out: n=40, 2 x 33 needs 0.0 GiB of memory, more than is left" in capsys.readouterr().out
    assert (status, list(found["sections"])) == (0, ["soft"])


def test_what_is_wrong_has_no_time(run: Run, patch: Callable[..., None]) -> None:
    counts, product, soft = gatedops.gate_overlap, gatedops.npk_matvec, gatedops.soft_npk_gram
    right = part("_gram.platform").portable.npk_gram_out

    def off_by_a_bit(*args: object, out: torch.Tensor) -> None:
        right(*args, out=out)
        out[-1, 0] = out[-1, 0].nextafter(torch.tensor(9.0))

    patch("gatedops.portable.gram", "npk_gram_out", off_by_a_bit)
    patch("gatedops", "gate_overlap", lambda x, y=None: counts(x, y) + 1)
    patch("gatedops", "npk_matvec", lambda *args: 1.001 * product(*args))
    patch("gatedops", "soft_npk_gram", lambda *args: 1.001 * soft(*args))
    patch("_gram.sections", "pack_gates", lambda q: gatedops.pack_gates(q[:0]))
    status, found = run("sweep", "one-layer", "data-set", "soft", "packing")
    failed = {(one["what"], one["by"]): one["reason"] for one in found["failures"]}
    whats = ("counts", MATVEC, "soft Gram", "soft Gram and gradient", "packing")
    assert (status, set(failed)) == (1, {("Lambda", "portable"), *((what, "gatedops") for what in whats)})
    assert failed["Lambda", "portable"] == "RuntimeError: the Gram is wrong: it differs from the reference"
    sections = found["sections"]
    assert {e["by"] for e in sections["sweep"]} == {"gatedops", "torch float32", "torch bfloat16"}
    assert {e["what"] for e in sections["data-set"]} == {"Lambda", "Lambda, a new (n, n)"}
    assert {e["by"] for e in sections["soft"]} == {"torch"}


def test_kernels_are_those_that_are_named(patch: Callable[..., None]) -> None:
    platform, seen, out = part("_gram.cpu").Cpu(peers=True), [], torch.empty(50, 50)
    bits, other = random_gates(50, 2, 33), random_gates(50, 2, 33, seed=1)
    patch("gatedops", "npk_gram", lambda *_, **__: seen.append(backends.active_isa()))
    patch("gatedops", "gate_overlap", lambda *_, **__: pytest.fail("this is the kernel in C++"))
    for kernel in platform.kernels:
        platform.gram(kernel, bits, None, out)
    assert seen == [backends.active_isa(), *platform.sets]
    assert out.equal(reference.npk_gram(None, bits))  # portable came last
    x = torch.randint(0, 256, (50, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert platform.gram("portable", bits, x, out).equal(reference.npk_gram(x, bits))
    assert platform.counts("portable", bits, other).equal(reference.gate_overlap(bits, other))
    patch("gatedops.backends", "_forced", "portable")
    with pytest.raises(ValueError, match="GATEDOPS_BACKEND=portable hides the kernels in C"):
        part("_gram.cpu").Cpu(peers=True)


def test_peers_that_take_too_long_or_too_much_memory_are_left_out(patch: Callable[..., None]) -> None:
    platform = part("_gram.cpu").Cpu(peers=True)
    patch("_gram.cpu", "multiply_rate", {torch.float32: 1e10, torch.bfloat16: 2e10}.get)
    for memory, seconds, names in [
        (10**9, 0.5, ["torch float32", "torch bfloat16"]),
        (10**9, 0.3, ["torch bfloat16"]),
        (8 * 10**7, 0.5, ["torch float32"]),  # either would fit into half of the memory, both do not
        (10**7, 0.5, []),
    ]:
        patch("_gram.cpu", "available_memory", lambda memory=memory: memory)
        assert platform.affordable(cell(1000, 4, 1000), seconds) == names
    for seconds, kernels in [(0.6, ("gatedops",)), (0.4, ("gatedops", "portable"))]:
        platform.portable_seconds = lambda bits, seconds=seconds: seconds
        assert platform.sweep_kernels(None, 0.5) == kernels


def test_what_portable_takes_is_told_from_some_of_the_points(patch: Callable[..., None]) -> None:
    """Tiles of 512 x 512 on and above the diagonal: 3 of 1024 points, which are timed, 6 of 1536, 36 of 4096."""
    patch("_gram.cpu", "best_seconds", lambda call, runs: 2.0)
    for n, times in ((50, 1), (1536, 6 / 3), (4096, 36 / 3)):
        assert part("_gram.cpu").Cpu(peers=True).portable_seconds(random_gates(n, 1, 32)) == pytest.approx(2 * times)


def test_the_limit_is_the_slower_of_counting_and_writing(patch: Callable[..., None]) -> None:
    platform = part("_gram.cpu").Cpu(peers=True)
    small = platform.limit("Lambda", "gatedops", cell(1000, 2, 512))()
    counting = pytest.approx(1000 * 1001 / 2 * 1024 / 1e12)
    assert (small.by, small.parts) == ("writing", {"counting": counting, "writing": pytest.approx(4e6 / 1e9)})
    assert platform.limit("Lambda", "serial", cell(1000, 20, 8192))().by == "counting"
    for what, by in [("Lambda", "portable"), ("Lambda", "torch float32"), (MATVEC, "gatedops")]:
        assert platform.limit(what, by, cell(1000, 2, 512)) is None


@pytest.mark.parametrize(
    ("device", "combinations", "ends", "section", "own"),
    [
        ("cpu", 150, [(1024, 32768), (1, 20), (64, 8192)], "data-set", (60_000, 5, 128)),
        ("cuda", 125, [(4096, 65536), (1, 20), (128, 8192)], "never stored", (500_000, 10, 1024)),
    ],
)
def test_sizes(
    patch: Callable[..., None], device: str, combinations: int, ends: list[object], section: str, own: tuple[int, ...]
) -> None:
    def cells_of(*options: str) -> dict[str, Any]:
        return part("_gram.sizes").chosen_sizes(part("gram").parser().parse_args(["--device", device, *options])).cells

    for sizes in (cells_of(), cells_of("--full")):
        axes = [{getattr(one, name) for one in sizes["sweep"]} for name in ("n", "layers", "width")]
        assert ([(min(axis), max(axis)) for axis in axes], sizes[section]) == (ends, (cell(*own),))
    assert len(set(cells_of("--full")["sweep"])) == combinations
    assert len(cells_of("--quick")["sweep"]) < 6
    given = cells_of("--layers", "2", "5", "--width", "32", "--n", "64", "128")
    assert (len(given["sweep"]), given["headline"], given["one-layer"]) == (4, (cell(128, 5, 32),), (cell(128, 1, 32),))
    assert cells_of("--layers", "2")["headline"][0].n == cells_of()["headline"][0].n


def test_exponents_are_slopes_of_logarithms(patch: Callable[..., None]) -> None:
    assert part("_gram.sections").exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_random_gates_are_half_on_and_fill_their_layers(patch: Callable[..., None]) -> None:
    bits = random_gates(200, 3, 70)
    assert (bits.widths, bits) == ((70, 70, 70), GateBits.pack(bits.unpack()))
    assert all(0.45 < mask.double().mean() < 0.55 for mask in bits.unpack())


def test_numkong_counts_what_we_count(patch: Callable[..., None]) -> None:
    """A stand-in for it: the upper triangle alone, into the buffer."""
    numkong, check = part("_gram.numkong"), part("_gram.sections").require_counts
    bits = random_gates(70, 1, 40)
    counts = reference.gate_overlap(bits)[0].triu().numpy()
    stand_in = SimpleNamespace(zeros=lambda shape, dtype: torch.zeros(shape, dtype=torch.int32).numpy())
    stand_in.dots_symmetric = lambda packed, dtype, out, threads: out.__setitem__(slice(None), counts)
    patch("_gram.numkong", "importlib", SimpleNamespace(import_module=lambda name: stand_in))
    check(bits, None, numkong.DotsSymmetric(bits), triangle=True)
    check(bits, None, numkong.DotsSquare(bits))
    with pytest.raises(RuntimeError, match="the counts are wrong"):
        check(bits, None, numkong.DotsSymmetric(bits))


# --- on a GPU ---


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


def test_who_is_timed_on_a_gpu(stand_in: StandIn) -> None:
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


@pytest.mark.parametrize("fault", ["wrong", "idle", "error later"])
def test_a_kernel_that_fails_is_named_and_the_others_are_timed(stand_in: StandIn, fault: str) -> None:
    runs = iter(range(1000))

    def gram(_: object, kernel: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        faulty = kernel == "mma.sync" and bits.n == 64
        if faulty and fault == "error later" and next(runs) == 2:
            raise ArithmeticError("no shared memory")  # Triton's errors are not RuntimeErrors either.
        if faulty and fault == "idle":
            return out
        return npk_gram(x, bits, out=out).mul_(1.001 if faulty and fault == "wrong" else 1)

    stand_in.patch(stand_in.gpu.Gpu, "gram", gram)
    assert stand_in.run("sweep", "headline", n=(64, 72)) == 1
    assert (stand_in.found["complete"], stand_in.failed()) == (True, [("n=64, 2 x 64", "Lambda", "mma.sync")])
    wrong, error = "RuntimeError: the Gram is wrong: it differs from the reference", "ArithmeticError: no shared memory"
    assert stand_in.found["failures"][0]["reason"] == (error if fault == "error later" else wrong)
    all_timed = [(n, "Lambda", by) for n in (64, 72) for by in (*KERNELS, *PEERS)]
    assert stand_in.timed("sweep") == [one for one in all_timed if one != (64, "Lambda", "mma.sync")]


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


def test_the_limit_on_a_gpu_is_the_slowest_unit(gpu: ModuleType) -> None:
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


def test_gpu_peers_too_slow_or_too_large_are_left_out(stand_in: StandIn) -> None:
    platform, large = stand_in.gpu.Gpu(peers=True), cell(65536, 20, 8192)
    # For the third, either peer would fit, but both do not.
    for seconds, memory, names in [(0.4, 1 << 40, []), (100, 1 << 40, PEERS), (100, 63 << 30, PEERS[:1])]:
        stand_in.patch(stand_in.gpu.Gpu, "memory", lambda _, memory=memory: memory)
        assert platform.affordable(large, seconds) == names


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
