"""benchmarks/gram.py on a CPU: sizes, limits, who is left out, and that nothing wrong is timed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from script_runs import Importer

import gatedops
from gatedops import backends, reference

SMALL = ("--quick", "--n", "40", "--layers", "2", "--width", "33", "--no-plot")
OTHERS = {"portable", "torch float32", "torch bfloat16"}

pytest.importorskip("tqdm")


def part(name: str) -> ModuleType:
    return importlib.import_module(name)


def sizes_of(*options: str) -> object:
    return part("_gram.sizes").chosen_sizes(part("gram").parser().parse_args(options))


def cells(sizes: object, section: str) -> list[str]:
    return [str(cell) for cell in sizes.cells.get(section, ())]


@pytest.fixture
def script(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose peers always have the time and whose limits take none to measure."""
    module = benchmark_module("gram")
    monkeypatch.setattr(part("_gram.cpu"), "multiply_rate", lambda dtype: 1e12)
    monkeypatch.setattr(part("_gram.cpu"), "portable_seconds", lambda bits: 0.0)
    monkeypatch.setattr(part("_common.limits"), "bit_pair_rate", lambda isa, threads: 1e12)
    monkeypatch.setattr(part("_common.limits"), "write_bandwidth", lambda size, threads: 1e9)
    return module


@pytest.fixture
def run(script: ModuleType, tmp_path: Path) -> Callable[..., tuple[int, dict]]:
    """Runs some sections; returns the exit status and what the JSON has."""

    def run_of(*sections: str, options: tuple[str, ...] = ()) -> tuple[int, dict]:
        given = [*SMALL, *options, "--only", *sections, "--out", str(tmp_path)]
        status = script.run(script.parser().parse_args(given))
        return status, json.loads((tmp_path / "gram.json").read_text())

    return run_of


def test_who_is_timed(run: Callable[..., tuple[int, dict]]) -> None:
    status, found = run("headline", "one-core", "sweep", "packing", "scaling")
    sections, sets = found["sections"], backends.available_isas()[::-1]
    assert (status, list(sections)) == (0, ["sweep", "headline", "one-core", "packing", "scaling"])
    assert found["machine"]["kernels"] == ["gatedops", *sets, "portable"]
    assert {e["by"] for e in sections["sweep"]} == {"gatedops", *OTHERS}
    for threads in {1, torch.get_num_threads()}:
        shown = {e["by"]: e for e in sections["headline"] if (e["what"], e["threads"]) == ("Lambda", threads)}
        assert set(shown) == {"gatedops", *sets, *OTHERS}
        assert all(shown[isa]["instruction_set"] == isa for isa in sets)
        assert {by for by, e in shown.items() if e["instruction_set"] is None} == OTHERS
    assert [e["by"] for e in sections["one-core"]] == sets[:2]
    assert len({e["problem"] for e in sections["packing"]}) == 6
    assert {e["grows"] for e in sections["scaling"]} == {"by n", "by bits"}
    for e in sections["sweep"]:
        assert e["bit_pairs_per_second"] == pytest.approx(40 * 41 // 2 * 66 / e["median_s"])
        assert (e["n"], e["layers"], e["width"]) == (40, 2, 33)


def test_peers_can_be_left_out(run: Callable[..., tuple[int, dict]]) -> None:
    _, found = run("sweep", "headline", options=("--no-peers",))
    assert {e["by"] for e in found["sections"]["sweep"]} == {"gatedops"}
    assert {e["by"] for e in found["sections"]["headline"]} == {"gatedops", *backends.available_isas()}


def test_a_data_set_that_does_not_fit_is_left_out(
    run: Callable[..., tuple[int, dict]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [e["what"] for e in run("data-set")[1]["sections"]["data-set"]][-1] == "Lambda"
    monkeypatch.setattr(part("_gram.sections"), "available_memory", lambda: 1000)
    status, found = run("data-set", "soft")
    assert "left out: n=40, 2 x 33 needs 0.0 GiB of memory, more than is left" in capsys.readouterr().out
    assert (status, list(found["sections"])) == (0, ["soft"])


@pytest.mark.parametrize("fault", ["idle", "off by a bit"])
def test_a_wrong_gram_has_no_time(
    run: Callable[..., tuple[int, dict]], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernels in C++ left in the buffer does not pass for the result of portable."""
    portable = part("_gram.platform").portable
    right = portable.npk_gram_out

    def faulty(*args: object, out: torch.Tensor) -> None:
        if fault != "idle":
            right(*args, out=out)
            out[-1, 0] = out[-1, 0].nextafter(torch.tensor(9.0))

    monkeypatch.setattr(portable, "npk_gram_out", faulty)
    status, found = run("sweep")
    (failure,) = found["failures"]
    assert (status, failure["by"], failure["what"]) == (1, "portable", "Lambda")
    assert failure["reason"] == "RuntimeError: the Gram is wrong: it differs from the reference"
    assert {e["by"] for e in found["sections"]["sweep"]} == {"gatedops", "torch float32", "torch bfloat16"}


def test_wrong_counts_and_products_have_no_time(
    run: Callable[..., tuple[int, dict]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, product, soft = gatedops.gate_overlap, gatedops.npk_matvec, gatedops.soft_npk_gram
    monkeypatch.setattr(gatedops, "gate_overlap", lambda x, y=None: counts(x, y) + 1)
    monkeypatch.setattr(gatedops, "npk_matvec", lambda *args: 1.001 * product(*args))
    monkeypatch.setattr(gatedops, "soft_npk_gram", lambda *args: 1.001 * soft(*args))
    monkeypatch.setattr(part("_gram.sections"), "pack_gates", lambda q: gatedops.pack_gates(q[:0]))
    status, found = run("one-layer", "data-set", "soft", "packing")
    assert status == 1
    failed = {(failure["what"], failure["by"]) for failure in found["failures"]}
    whats = ("counts", "matvec, 10 columns", "soft Gram", "soft Gram and gradient", "packing")
    assert failed == {(what, "gatedops") for what in whats}
    assert {e["what"] for e in found["sections"]["data-set"]} == {"Lambda", "Lambda, a new (n, n)"}
    assert {e["by"] for e in found["sections"]["soft"]} == {"torch"}


def test_portable_is_not_what_gatedops_chooses(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    platform, problems = part("_gram.cpu").Cpu(peers=True), part("_common.problems")
    bits, other = (problems.random_gates(problems.Cell(50, 2, 33), seed) for seed in (0, 1))
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, lambda *_, **__: pytest.fail("this is the kernel in C++"))
    for x in (None, torch.randint(0, 256, (50, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))):
        out = torch.empty(50, 50)
        assert platform.gram("portable", bits, x, out)() is out
        assert out.equal(reference.npk_gram(x, bits))
    assert platform.counts("portable", bits, other)().equal(reference.gate_overlap(bits, other))


def test_kernels_in_cpp_are_forced(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    platform, seen = part("_gram.cpu").Cpu(peers=True), []
    monkeypatch.setattr(gatedops, "npk_gram", lambda *_, **__: seen.append(backends.active_isa()))
    for isa in platform.sets:
        platform.gram(isa, None, None, None)()
    assert seen == platform.sets
    assert platform.kernels[0] == "gatedops"
    monkeypatch.setattr(backends, "_forced", "portable")
    with pytest.raises(ValueError, match="GATEDOPS_BACKEND=portable hides the kernels in C"):
        part("_gram.cpu").Cpu(peers=True)


def test_peers_that_take_too_long_or_too_much_memory_are_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, cell = part("_gram.cpu"), part("_common.problems").Cell(1000, 4, 1000)
    platform = cpu.Cpu(peers=True)
    monkeypatch.setattr(cpu, "multiply_rate", {torch.float32: 1e10, torch.bfloat16: 2e10}.get)
    for memory, seconds, names in [
        (10**9, 0.5, ["torch float32", "torch bfloat16"]),
        (10**9, 0.3, ["torch bfloat16"]),
        (10**9, 0.1, []),
        (8 * 10**7, 0.5, ["torch float32"]),  # either would fit into half of the memory, both do not
        (10**7, 0.5, []),
    ]:
        monkeypatch.setattr(cpu, "available_memory", lambda memory=memory: memory)
        assert platform.affordable(cell, seconds) == names
    for seconds, kernels in [(0.6, ("gatedops",)), (0.4, ("gatedops", "portable"))]:
        monkeypatch.setattr(cpu, "portable_seconds", lambda bits, seconds=seconds: seconds)
        assert platform.sweep_kernels(None, 0.5) == kernels


@pytest.mark.parametrize(("n", "times"), [(50, 1), (1536, 6 / 3), (4096, 36 / 3)])
def test_what_portable_takes_is_told_from_some_of_the_points(
    benchmark_module: Importer, n: int, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 512 x 512 on and above the diagonal: 3 of 1024 points, which are timed, 6 of 1536, 36 of 4096."""
    cpu, problems = benchmark_module("_gram.cpu"), benchmark_module("_common.problems")
    monkeypatch.setattr(cpu, "interleaved_medians", lambda calls, *_, **__: {"probe": SimpleNamespace(best=2.0)})
    assert cpu.portable_seconds(problems.random_gates(problems.Cell(n, 1, 32), 0)) == pytest.approx(2 * times)


def test_the_limit_is_the_slower_of_counting_and_writing(script: ModuleType) -> None:
    cell, platform = part("_common.problems").Cell, part("_gram.cpu").Cpu(peers=True)
    small = platform.limit("Lambda", "gatedops", cell(1000, 2, 512))()
    assert small.parts == {"counting": pytest.approx(1000 * 1001 / 2 * 1024 / 1e12), "writing": pytest.approx(4e6 / 1e9)}
    assert (small.by, platform.limit("Lambda", "serial", cell(1000, 20, 8192))().by) == ("writing", "counting")
    for what, by in [("Lambda", "portable"), ("Lambda", "torch float32"), ("matvec, 10 columns", "gatedops")]:
        assert platform.limit(what, by, cell(1000, 2, 512)) is None


@pytest.mark.parametrize(
    ("device", "combinations", "ranges"),
    [("cpu", 150, [(1024, 32768), (1, 20), (64, 8192)]), ("cuda", 125, [(4096, 65536), (1, 20), (128, 8192)])],
)
def test_cells_cover_the_range(
    script: ModuleType, device: str, combinations: int, ranges: list[tuple[int, int]]
) -> None:
    default, full, quick = (sizes_of("--device", device, *option) for option in ([], ["--full"], ["--quick"]))
    for sizes in (default, full):
        for name, ends in zip(("n", "layers", "width"), ranges, strict=True):
            values = {getattr(cell, name) for cell in sizes.cells["sweep"]}
            assert (min(values), max(values)) == ends
    assert len(set(full.cells["sweep"])) == combinations
    assert len(quick.cells["sweep"]) < 6


def test_sizes_of_the_sections(script: ModuleType) -> None:
    default, gpu = sizes_of(), sizes_of("--device", "cuda")
    assert cells(default, "data-set") == ["n=60000, 5 x 128"]
    assert cells(default, "headline") == ["n=4096, 4 x 1024"]
    assert (
        cells(gpu, "headline") == cells(sizes_of("--device", "cuda", "--quick"), "headline") == ["n=60000, 10 x 1024"]
    )
    assert cells(gpu, "never stored") == ["n=500000, 10 x 1024"]
    given = sizes_of("--layers", "2", "5", "--width", "32")
    assert cells(given, "sweep") == ["n=4096, 2 x 32", "n=4096, 5 x 32"]
    assert cells(given, "headline") == ["n=4096, 5 x 32"]
    given = sizes_of("--device", "cuda", "--n", "64", "128", "--layers", "2", "--width", "32")
    assert (cells(given, "one-layer"), cells(given, "never stored")) == (["n=128, 1 x 32"], [])


def test_exponents_are_slopes_of_logarithms(script: ModuleType) -> None:
    def entry(seconds: float, **sizes: int) -> SimpleNamespace:
        return SimpleNamespace(median_s=seconds, facts=sizes)

    exponent = part("_gram.sections").exponent
    assert exponent("by n", [entry(3.0 * n**2, n=n, layers=1, width=1) for n in (1, 2, 4)]) == pytest.approx(2)
    assert exponent("by bits", [entry(2.0 * b, n=1, layers=b, width=3) for b in (1, 2, 8)]) == pytest.approx(1)


def test_numkong_counts_what_we_count(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for it: the upper triangle alone, into the buffer."""
    problems, numkong, check = part("_common.problems"), part("_gram.numkong"), part("_gram.sections").require_counts
    bits = problems.random_gates(problems.Cell(70, 1, 40), 0)

    def dots(packed: object, dtype: str, out: object, threads: int) -> None:
        assert dtype == "uint1"
        out[:] = reference.gate_overlap(bits)[0].triu().numpy()

    stand_in = SimpleNamespace(zeros=lambda shape, dtype: torch.zeros(shape, dtype=torch.int32).numpy())
    stand_in.dots_symmetric = dots
    monkeypatch.setattr(numkong.importlib, "import_module", lambda name: stand_in)
    check(bits, None, True, numkong.DotsSymmetric(bits))
    check(bits, None, False, numkong.DotsSquare(bits))
    with pytest.raises(RuntimeError, match="the counts are wrong"):
        check(bits, None, False, numkong.DotsSymmetric(bits))
