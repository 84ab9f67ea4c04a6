"""benchmarks/gram.py on a CPU: sizes, limits, who is left out, and that nothing wrong is timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gram_runs import cell, part
from script_runs import Importer, run_and_read

import gatedops
from gatedops import backends, reference

OTHERS = {"portable", "torch float32", "torch bfloat16"}
Run = Callable[..., tuple[int, dict[str, Any]]]

pytest.importorskip("tqdm")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def patch(benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces a name in a module of benchmarks/; peers have the time, and limits take none to measure."""

    def replace(module: str, name: str, value: object) -> None:
        monkeypatch.setattr(part(module), name, value)

    benchmark_module("gram")
    monkeypatch.setattr(part("_gram.cpu").Cpu, "portable_seconds", lambda self, bits: 0.0)
    replace("_gram.cpu", "multiply_rate", lambda dtype: 1e12)
    replace("_gram.cpu", "bit_pair_rate", lambda isa, threads: 1e12)
    replace("_gram.cpu", "write_bandwidth", lambda size, threads: 1e9)
    return replace


@pytest.fixture
def run(patch: Callable[..., None], tmp_path: Path) -> Run:
    """Runs some sections; returns the exit status and what the JSON has."""
    given = ("--quick", "--n", "40", "--layers", "2", "--width", "33", "--no-plot")
    return lambda *sections, more=(): run_and_read(part("gram"), tmp_path, *given, *more, "--only", *sections)


def random_gates(*sizes: int, seed: int = 0) -> gatedops.GateBits:
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
    assert len({e["problem"] for e in sections["packing"]}) == 6
    assert {e["grows"] for e in sections["scaling"]} == {"by n", "by bits"}
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
    whats = ("counts", "matvec, 10 columns", "soft Gram", "soft Gram and gradient", "packing")
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


def test_what_portable_takes_is_told_from_some_of_the_points(
    benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of 512 x 512 on and above the diagonal: 3 of 1024 points, which are timed, 6 of 1536, 36 of 4096."""
    cpu = benchmark_module("_gram.cpu")
    monkeypatch.setattr(cpu, "best_seconds", lambda call, runs: 2.0)
    for n, times in ((50, 1), (1536, 6 / 3), (4096, 36 / 3)):
        assert cpu.Cpu(peers=True).portable_seconds(random_gates(n, 1, 32)) == pytest.approx(2 * times)


def test_the_limit_is_the_slower_of_counting_and_writing(patch: Callable[..., None]) -> None:
    platform = part("_gram.cpu").Cpu(peers=True)
    small = platform.limit("Lambda", "gatedops", cell(1000, 2, 512))()
    counting = pytest.approx(1000 * 1001 / 2 * 1024 / 1e12)
    assert (small.by, small.parts) == ("writing", {"counting": counting, "writing": pytest.approx(4e6 / 1e9)})
    assert platform.limit("Lambda", "serial", cell(1000, 20, 8192))().by == "counting"
    for what, by in [("Lambda", "portable"), ("Lambda", "torch float32"), ("matvec, 10 columns", "gatedops")]:
        assert platform.limit(what, by, cell(1000, 2, 512)) is None


@pytest.mark.parametrize(
    ("device", "combinations", "ranges", "own"),
    [
        ("cpu", 150, [(1024, 32768), (1, 20), (64, 8192)], {"headline": (4096, 4, 1024), "data-set": (60_000, 5, 128)}),
        ("cuda", 125, [(4096, 65536), (1, 20), (128, 8192)], {"never stored": (500_000, 10, 1024)}),
    ],
)
def test_sizes(
    patch: Callable[..., None], device: str, combinations: int, ranges: list[tuple[int, int]], own: dict[str, tuple]
) -> None:
    def cells_of(*options: str) -> dict[str, list[Any]]:
        return part("_gram.sizes").chosen_sizes(part("gram").parser().parse_args(["--device", device, *options])).cells

    for sizes in (cells_of(), cells_of("--full")):
        for name, ends in zip(("n", "layers", "width"), ranges, strict=True):
            values = {getattr(one, name) for one in sizes["sweep"]}
            assert (min(values), max(values)) == ends
        assert all(sizes[section] == (cell(*at),) for section, at in own.items())
    assert len(set(cells_of("--full")["sweep"])) == combinations
    assert len(cells_of("--quick")["sweep"]) < 6
    given = cells_of("--layers", "2", "5", "--width", "32", "--n", "64", "128")
    assert (len(given["sweep"]), "never stored" in given) == (4, False)
    assert (given["headline"], given["one-layer"]) == ((cell(128, 5, 32),), (cell(128, 1, 32),))
    assert cells_of("--layers", "2")["headline"][0].n == cells_of()["headline"][0].n


def test_exponents_are_slopes_of_logarithms(patch: Callable[..., None]) -> None:
    assert part("_gram.sections").exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_random_gates_are_half_on_and_fill_their_layers(patch: Callable[..., None]) -> None:
    bits = random_gates(200, 3, 70)
    assert (bits.widths, bits) == ((70, 70, 70), gatedops.GateBits.pack(bits.unpack()))
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
