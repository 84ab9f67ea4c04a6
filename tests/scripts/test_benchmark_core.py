"""What all benchmarks rest on: turns, contests, limits, JSON files and the pictures that are drawn from them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_runs import Importer

from gatedops import GateBits, reference

pytest.importorskip("tqdm")


@pytest.fixture
def contest(benchmark_module: Importer) -> ModuleType:
    return benchmark_module("_common.contest")


def test_functions_take_turns(benchmark_module: Importer) -> None:
    timing = benchmark_module("_common.timing")
    calls: list[str] = []
    times = timing.interleaved_medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5)
    assert calls == ["a", "b"] * 6
    assert len(times["a"].samples) == 5
    assert times["a"].best <= times["a"].median
    calls.clear()
    functions = {"slow": lambda: calls.append("slow") or time.sleep(0.01), "fast": lambda: calls.append("fast")}
    times = timing.interleaved_medians(functions, 6, least=2, seconds=0.005)
    assert (len(times["slow"].samples), len(times["fast"].samples)) == (2, 6)
    assert calls[2:] == ["fast", "fast", "slow", "fast", "fast", "fast", "slow", "fast"]


def test_contestants_are_compared_for_each_unit_of_work(contest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = iter([(5.0, 6.0, 7.0), (2.0,), (3.0,), (1.0, 2.0, 3.0)])
    timings = lambda calls, *_, **__: {name: contest.Timing(next(samples)) for name in calls}  # noqa: E731
    monkeypatch.setattr(contest, "interleaved_medians", timings)
    measured = iter([{"counting": 1.5, "writing": 1.0}, {"counting": 2.0, "writing": 0.5}])
    one = contest.Contest("a problem", contest.Failures())
    limit = {"limit": lambda: contest.Limit(next(measured))}
    one.enter("Gram", "ours", lambda: bool, check=lambda _: {"error": 0.5}, work=10, unit="pairs", **limit)
    one.enter("Gram", "fewer pairs", lambda: bool, work=1, unit="pairs")
    one.enter("Gram", "no pairs", lambda: bool)
    one.enter("Gram", "floor", lambda: bool)
    ours, fewer, none, floor = one.run(1, limits=("floor",))
    assert [entry.ratio for entry in (ours, fewer, none, floor)] == [1, 2 / 0.6, 0.5, 1 / 3]
    assert (ours.facts["error"], ours.rate, ours.share, none.share, floor.share) == (0.5, 10 / 6, 1 / 6, 1 / 3, None)
    before, after = contest.Limit({"a": 1.5, "b": 1.0}), contest.Limit({"a": 2.0, "b": 0.5})
    assert before.lowered(after).parts == {"a": 1.5, "b": 0.5}


def test_who_is_wrong_or_raises_in_the_turns_is_named_and_the_rest_is_timed(
    contest: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = iter([None])
    one = contest.Contest("a problem", contest.Failures())
    assert not one.enter("Gram", "wrong", lambda: bool, check=lambda _: 1 / 0)
    assert one.enter("Gram", "tired", lambda: lambda: next(calls))
    assert one.enter("Gram", "right", lambda: bool)
    (right,) = one.run(2, base=("Gram", "wrong"))
    assert (right.by, right.runs, right.ratio) == ("right", 2, None)
    reasons = {failure.by: failure.reason for failure in one.failures.all}
    assert reasons == {"wrong": "ZeroDivisionError: division by zero", "tired": "StopIteration: "}
    assert "failed: Gram, wrong, a problem: ZeroDivisionError" in capsys.readouterr().out


def test_a_script_that_is_stopped_says_so(
    benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = benchmark_module("_common.options")

    def stopped(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["gram.py", "--out", str(tmp_path)])
    assert options.run_script(options.script_parser("A script."), stopped) == 130
    assert capsys.readouterr().err == "gram.py: stopped\n"


def test_peers_compute_the_gram(benchmark_module: Importer) -> None:
    peers = benchmark_module("_common.peers")
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(40, width, generator=generator) > 0.5 for width in (17, 64)]
    x = torch.rand(40, 5, generator=generator)
    for inputs in (None, x):
        expected = reference.npk_gram(inputs, GateBits.pack(masks), dtype=torch.float64)
        peer = peers.MatmulPerLayer(masks, [1 / 17, 1 / 64], torch.float32, inputs)
        torch.testing.assert_close(peer().double(), expected, rtol=1e-5, atol=1e-6)
        assert peer() is peer()
    torch.testing.assert_close(peers.input_matmul(x)(), x @ x.T)


def test_json_has_no_nan_and_lists_of_numbers_on_one_line(benchmark_module: Importer, tmp_path: Path) -> None:
    output, path = benchmark_module("_common.output"), tmp_path / "figures.json"
    content = {"a": [[1, -2.5e-7], []], "b": ["[\n1]", [{"c": 3}], None]}
    output.write_json_atomically(path, content)
    assert "[1, -2.5e-07]" in path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        output.write_json_atomically(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == content
    assert list(tmp_path.iterdir()) == [path]


def test_memory_is_written_and_copied_whole(benchmark_module: Importer) -> None:
    bandwidth = benchmark_module("_common.machine")
    source = torch.randint(0, 256, (1001,), dtype=torch.uint8)
    to = torch.zeros_like(source)
    bandwidth.memcpy(to, source, 3)
    assert to.equal(source)
    bandwidth.memset(to, 2)
    assert (to == 1).all()
    assert bandwidth.write_bandwidth(4096, 2) > 0


def test_work_of_others_is_counted_and_our_own_is_not(
    benchmark_module: Importer, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, seconds, clock = benchmark_module("_common.machine"), iter([10.0, 13.0]), iter([100.0, 102.0])
    monkeypatch.setattr(machine, "_other_seconds", lambda: next(seconds))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    assert machine.Contention().cores() == 1.5
    assert ["BUSY" in machine.busy_sentence(cores) for cores in (1.5, 0.05, None)] == [True, False, False]


def test_images_are_kept_to_half_a_level(benchmark_module: Importer) -> None:
    images = benchmark_module("_common.plots")
    image = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    kept = json.loads(json.dumps(images.encoded(image)))
    torch.testing.assert_close(images.decoded(kept), image.double(), rtol=0, atol=0.5 / 255)
    assert images.decoded(images.encoded(torch.full((2, 3), 4.0))).tolist() == [[4.0] * 3] * 2
