"""benchmarks/gram.py, run small: what it writes, what it refuses, what its figures rest on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from script_runs import Importer, run_script

import gatedops
from gatedops import reference

SMALL = ("--quick", "--n", "64", "--layers", "2", "3", "--width", "40")
SECTIONS = ["sweep", "headline", "data-set", "one-core", "one-layer", "packing", "scaling", "soft"]

pytest.importorskip("tqdm")


@pytest.fixture
def script(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("gram")


def test_a_whole_run_writes_json_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run_script("gram.py", *SMALL, "--out", "results", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    out = tmp_path / "results"
    assert sorted(path.name for path in out.iterdir()) == ["gram.json", "gram.png"]
    assert (out / "gram.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    found = json.loads((out / "gram.json").read_text())
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["machine"]["command"].startswith("gram.py --quick --n 64")
    assert list(found["cores_busy_elsewhere"]) == SECTIONS
    assert "targets" not in found
    for section in SECTIONS:
        assert f"== {section}" in done.stdout
        assert found[section]
    cells = {(entry["cell"]["n"], entry["cell"]["layers"], entry["cell"]["width"]) for entry in found["sweep"]}
    assert cells == {(64, 2, 40), (64, 3, 40)}
    entries = [*found["sweep"], *found["headline"], *found["one-core"], *found["soft"]]
    for entry in entries:
        assert 0 < entry["best_s"] <= entry["median_s"]
        assert entry["runs"] >= 3
        pairs = 64 * 65 // 2 * entry["cell"]["layers"] * 40
        assert entry["bit_pairs_per_second"] == pytest.approx(pairs / entry["median_s"])
    others = {"portable", "torch float32", "torch bfloat16"}
    for cell in cells:
        by = {entry["by"] for entry in found["sweep"] if tuple(entry["cell"].values()) == cell}
        assert by == {"gatedops", *others}
    assert "portable / ours" in done.stdout
    for threads in {entry["threads"] for entry in found["headline"]}:
        shown = [e for e in found["headline"] if (e["what"], e["threads"]) == ("Lambda", threads)]
        assert {e["by"] for e in shown if e["instruction_set"] is None} == others
    isas = {entry["instruction_set"] for entry in found["headline"] if entry["what"] == "Lambda"}
    assert isas == {None, *gatedops.backends.available_isas()}
    assert len(found["packing"]) == 6
    assert [one["by"] for one in found["scaling"]] == ["n", "bits per pair"]


def test_a_data_set_that_does_not_fit_is_left_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As are its figures; the rest of the run goes on."""
    data_set = script.data_set
    assert data_set.bytes_of(script.default_sizes().data_set) > 4 * 60_000**2
    options = [*SMALL, "--only", "data-set", "soft", "--no-plot", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gram.py", *options])
    monkeypatch.setattr(data_set, "available_memory", lambda: 1000)
    assert script.main() == 0
    assert "left out: n=64, 3 x 40 needs 0.0 GiB of memory, more than is left" in capsys.readouterr().out
    found = json.loads((tmp_path / "gram.json").read_text())
    assert "data-set" not in found
    assert "soft" in found


def test_sections_and_peers_can_be_left_out(tmp_path: Path) -> None:
    done = run_script(
        "gram.py", *SMALL, "--only", "soft", "sweep", "--no-peers", "--no-plot", "--out", ".", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["gram.json"]
    found = json.loads((tmp_path / "gram.json").read_text())
    assert [section for section in SECTIONS if section in found] == ["sweep", "soft"]
    assert {entry["by"] for entry in found["sweep"]} == {"gatedops"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "15"], "argument --n: must be at least 16, got 15"),
        (["--n", "many"], "argument --n: needs a whole number, got 'many'"),
        (["--layers", "0"], "argument --layers: must be at least 1"),
        (["--width", "4", "-1"], "argument --width: must be at least 1"),
        (["--only", "sleep"], "argument --only: invalid choice"),
        (["--quick", "--full"], "argument --full: not allowed with argument --quick"),
        (["--n", "10000000"], "GiB of memory"),
    ],
)
def test_bad_options(
    script: ModuleType,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["gram.py", "--out", str(tmp_path), *options])
    try:
        code = script.main()
    except SystemExit as error:
        code = error.code
    assert code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gram.py: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


def test_cells_cover_the_range_that_is_asked_for(script: ModuleType) -> None:
    sizes = importlib.import_module("_gram.sizes")
    for made in (sizes.default_sizes(), sizes.full_sizes()):
        for name, low, high in [("n", 1024, 32768), ("layers", 1, 20), ("width", 64, 8192)]:
            values = {getattr(cell, name) for cell in made.sweep}
            assert (min(values), max(values)) == (low, high)
    assert len(set(sizes.full_sizes().sweep)) == 150
    given = sizes.given_sizes(sizes.default_sizes(), None, [2, 5], [32])
    assert [str(cell) for cell in given.sweep] == ["n=4096, 2 x 32", "n=4096, 5 x 32"]
    assert str(given.headline) == "n=4096, 5 x 32"


def test_the_limit_is_the_slower_of_counting_and_writing(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.import_module("_gram.entry")
    monkeypatch.setattr(entry, "write_bandwidth", lambda size, threads: 1e9)
    report = {"instruction_set": "serial", "clock_hz": 3e9, "threads": 8, "architecture": "x86_64"}
    cell = entry.Cell(1000, 2, 512)
    limit = entry.gram_limit(cell, report, "avx512", 2)
    assert limit.counts_s == pytest.approx(1000 * 1001 / 2 * 1024 / (2 * 3e9 * 512 / 1.5))
    assert limit.writes_s == pytest.approx(4e6 / 1e9)
    assert (limit.by, limit.seconds) == ("writes", limit.writes_s)
    assert entry.gram_limit(entry.Cell(1000, 20, 8192), report, "avx512", 2).by == "counts"
    assert entry.gram_limit(cell, report, "serial", 2) is None


def test_a_limit_is_at_the_clock_of_its_own_turns(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, headline = importlib.import_module("_gram.entry"), importlib.import_module("_gram.headline")
    sweep = importlib.import_module("_gram.sweep")
    clocks = iter([9e9, 1e9, 2e9, 3e9])  # the first is of the warm-up: the median of all is 2.5e9
    monkeypatch.setattr(headline, "clock_hz", lambda: next(clocks))
    monkeypatch.setattr(headline.backends, "available_isas", lambda: ["serial", "avx512"])
    cell, report = entry.Cell(64, 2, 512), {"clock_hz": 5e9, "architecture": "x86_64"}
    calls = {("Lambda", isa): lambda: None for isa in ("avx512", "serial")} | {
        ("Lambda", "torch float32"): lambda: None
    }
    entries = headline._timed(cell, calls, 1, report, sweep.Budget(3, 1.0, 1.0))
    assert [one.by for one in entries] == ["gatedops", "gatedops", "torch float32"]
    counts = 64 * 65 / 2 * 1024 / (2.5e9 * 512 / 1.5)
    assert entries[0].limit.counts_s == pytest.approx(counts)
    assert headline.popcount_seconds(entries) == pytest.approx(counts)
    assert headline.popcount_seconds(entries[1:]) is None


def test_a_wrong_gram_has_no_speed(script: ModuleType) -> None:
    entry, speed = importlib.import_module("_gram.entry"), importlib.import_module("_common.gram_speed")
    bits = speed.random_problem(50, 2, 33, None, 0).bits
    right = reference.npk_gram(None, bits)
    entry.require_right(lambda: right, bits, "this")
    wrong = right.clone()
    wrong[49, 0] = wrong[49, 0].nextafter(torch.tensor(9.0))
    with pytest.raises(RuntimeError, match="wrong on this"):
        entry.require_right(lambda: wrong, bits, "this")


def test_random_gates_are_half_on_and_fill_their_layers(script: ModuleType) -> None:
    speed = importlib.import_module("_common.gram_speed")
    bits = speed.random_problem(200, 3, 70, None, 0).bits
    assert bits.widths == (70, 70, 70)
    assert bits == gatedops.GateBits.pack(bits.unpack())
    assert all(0.45 < mask.double().mean() < 0.55 for mask in bits.unpack())
    assert 0.3 < bits.unpack()[2][:, -1].double().mean() < 0.7


def test_exponents_are_slopes_of_logarithms(script: ModuleType) -> None:
    sweep = importlib.import_module("_gram.sweep")
    assert sweep.exponent([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)


def test_a_peer_that_takes_too_long_or_too_much_memory_is_left_out(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, entry = importlib.import_module("_gram.sweep"), importlib.import_module("_gram.entry")
    cell = entry.Cell(1000, 4, 1000)
    monkeypatch.setattr(sweep, "available_memory", lambda: 10**9)
    assert sweep.is_affordable(cell, torch.float32, rate=1e10, seconds=0.5)
    assert not sweep.is_affordable(cell, torch.float32, rate=1e10, seconds=0.3)
    monkeypatch.setattr(sweep, "available_memory", lambda: 10**7)
    assert not sweep.is_affordable(cell, torch.float32, rate=1e10, seconds=0.5)


def small_problem() -> tuple[object, object, dict[str, object]]:
    """A cell, a budget, and a machine of which no limit is known."""
    entry, sweep = importlib.import_module("_gram.entry"), importlib.import_module("_gram.sweep")
    report = {"instruction_set": "serial", "clock_hz": None, "threads": 1, "architecture": "x86_64"}
    return entry.Cell(40, 2, 33), sweep.Budget(3, 0.1, 0.5), report


def test_portable_is_not_what_gatedops_chooses(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    portable, speed = importlib.import_module("_gram.portable"), importlib.import_module("_common.gram_speed")
    bits, other = (speed.random_problem(50, 2, 33, None, seed).bits for seed in (0, 1))
    for name in ("npk_gram", "gate_overlap"):
        monkeypatch.setattr(gatedops, name, lambda *_, **__: pytest.fail("this is the kernel in C++"))
    called = []
    out_op = portable.gram.npk_gram_out
    monkeypatch.setattr(portable.gram, "npk_gram_out", lambda *a, out: called.append(out) or out_op(*a, out=out))
    out = torch.empty(50, 50)
    assert portable.portable_gram(None, bits, out)() is called[0] is out
    assert out.equal(reference.npk_gram(None, bits))
    x = torch.randint(0, 256, (50, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert portable.portable_gram(x, bits, out)().equal(reference.npk_gram(x, bits))
    assert portable.portable_counts(bits, other).equal(reference.gate_overlap(bits, other))


@pytest.mark.parametrize("fault", ["idle", "off by a bit"])
def test_a_wrong_portable_gram_has_no_speed(script: ModuleType, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels in C++ left in the buffer does not help it."""
    portable = importlib.import_module("_gram.portable")
    right = portable.gram.npk_gram_out

    def faulty(*args: object, out: torch.Tensor) -> None:
        if fault != "idle":
            right(*args, out=out)
            out[-1, 0] = out[-1, 0].nextafter(torch.tensor(9.0))

    monkeypatch.setattr(portable.gram, "npk_gram_out", faulty)
    cell, budget, report = small_problem()
    with pytest.raises(RuntimeError, match="gatedops is wrong on portable, n=40"):
        script.sweep.time_cell(cell, report, budget, {"torch float32": 1e12}, 0)
    with pytest.raises(RuntimeError, match="gatedops is wrong on portable, n=40"):
        script.headline.headline(cell, report, budget, peers=True, seed=0)
    assert {e.by for e in script.headline.headline(cell, report, budget, peers=False, seed=0)} == {"gatedops"}


def test_portable_that_takes_too_long_is_left_out(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, budget, report = small_problem()
    for seconds, by in ((0.6, ["gatedops", "torch float32"]), (0.4, ["gatedops", "portable", "torch float32"])):
        monkeypatch.setattr(script.sweep, "portable_seconds", lambda bits, seconds=seconds: seconds)
        entries = script.sweep.time_cell(cell, report, budget, {"torch float32": 1e12}, 0)
        assert [entry.by for entry in entries] == by
        assert script.sweep.sweep_rows(entries)[0][-3:].count("-") == 4 - len(by)


def test_what_portable_takes_is_told_from_some_of_the_points(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    portable, speed = importlib.import_module("_gram.portable"), importlib.import_module("_common.gram_speed")
    timed = SimpleNamespace(best=2.0)
    monkeypatch.setattr(portable, "interleaved_medians", lambda calls, *_, **__: dict.fromkeys(calls, timed))
    # Tiles of 512 x 512 on and above the diagonal: 3 of 1024 points, which are timed, 6 of 1536, 36 of 4096.
    for n, expected in ((50, 2.0), (1536, 2.0 * 6 / 3), (4096, 2.0 * 36 / 3)):
        assert portable.portable_seconds(speed.random_problem(n, 1, 32, None, 0).bits) == pytest.approx(expected)


def test_portable_hides_no_kernel_in_cpp(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gatedops.backends, "_forced", "portable")
    monkeypatch.setattr(sys, "argv", ["gram.py", *SMALL, "--no-plot", "--out", str(tmp_path)])
    assert script.main() == 2
    assert "GATEDOPS_BACKEND=portable hides the kernels in C++" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def lambdas(**seconds: float) -> list[object]:
    """Entries of section headline; those of gatedops' own kernels stand at 1 second."""
    entry, headline = importlib.import_module("_gram.entry"), importlib.import_module("_gram.headline")
    cell, isa = entry.Cell(40, 2, 33), gatedops.backends.available_isas()[-1]
    matvecs = [f"matvec{x}, {headline.COLUMNS} columns" for x in ("", " with x")]
    ours = [(what, "gatedops", isa, 1.0) for what in ("Lambda", "Gram with x, float32", *matvecs)]
    theirs = [("Lambda", by.replace("_", " "), None, taken) for by, taken in seconds.items()]
    return [entry.Entry(what, by, cell, 2, i, taken, taken, 5) for what, by, i, taken in [*ours, *theirs]]


def test_portable_is_held_to_torchs_float32(script: ModuleType) -> None:
    held = importlib.import_module("_gram.targets").headline_targets
    name, peers = "Lambda, portable / torch float32", {"torch_float32": 20.0, "torch_bfloat16": 9.0}
    for portable_s, met in ((30.0, True), (30.1, False)):
        found = {target.name: target for target in held(lambdas(**peers, portable=portable_s))}
        assert (found[name].wanted, found[name].at_least, found[name].met) == (1.5, False, met)
        assert found[name].found == pytest.approx(portable_s / 20)
    for without in (peers, {}):
        assert name not in {target.name for target in held(lambdas(**without))}


def test_portable_has_a_colour_of_its_own(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    roofline, drawn = importlib.import_module("_gram.roofline"), {}
    draw = roofline._scatter

    def scatter(axis: object, entries: list[object], label: str, **style: object) -> None:
        drawn[label] = (len(entries), style["color"])
        draw(axis, entries, label, **style)

    monkeypatch.setattr(roofline, "_scatter", scatter)
    ours, *_, portable, peer = lambdas(portable=2.0, torch_float32=3.0)
    roofline.plot_roofline(tmp_path / "gram.png", [ours], [portable, portable, peer], "")
    assert drawn.pop("gatedops, n = 40")[0] == 1
    assert drawn == {"gatedops, portable": (2, "#d95f02"), "torch float32": (1, "#777777")}


def test_targets_say_whether_they_are_met(script: ModuleType) -> None:
    target = importlib.import_module("_gram.targets").Target
    assert target("share", 0.85, 0.9).met
    assert not target("share", 0.85, 0.8).met
    assert target("ratio", 1.3, 1.2, at_least=False).row() == ("ratio", "<= 1.30", "1.20", "yes")
    assert target("ratio", 1.3, 1.4, at_least=False).row() == ("ratio", "<= 1.30", "1.40", "NO")


def test_work_of_others_is_counted_and_our_own_is_not(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    contention = importlib.import_module("_common.contention")
    seconds = iter([10.0, 13.0])
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(contention, "_other_seconds", lambda: next(seconds))
    monkeypatch.setattr(contention.time, "perf_counter", lambda: next(clock))
    assert contention.Contention().cores() == 1.5
    assert "BUSY" in contention.sentence(1.5)
    assert "BUSY" not in contention.sentence(0.05)
    assert "not known" in contention.sentence(None)


def test_memory_is_written_and_copied_whole(script: ModuleType) -> None:
    bandwidth = importlib.import_module("_common.bandwidth")
    source = torch.randint(0, 256, (1001,), dtype=torch.uint8)
    to = torch.zeros_like(source)
    bandwidth.memcpy(to, source, 3)
    assert to.equal(source)
    bandwidth.memset(to, 2)
    assert (to == 1).all()
    assert bandwidth.write_bandwidth(4096, 2) > 0
