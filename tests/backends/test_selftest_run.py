"""Whatever kernels do, the processes of the self-test give a verdict; tested with fake backends on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_backends as fakes
import pytest
import torch

from gatedops.backends import child
from gatedops.backends.verdicts import RIGHT, Verdict
from gatedops.commands import selftest
from gatedops.commands.selftest import Target
from gatedops.portable.register import OPS
from gatedops.selftest import run, worker
from gatedops.selftest.cases import cases_of

pytestmark = pytest.mark.usefixtures("untouched_ops")

TARGET = Target(fakes.GPU, "cpu")
PATIENT = 60.0
FIRST = cases_of(fakes.FAMILY, [fakes.OP])[0].name


@pytest.fixture
def temporary(monkeypatch, tmp_path) -> Path:
    """Makes an empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(run.tempfile, "tempdir", None)
    return folder


# --- processes ------------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    """Whether a process is running. A process that ended and was not waited for is not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() != "" and not shown.stdout.startswith("Z")


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_kernel_that_hangs_is_killed_with_all_that_it_started(monkeypatch, tmp_path, temporary):
    pids = tmp_path / "pids"
    monkeypatch.setenv(fakes.PIDS, str(pids))
    for limit in (5, 10, 20, 40):  # On a busy machine, loading torch may take longer than the first limit.
        verdict = run.verdict_on(fakes.HANGS, fakes.FAMILY, "cpu", limit)
        if pids.exists():
            break
    assert verdict.outcome == "hung"
    assert verdict.why == f"{FIRST}: not done after {limit} s"
    for pid in pids.read_text().split():
        until(lambda pid=int(pid): not is_running(pid))
    assert not list(temporary.iterdir())


def test_a_kernel_that_crashes_is_told_by_its_signal():
    verdict = run.verdict_on(fakes.KILLS, fakes.FAMILY, "cpu", PATIENT)
    assert verdict.outcome == "crashed"
    assert verdict.why == f"{FIRST}: the process ended with SIGSEGV"
    assert (verdict.cases, verdict.faster) == (0, ())


def test_a_kernel_that_crashes_only_when_it_is_timed_is_not_right():
    end = run._worker(fakes.CRASHES_ONLY_WHEN_TIMED, fakes.FAMILY, "cpu", "time", PATIENT)
    verdict = run._timed(Verdict(RIGHT, cases=5), end, PATIENT)
    assert (verdict.outcome, verdict.cases) == ("crashed", 5)
    assert verdict.why == "while it was timed, pack_gates, small: the process ended with exit code 3: the last words"


def test_kernels_may_print_what_they_like(capfd):
    assert selftest.self_test([fakes.FLOODS], [TARGET], [fakes.FAMILY], [TARGET.gpu], as_json=True, limit=PATIENT) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    (gpu,) = found["gpus"]
    verdict = gpu["families"][fakes.FAMILY]["floods"]
    assert (verdict["outcome"], verdict["why"]) == (RIGHT, "")
    assert verdict["cases"] > 20
    assert min(verdict["faster"]) > 1
    assert [timing["size"] for timing in verdict["timings"]] == ["small", "large"]
    assert found["chosen"] == {fakes.FAMILY: "floods"}
    assert Path(gpu["kept"]).exists()
    assert len(err.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "outcome", "why"),
    [
        (fakes.RIGHT_ONE, "right", ""),
        (fakes.SLOWER, "right", ""),
        (fakes.FLOODS, "right", ""),
        (fakes.WRONG_BY_A_BIT, "wrong", "numbers differ, the first at"),
        (fakes.UNSTEADY, "unsteady", "two runs differ"),
        (fakes.RAISES, "raised", "RuntimeError: no kernel image"),
        (fakes.CANNOT_LOAD, "raised", "loading the kernels: OSError: libcudart.so.13"),
        (replace(fakes.RIGHT_ONE, at="no_such_module:A"), "raised", "loading the kernels: ModuleNotFoundError: No mod"),
    ],
)
def test_every_kind_of_kernel_gets_its_verdict(backend, outcome, why):
    verdict = run.verdict_on(backend, fakes.FAMILY, "cpu", PATIENT)
    assert verdict.outcome == outcome
    assert why in verdict.why
    assert len(verdict.faster) == (2 if outcome == RIGHT else 0)


def start_command(backend: str) -> subprocess.Popen[str]:
    """Starts the command with a fake backend. SIGINT must reach it, although it is ignored if a shell has put the tests
    in the background."""
    code = "import signal, sys, fake_backends as f; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.exit(f.command(f.{backend}))"
    environment = os.environ | {"PYTHONPATH": str(Path(fakes.__file__).parent)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_the_command_leaves_nothing_behind_when_it_is_stopped(number, code, monkeypatch, tmp_path, temporary):
    pids = tmp_path / "pids"
    monkeypatch.setenv(fakes.PIDS, str(pids))
    process = start_command("HANGS")
    until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    for pid in pids.read_text().split():
        until(lambda pid=int(pid): not is_running(pid))
    assert not list(temporary.iterdir())
    assert not list((tmp_path / "cache").rglob("*.json"))


# --- a worker -------------------------------------------------------------------------------------------------------


def told_by(backend, part: str, path: Path) -> dict:
    """Returns the last line of a worker that runs in this process."""
    arguments = ["--backend", backend.at, "--family", fakes.FAMILY, "--device", "cpu", "--part", part]
    worker.main([*arguments, "--report", str(path)])
    return json.loads(path.read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("backend", "outcome", "why"),
    [
        (fakes.WRONG_BY_A_BIT, "wrong", f"{FIRST}: result 0: 1 of "),
        (fakes.UNSTEADY, "unsteady", f"{FIRST}: two runs differ: result 0"),
        (fakes.RAISES, "raised", f"{FIRST}: RuntimeError: no kernel image is available"),
        (fakes.CANNOT_LOAD, "raised", "loading the kernels: OSError: libcudart.so.13: cannot open"),
        (replace(fakes.RIGHT_ONE, at="fake_backends:NONE"), "raised", "loading the kernels: AttributeError: module"),
    ],
)
def test_a_worker_tells_the_first_fault(backend, outcome, why, tmp_path):
    told = told_by(backend, "check", tmp_path / "report")
    assert told["outcome"] == outcome
    assert told["why"].startswith(why)


def test_a_worker_tells_each_case_and_how_many_were_right(tmp_path):
    told = told_by(fakes.RIGHT_ONE, "check", tmp_path / "report")
    lines = [json.loads(line) for line in (tmp_path / "report").read_text().splitlines()]
    assert lines[0] == {"begins": FIRST}
    assert told == {"cases": sum("ends" in line for line in lines)}
    assert told["cases"] > 20


def test_a_worker_times_both(tmp_path):
    first, second = told_by(fakes.SLOWER, "time", tmp_path / "report")["timings"]
    assert (first["what"], first["size"], second["size"]) == ("pack_gates, small", "small", "large")
    assert first["kernel_s"] > 0.002
    assert first["portable_s"] > 0


@pytest.mark.parametrize(
    ("taken", "enough"),
    [
        ([[0.2, 0.2], [0.2, 0.2]], False),
        ([[0.1] * 3, [0.2] * 3], True),
        ([[0.001] * 10, [0.01] * 10], False),
        ([[0.001] * 50, [0.001] * 50], True),
        ([[0.001] * 3, [1.0] * 3], True),
    ],
)
def test_it_is_timed_for_long_enough_and_not_for_ever(taken, enough):
    assert worker._is_enough(taken) == enough


def full(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def broken(*_: object) -> None:
    raise RuntimeError("no such operation\nhere")


@pytest.mark.parametrize(
    ("kernel", "portable", "why"),
    [
        (full, None, "too little memory is free; free some and run the self-test again"),
        (None, full, "too little memory is free; free some and run the self-test again"),
        (None, broken, "by the portable op: RuntimeError: no such operation"),
    ],
)
def test_what_is_no_fault_of_a_kernel_is_no_verdict(kernel, portable, why, monkeypatch, tmp_path):
    op = OPS[fakes.OP]
    monkeypatch.setattr(worker, "_found", lambda _: replace(fakes.RIGHT_ONE, load=lambda: {fakes.OP: kernel or op}))
    monkeypatch.setitem(OPS, fakes.OP, portable or op)
    told = told_by(fakes.RIGHT_ONE, "check", tmp_path / "report")
    assert told["outcome"] == "unknown"
    assert told["why"].endswith(why)


def test_a_result_that_is_wrong_only_when_it_is_timed_is_found(quick, tmp_path):
    told = told_by(fakes.WRONG_BY_A_BIT, "time", tmp_path / "report")
    assert (told["outcome"], "result 0: 1 of " in told["why"]) == ("wrong", True)
    told = told_by(fakes.UNSTEADY, "time", tmp_path / "unsteady")
    assert (told["outcome"], "two runs differ: result 0" in told["why"]) == ("unsteady", True)


# --- verdicts -------------------------------------------------------------------------------------------------------


def ended(last: dict | None, code: int | None = 0, within: str | None = None, printed: str = "") -> run._End:
    return run._End(code, run._Report(5, within, last), printed)


def test_what_cannot_be_timed_stays_right():
    verdict = run._timed(Verdict(RIGHT, cases=5), ended({"untimed": "large: out of memory"}), 5)
    assert verdict == Verdict(RIGHT, "not timed: large: out of memory", cases=5)
    verdict = run._timed(Verdict(RIGHT, cases=5), ended({"outcome": "raised", "why": "large: an illegal access"}), 5)
    assert verdict == Verdict("raised", "while it was timed, large: an illegal access", cases=5)
    assert run._timed(Verdict(RIGHT), ended({"timings": []}), 5) == Verdict(RIGHT, "none of its calls is timed")


def test_faster_is_the_geometric_mean_at_each_size():
    times = [("small", 1.0, 2.0), ("small", 1.0, 8.0), ("large", 2.0, 1.0)]
    timings = [{"what": "a", "size": size, "kernel_s": k, "portable_s": p} for size, k, p in times]
    assert run._timed(Verdict(RIGHT), ended({"timings": timings}), 5).faster == pytest.approx((4.0, 0.5))
    assert run._timed(Verdict(RIGHT), ended({"timings": timings[:2]}), 5).faster == ()


@pytest.mark.parametrize(
    ("end", "outcome", "why"),
    [
        (ended(None, code=None, within="a"), "hung", "a: not done after 7 s"),
        (ended({"cases": 5}, code=-6), "crashed", "after the last case: the process ended with SIGABRT"),
        (ended(None, code=-99, within="a"), "crashed", "a: the process ended with signal 99"),
        (
            ended(None, code=0, within="a"),
            "crashed",
            "a: the process ended with exit code 0 and no valid report",
        ),
        (ended(None, 1, "a", "OSError: full"), "crashed", "a: the process ended with exit code 1: OSError: full"),
        (ended({"outcome": "wrong", "why": "a: 1 of 2"}, code=-6), "wrong", "a: 1 of 2"),
    ],
)
def test_how_a_worker_ends_is_the_outcome(end, outcome, why):
    assert run._checked(end, 7.0) == Verdict(outcome, why, cases=5)


def test_half_a_line_of_a_report_is_none(tmp_path):
    path = tmp_path / "report"
    assert run._read(path) == run._Report(0, None, None)
    path.write_text('{"begins": "a"}\n{"ends": "a"}\n{"begins": "b"}\n{"outco')
    assert run._read(path) == run._Report(1, "b", None)


def test_the_last_words_are_short_and_printable(tmp_path):
    path = tmp_path / "stderr"
    path.write_bytes(b"first\n\x1b[31mlast\xff" + b"x" * 9999 + b"\r\n \n")
    assert run._last_line(path) == "x" * (run._LONGEST - 4) + " ..."
    path.write_bytes(b"\x1b[31mlast\xff\n")
    assert run._last_line(path) == " [31mlast\N{REPLACEMENT CHARACTER}"
    path.write_bytes(b"")
    assert run._last_line(path) == ""


@pytest.mark.parametrize(
    "line",
    [
        *(b"1", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 9999, b'{"cases": 3}', b'{"cases": "2"}'),
        *(b'{"outcome": "wrong"}', b'{"outcome": "splendid", "why": "a"}', b'{"outcome": "right", "why": "a"}'),
        b'{"timings": [{"what": "a", "size": "huge", "kernel_s": 1.0, "portable_s": 1.0}]}',
        b'{"timings": [{"what": "a", "size": "small", "kernel_s": 0.0, "portable_s": 1.0}]}',
        b'{"timings": [{"what": "a", "size": "small", "kernel_s": NaN, "portable_s": 1.0}]}',
    ],
)
def test_a_line_that_no_worker_writes_ends_a_report(line, tmp_path):
    path = tmp_path / "report"
    path.write_bytes(
        b'{"begins": "a"}\n{"ends": "a"}\n{"begins": "b"}\n' + line + b'\n{"outcome": "wrong", "why": "c"}\n'
    )
    assert run._read(path) == run._Report(1, "b", None)
    assert run._read(tmp_path / "none") == run._Report(0, None, None)


def test_what_a_kernel_says_is_one_short_line(tmp_path):
    path = tmp_path / "report"
    path.write_text(json.dumps({"outcome": "raised", "why": "a\n\x1b[31m" + "b" * 9999}))
    why = run._read(path).last["why"]
    assert why.startswith("a  [31mbbb")
    assert len(why) == run._LONGEST


def test_a_signal_while_a_worker_starts_leaves_none_behind(monkeypatch):
    """The signal comes when the process exists but nobody knows it yet."""
    started = []
    popen = subprocess.Popen

    def interrupted(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(run.subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job of a shell ignores SIGINT.
    try:
        with pytest.raises(KeyboardInterrupt):
            run.verdict_on(fakes.HANGS, fakes.FAMILY, "cpu", PATIENT)
        assert started[0].poll() == -signal.SIGKILL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_chooses_kernels_is_not_passed_on(monkeypatch):
    for name in ("GATEDOPS_BACKEND", "GATEDOPS_CUDA", "GATEDOPS_CPU"):
        monkeypatch.setenv(name, "x")
    passed_on = child.environment(run._NOT_PASSED_ON)
    assert "GATEDOPS_CPU" in passed_on
    assert {"GATEDOPS_BACKEND", "GATEDOPS_CUDA"}.isdisjoint(passed_on)
