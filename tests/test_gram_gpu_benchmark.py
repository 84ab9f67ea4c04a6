"""benchmarks/gram.py --device cuda without a GPU: limits, sizes, peers and targets, and a whole run on CPU tensors."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import Importer

import gatedops
from gatedops import GateBits, npk_gram

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
    monkeypatch.setenv("GATEDOPS_BACKEND", backend)
    monkeypatch.setattr(peers.backends, "missing_for", lambda name: None if triton else "it is not installed")
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


@pytest.fixture
def stand_in(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The CPU in place of a GPU: everything but the timing by events and the launch of a kernel."""
    sections, timing = part("gpu_sections"), importlib.import_module("_common.timing")
    monkeypatch.setattr(sections, "DEVICE", "cpu")
    monkeypatch.setattr(sections, "free_bytes", lambda: 1 << 40)
    monkeypatch.setattr(sections, "interleaved_gpu_medians", lambda f, r, label: timing.interleaved_medians(f, r))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: H200)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return importlib.import_module("gram")


@pytest.fixture
def on_cpu(stand_in: ModuleType, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A GPU whose kernels are the CPU's."""
    monkeypatch.setattr(gpu, "require_kernels", lambda: ["wgmma", "mma.sync"])
    return stand_in


def test_a_whole_run(on_cpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    options = ["--device", "cuda", "--quick", "--n", "64", "72", "--layers", "2", "--width", "64"]
    args = on_cpu.parser().parse_args([*options, "--only", "sweep", "headline", "one-layer", "--out", str(tmp_path)])
    assert on_cpu.run(args) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gram_cuda.json", "gram_cuda.png"]
    found = json.loads((tmp_path / "gram_cuda.json").read_text())
    assert found["machine"]["gpu"] == H200
    assert {(e["what"], e["by"]) for e in found["sweep"]} == {
        ("Lambda", by) for by in ("wgmma", "mma.sync", "torch int8", "torch float16")
    }
    assert {e["what"] for e in found["headline"]} == {
        "Lambda", "Gram with x, uint8", "Gram with x, float32", "matvec, 10 columns",
    }  # fmt: skip
    for e in [*found["sweep"], *found["headline"], *found["one-layer"]]:
        assert 0 < e["best_s"] <= e["median_s"]
    assert [e["operations_per_second"] * e["median_s"] for e in found["one-layer"]] == [
        pytest.approx(2 * 72**2 * 64)
    ] * 2
    assert len(found["targets"]) == 8
    assert (found["failures"], found["complete"]) == ([], True)
    told = capsys.readouterr().out
    assert "== one-layer" in told
    assert "== packing" not in told


QUICK = ["--device", "cuda", "--quick", "--layers", "2", "--width", "64", "--no-plot"]


def run_of(script: ModuleType, out: Path, *options: str) -> int:
    return script.run(script.parser().parse_args([*QUICK, "--out", str(out), *options]))


def found_in(out: Path) -> dict:
    return json.loads((out / "gram_cuda.json").read_text())


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this is the device's own kernel")


def test_portable_alone(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where GATEDOPS_BACKEND asks for nothing, everything is timed, and only portable is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.delenv("GATEDOPS_BACKEND", raising=False)
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, refuse)
    assert run_of(stand_in, tmp_path, "--n", "64") == 0
    found = found_in(tmp_path)
    assert found["machine"]["kernels"] == ["portable"]
    assert {e["by"] for e in found["sweep"]} == {"portable", "torch int8", "torch float16"}
    assert {e["what"] for e in found["headline"] if e["by"] == "portable"} == {
        "Lambda", "Gram with x, uint8", "Gram with x, float32", "matvec, 10 columns",
    }  # fmt: skip
    assert [e["by"] for e in found["one-layer"]] == ["portable"]
    assert len(found["packing"]) == 6
    told = capsys.readouterr().out
    assert "chosen kernel: portable" in told
    assert "packing by portable, into reused words" in told


def test_portable_beside_triton_is_called_itself(
    stand_in: ModuleType, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    call_of, counts_of = sections.gram_call, sections.counts_call

    def own_kernel(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        return call_of("portable" if name == "portable" else "mma.sync", bits, x, out)

    def counts_call(name: str, x: GateBits, y: GateBits) -> Callable[[], torch.Tensor]:
        counted.append(name)
        return counts_of(name, x, y)

    counted: list[str] = []
    monkeypatch.setattr(sections, "gram_call", own_kernel)
    monkeypatch.setattr(sections, "counts_call", counts_call)
    monkeypatch.setattr(part("portable").gram, "npk_gram_out", refuse)
    monkeypatch.setattr(gpu, "require_kernels", lambda: ["Triton", "portable"])
    assert run_of(stand_in, tmp_path, "--n", "64", "--only", "sweep", "one-layer", "--no-peers") == 1
    found = found_in(tmp_path)
    assert [e["by"] for e in found["sweep"]] == ["Triton"]
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [("Lambda", "portable")]
    assert [e["by"] for e in found["one-layer"]] == counted == ["Triton", "portable"]


def failing_gram(n: int, fault: str, also: str = "") -> Callable[..., Callable[[], torch.Tensor]]:
    """The Gram, of which mma.sync (and `also`) has this fault for n points: wrong, idle, or an error."""

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        faulty = name in ("mma.sync", also) and bits.n == n

        def call() -> torch.Tensor:
            if faulty and fault == "error":
                raise ArithmeticError("no such shared memory")  # as Triton's compile errors: no RuntimeError
            if faulty and fault == "idle":
                return out
            return npk_gram(x, bits, out=out).mul_(1.001 if faulty else 1)

        return call

    return call_of


REASON = {"wrong": "RuntimeError: gatedops is wrong on ", "error": "ArithmeticError: no such shared memory"}
REASON["idle"] = REASON["wrong"]


@pytest.mark.parametrize("fault", list(REASON))
def test_a_contestant_that_fails_is_named_and_the_others_are_timed(
    on_cpu: ModuleType,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(part("gpu_sections"), "gram_call", failing_gram(64, fault))
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep", "headline") == 1
    found = found_in(tmp_path)
    timed = [(e["cell"]["n"], e["by"]) for e in found["sweep"]]
    peers = ["torch int8", "torch float16"]
    assert timed == [(64, by) for by in ("wgmma", *peers)] + [(72, by) for by in ("wgmma", "mma.sync", *peers)]
    assert {e["by"] for e in found["headline"]} == {"wgmma", "mma.sync", "torch int8"}
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["cell"], failure["what"]) == ("mma.sync", "n=64, 2 x 64", "Lambda")
    assert failure["reason"].startswith(REASON[fault])
    assert found["complete"]
    told = capsys.readouterr().out
    assert f"failed: Lambda, mma.sync, n=64, 2 x 64: {REASON[fault]}" in told
    assert told.count("failed  ") == 1  # the row of the table
    assert told.splitlines()[-1].startswith("1 failed and have no times here; the first is Lambda, mma.sync, n=64")


def test_every_gram_of_the_headline_fails_on_its_own(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the chosen kernel's Lambda, the matvec has no target beside it."""
    monkeypatch.setattr(part("gpu_sections"), "gram_call", failing_gram(64, "wrong", also="wgmma"))
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "headline", "one-layer") == 1
    found = found_in(tmp_path)
    whats = ("Lambda", "Gram with x, uint8", "Gram with x, float32")
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [
        (what, by) for what in whats for by in ("wgmma", "mma.sync")
    ]
    timed = {(e["what"], e["by"]) for e in found["headline"]}
    assert timed == {(what, "torch int8") for what in whats} | {("matvec, 10 columns", "wgmma")}
    assert {t["name"].split(",")[0] for t in found["targets"]} == {"counts of two sets"}


def test_a_wrong_matvec_or_count_has_no_speed(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    matvec, counts = gatedops.npk_matvec, gatedops.gate_overlap
    monkeypatch.setattr(gatedops, "npk_matvec", lambda x, bits, v: 1.001 * matvec(x, bits, v))

    def overlap(x: GateBits, y: GateBits) -> torch.Tensor:
        return counts(x, y) + (os.environ.get("GATEDOPS_CUDA") == "sm90")

    monkeypatch.setattr(gatedops, "gate_overlap", overlap)
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "headline", "one-layer") == 1
    found = found_in(tmp_path)
    assert [(f["what"], f["kernel"]) for f in found["failures"]] == [
        ("matvec, 10 columns", "wgmma"), ("counts of two sets", "wgmma"),
    ]  # fmt: skip
    assert "matvec, 10 columns" not in {e["what"] for e in found["headline"]}
    assert [e["by"] for e in found["one-layer"]] == ["mma.sync"]


def test_a_peer_or_a_cell_that_fails_leaves_the_rest(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    peer, bits = sections.torch_peer, sections.random_bits

    def torch_peer(name: str, masks: list[torch.Tensor], cell: object) -> Callable[[], torch.Tensor]:
        if name == "torch int8":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return peer(name, masks, cell)

    def random_bits(cell: object, seed: int) -> GateBits:
        if cell.n == 72:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return bits(cell, seed)

    monkeypatch.setattr(sections, "torch_peer", torch_peer)
    monkeypatch.setattr(sections, "random_bits", random_bits)
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep") == 1
    found = found_in(tmp_path)
    assert [(e["cell"]["n"], e["by"]) for e in found["sweep"]] == [
        (64, by) for by in ("wgmma", "mma.sync", "torch float16")
    ]
    failed = [(f["kernel"], f["cell"], f["reason"]) for f in found["failures"]]
    reason = "OutOfMemoryError: CUDA out of memory"
    assert failed == [("torch int8", "n=64, 2 x 64", reason), ("all", "n=72, 2 x 64", reason)]


def test_a_contestant_that_fails_on_the_way_leaves_the_others_times(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Right when it is checked, an error in a later turn."""

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        runs = iter(range(3))

        def call() -> torch.Tensor:
            if name == "mma.sync" and next(runs) == 2:
                raise RuntimeError("CUDA error: too many resources")
            return npk_gram(x, bits, out=out)

        return call

    monkeypatch.setattr(part("gpu_sections"), "gram_call", call_of)
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "sweep") == 1
    found = found_in(tmp_path)
    assert [e["by"] for e in found["sweep"]] == ["wgmma", "torch int8", "torch float16"]
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["reason"]) == ("mma.sync", "RuntimeError: CUDA error: too many resources")


def test_packing_that_fails_leaves_the_other_inputs(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    time_packing = sections.time_packing

    def fails(problem: object, sizes: object) -> object:
        if "bool" in problem.name:
            raise RuntimeError("gatedops packs it wrongly")
        return time_packing(problem, sizes)

    monkeypatch.setattr(sections, "time_packing", fails)
    monkeypatch.setattr(sections, "packing_kernel", lambda: "Triton")
    assert run_of(on_cpu, tmp_path, "--n", "64", "--only", "packing") == 1
    found = found_in(tmp_path)
    assert len(found["packing"]) == 5
    assert [(f["kernel"], f["cell"]) for f in found["failures"]] == [("Triton", "(n, 4096) bool")]


def test_a_run_that_is_killed_leaves_the_cells_before(
    on_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sections = part("gpu_sections")
    bits = sections.random_bits

    def random_bits(cell: object, seed: int) -> GateBits:
        if cell.n == 72:
            raise KeyboardInterrupt
        return bits(cell, seed)

    monkeypatch.setattr(sections, "random_bits", random_bits)
    with pytest.raises(KeyboardInterrupt):
        run_of(on_cpu, tmp_path, "--n", "64", "72", "--only", "sweep")
    assert [path.name for path in tmp_path.iterdir()] == ["gram_cuda.json"]
    found = found_in(tmp_path)
    assert {e["cell"]["n"] for e in found["sweep"]} == {64}
    assert not found["complete"]


@pytest.mark.parametrize("checked", [True, False])
def test_a_broken_gpu_ends_the_run(
    on_cpu: ModuleType,
    checked: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the check the kernel is known; while all are timed, whoever says it may not be to blame."""
    state = {"works": True, "runs": 0}

    def synchronize() -> None:
        if not state["works"]:
            raise RuntimeError("CUDA error: illegal memory access")

    def call_of(name: str, bits: GateBits, x: torch.Tensor | None, out: torch.Tensor) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            if name == "mma.sync" and bits.n == 72:
                state["runs"] += 1
                state["works"] = state["runs"] < (1 if checked else 2)
                synchronize()
            return npk_gram(x, bits, out=out)

        return call

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(part("gpu_sections"), "gram_call", call_of)
    assert run_of(on_cpu, tmp_path, "--n", "64", "72", "80", "--only", "sweep", "headline") == 1
    found = found_in(tmp_path)
    assert {e["cell"]["n"] for e in found["sweep"]} == {64}
    assert "headline" not in found
    assert not found["complete"]
    (failure,) = found["failures"]
    assert (failure["kernel"], failure["cell"]) == ("mma.sync" if checked else "all", "n=72, 2 x 64")
    assert "CUDA error: illegal memory access" in failure["reason"]
    told = capsys.readouterr().out
    assert told.count("The run ends here") == 1
    assert "== headline" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--device cuda needs an NVIDIA GPU"),
        (["--only", "sweep", "soft"], "--only soft is about the CPU"),
    ],
)
def test_what_is_refused(
    gpu: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gram.py", "--device", "cuda", "--no-plot", "--out", str(tmp_path), *options])
    assert importlib.import_module("gram").main() == 2
    assert message in capsys.readouterr().err
