"""`python -m gatedops selftest`, with fake backends on the CPU: whatever kernels do, it ends with a verdict."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fake_backends as fakes
import pytest
import torch

from gatedops import __main__ as program
from gatedops import backends
from gatedops.backends import child, verdict_files
from gatedops.backends.choice import proved_choices
from gatedops.backends.families import FAMILIES
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.backends.verdicts import RIGHT, Verdict
from gatedops.commands import selftest
from gatedops.commands.selftest import NothingToTry, Target
from gatedops.portable.register import OPS
from gatedops.selftest import report, run, worker
from gatedops.selftest.cases import cases_of, gates

TARGET = Target(fakes.GPU, "cpu")
PATIENT = 60.0
FIRST = cases_of(fakes.FAMILY, [fakes.OP])[0].name
A100 = Gpu("NVIDIA A100", (8, 0), "580.65.06", (0, 2))
H100 = Gpu("NVIDIA H100", (9, 0), "580.65.06", (1,))


@pytest.fixture(autouse=True)
def _untouched(monkeypatch, tmp_path) -> Iterator[None]:
    """A cache folder of its own; the ops and the timings that fake backends replace come back."""
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GATEDOPS_BACKEND", raising=False)
    monkeypatch.setattr(gates, "timings", gates.timings)
    before = dict(OPS)
    yield
    OPS.update(before)


@pytest.fixture
def temporary(monkeypatch, tmp_path) -> Path:
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(run.tempfile, "tempdir", None)
    return folder


@pytest.fixture
def quick(monkeypatch) -> None:
    """Every test of a family ends at once and finds it right, and twice as fast or more."""
    verdict = Verdict(RIGHT, faster=(2.04, 3.4), date="2026-11-28", cases=12)
    monkeypatch.setattr(run, "verdict_on", lambda *_: verdict)


# --- processes ------------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    """Whether a process is there; one that ended and was not waited for is not."""
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
    for limit in (5, 10, 20, 40):  # on a busy machine torch may load for longer than the first
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
    """The command with a fake backend. SIGINT reaches it, which is ignored where a shell has put the tests in the
    background."""
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
    """The last line of a worker that runs in this process."""
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


# --- verdicts -------------------------------------------------------------------------------------------------------


def ended(last: dict | None, code: int | None = 0, within: str | None = None, printed: str = "") -> run._End:
    return run._End(code, run._Report(5, within, last), printed)


def test_what_cannot_be_timed_stays_right():
    verdict = run._timed(Verdict(RIGHT, cases=5), ended({"untimed": "large: out of memory"}), 5)
    assert verdict == Verdict(RIGHT, "not timed: large: out of memory", cases=5)
    verdict = run._timed(Verdict(RIGHT, cases=5), ended({"outcome": "raised", "why": "large: an illegal access"}), 5)
    assert verdict == Verdict("raised", "while it was timed, large: an illegal access", cases=5)
    assert run._timed(Verdict(RIGHT), ended({"timings": []}), 5) == Verdict(RIGHT, "nothing of it is timed")


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
            "a: the process ended with exit code 0 and no report that makes sense",
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
    """It comes when the process is there and nobody knows it yet."""
    started = []
    popen = subprocess.Popen

    def interrupted(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(run.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.verdict_on(fakes.HANGS, fakes.FAMILY, "cpu", PATIENT)
    assert started[0].poll() == -signal.SIGKILL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_test_keeps_what_was_done(monkeypatch):
    def one_only(backend, family, *_):
        if family != fakes.FAMILY:
            raise KeyboardInterrupt
        return Verdict(RIGHT, cases=1)

    monkeypatch.setattr(run, "verdict_on", one_only)
    backend = replace(fakes.RIGHT_ONE, ops=(fakes.OP, "conv_gram"))
    with pytest.raises(KeyboardInterrupt):
        selftest.self_test([backend], [TARGET], [fakes.FAMILY, "conv_gram"], [])
    assert set(verdict_files.read(fakes.GPU, [backend])) == {fakes.FAMILY}


def test_what_could_not_be_tried_is_not_kept(monkeypatch, capsys):
    monkeypatch.setattr(run, "verdict_on", lambda *_: Verdict("unknown", "a: too little memory"))
    assert selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu]) == 1
    assert verdict_files.read(fakes.GPU, [fakes.RIGHT_ONE]) == {}
    assert "unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("redirected", "code", "err"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full", 1, "python -m gatedops: what it prints has no place: No space left on device\n"),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_streams_that_take_nothing_are_no_crash(redirected, code, err):
    command = f"{shlex.quote(sys.executable)} -m gatedops {redirected}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)


def test_what_chooses_kernels_is_not_passed_on(monkeypatch):
    for name in ("GATEDOPS_BACKEND", "GATEDOPS_CUDA", "GATEDOPS_CPU"):
        monkeypatch.setenv(name, "x")
    passed_on = child.environment(run._NOT_PASSED_ON)
    assert "GATEDOPS_CPU" in passed_on
    assert {"GATEDOPS_BACKEND", "GATEDOPS_CUDA"}.isdisjoint(passed_on)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_table_names_verdict_speed_and_choice(quick, capsys):
    assert selftest.self_test([fakes.RIGHT_ONE, fakes.MISSING], [TARGET], [fakes.FAMILY], [TARGET.gpu]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[:5] == [
        "Fake GPU, compute capability 9.0, driver 580.65.06, tested on cpu",
        "  family  backend    verdict            times as fast, small / large  choice",
        "  gates   right_one  right in 12 cases  2.0x / 3.4x                   chosen",
        "  -       missing    not tried          -                             -       needs a thing that is not here",
        f"The verdicts are kept in {next(verdict_files.folder().glob('*.json'))}.",
    ]
    assert err.splitlines()[1].startswith("gates in right_one: right, 2.0x and 3.4x")
    assert verdict_files.read(fakes.GPU, [fakes.RIGHT_ONE, fakes.MISSING])[fakes.FAMILY]["right_one"].cases == 12


@pytest.mark.parametrize(
    ("verdict", "row"),
    [
        (Verdict(RIGHT, faster=(0.019, 3.0), cases=2), "right in 2 cases 0.019x / 3.0x - not faster at both sizes"),
        (Verdict(RIGHT, faster=(1.5, 1.5), cases=2), "right in 2 cases 1.5x / 1.5x - best is faster"),
        (
            Verdict(RIGHT, faster=(2.0, 2.0), cases=2, timings=({"portable_s": 0.8, "kernel_s": 1.0},)),
            "right in 2 cases 2.0x / 2.0x - a call that was timed is slower",
        ),
        (Verdict(RIGHT, "not timed: a", cases=2), "right in 2 cases - - not timed: a"),
        (Verdict("wrong", "a: 1 of 2 differ"), "wrong - - a: 1 of 2 differ"),
    ],
)
def test_what_is_not_chosen_has_a_reason(verdict, row):
    best = Verdict(RIGHT, faster=(9.0, 9.0), cases=1)
    backends = [replace(fakes.RIGHT_ONE, name="best"), replace(fakes.RIGHT_ONE, name="other")]
    known = {"gates": {"best": best, "other": verdict}}
    chosen = proved_choices(backends, [known])
    text = report.text_of([report.GpuResult(fakes.GPU, "cpu", known, {}, "f")], chosen)
    assert f"gates other {row}" in [" ".join(line.split()) for line in text.splitlines()]


def test_a_kind_of_gpu_where_it_is_wrong_keeps_it_from_all():
    right, wrong = Verdict(RIGHT, faster=(9.0, 9.0), cases=1), Verdict("wrong", "a")
    tested = [
        report.GpuResult(gpu, gpu.device, {"gates": {"right_one": verdict}}, {}, "f")
        for gpu, verdict in ((A100, right), (H100, wrong))
    ]
    chosen = proved_choices([fakes.RIGHT_ONE], [found.verdicts for found in tested])
    text = report.text_of(tested, chosen)
    assert "-       right and faster, as it must be on the other GPUs here too" in text
    assert json.loads(report.json_of(tested, [fakes.RIGHT_ONE], chosen))["chosen"] == {"gates": "portable"}


def test_a_kind_of_gpu_that_was_not_tried_keeps_it_from_all(quick, capsys):
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu, A100])
    assert "-       right and faster, as it must be on the other GPUs here too" in capsys.readouterr().out


def test_a_variable_that_chooses_is_told(quick, monkeypatch, capsys):
    monkeypatch.setattr(backends, "_forced", "portable")
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu])
    assert "GATEDOPS_BACKEND=portable is set, and it chooses" in capsys.readouterr().out


def test_something_wrong_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(run, "verdict_on", lambda *_: Verdict("wrong", "a: 1 of 2 differ"))
    assert selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu]) == 1
    assert "wrong" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(quick, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path / "file"))
    assert selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu]) == 0
    told, place = capsys.readouterr().out, tmp_path / "file" / "selftest"
    assert f"The verdicts cannot be kept in {place} ({place}: Not a directory), so they do not change" in told
    assert "-       right and faster, but not kept\n" in told
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu], as_json=True)
    (gpu,) = json.loads(capsys.readouterr().out)["gpus"]
    assert (gpu["kept"], gpu["not_kept"]) == (None, f"{place}: Not a directory")


def test_two_self_tests_at_once_take_turns_and_keep_what_both_found(monkeypatch, capsys):
    inside, most = [0], [0]

    def slow(*_: object) -> Verdict:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.3)
        inside[0] -= 1
        return Verdict(RIGHT)

    monkeypatch.setattr(run, "verdict_on", slow)
    backend = replace(fakes.RIGHT_ONE, ops=(fakes.OP, "conv_gram"))
    families = [fakes.FAMILY, "conv_gram"]
    threads = [
        threading.Thread(target=selftest.self_test, args=([backend], [TARGET], [family], [])) for family in families
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert set(verdict_files.read(fakes.GPU, [backend])) == set(families)
    assert "Another self-test runs: this one begins when that has ended." in capsys.readouterr().err


def test_nothing_that_can_run_is_told():
    with pytest.raises(NothingToTry, match=r"^No kernels can run here: missing needs a thing that is not here$"):
        selftest.self_test([fakes.MISSING], [TARGET], [fakes.FAMILY], [TARGET.gpu])


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf", "1e6"])
def test_a_limit_that_is_none_is_told(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        selftest.main(["--limit", text])
    assert f"--limit: got {text!r}, needs seconds, above 0 and at most 86400" in capsys.readouterr().err


def test_forgetting_is_for_all(capsys):
    with pytest.raises(SystemExit, match="2"):
        selftest.main(["--forget", "--families", "gram"])
    assert "--forget removes the verdicts on all families and GPUs: give it alone" in capsys.readouterr().err


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


def test_all_families_with_kernels_are_tried_unless_some_are_named():
    assert selftest.families_to_try(None, KERNEL_BACKENDS) == [family for family in FAMILIES if family != "soft_gram"]
    assert selftest.families_to_try(["gram", "gates", "gram"], KERNEL_BACKENDS) == ["gram", "gates"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("grams", "--families: got 'grams', needs some of gates, gram, conv_gram, gated_linear, gated_linear_pair"),
        ("soft_gram", "--families: soft_gram has no kernels beside the portable ones"),
    ],
)
def test_a_family_that_cannot_be_tried_is_refused(asked, told, capsys):
    assert selftest.main(["--families", "gates", asked]) == 2
    assert capsys.readouterr().err == told + "\n"


@pytest.mark.parametrize(
    ("asked", "targets"),
    [
        (None, [Target(A100, "cuda:0"), Target(H100, "cuda:1")]),
        ("cuda", [Target(A100, "cuda:0")]),
        ("cuda:1", [Target(H100, "cuda:1")]),
        ("cuda:2", [Target(A100, "cuda:2")]),
    ],
)
def test_one_gpu_of_every_kind_is_tried_unless_one_is_named(asked, targets):
    assert selftest.targets_of(asked, [A100, H100]) == targets


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("cpu", "--device: got 'cpu', needs an NVIDIA GPU: cuda, or cuda:1 for the second one"),
        ("mps", "--device: got 'mps', needs an NVIDIA GPU: cuda, or cuda:1 for the second one"),
        ("gpu", "--device: got 'gpu', needs an NVIDIA GPU: cuda, or cuda:1 for the second one"),
        ("cuda:7", "--device: got 'cuda:7', torch sees cuda:0, cuda:1, cuda:2"),
    ],
)
def test_a_device_that_cannot_be_tried_is_refused(asked, told, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "gpus", lambda: [A100, H100])
    assert selftest.main(["--device", asked]) == 2
    assert capsys.readouterr() == ("", told + "\n")


@pytest.mark.parametrize(
    ("cuda", "told"),
    [
        (None, "torch sees no GPU, as it is built for the CPU alone: install a torch built for CUDA"),
        ("13.0", "torch sees no GPU, and the kernels to try need an NVIDIA GPU and its driver"),
    ],
)
def test_no_gpu_is_told(cuda, told, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(selftest, "gpus", list)
    assert selftest.main(["--json"]) == 2
    assert capsys.readouterr() == ("", told + "\n")


def test_a_gpu_that_torch_cannot_use_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "why_unusable", lambda device: "cuda:0: no" if device == "cuda:0" else None)
    a100, h100 = Target(A100, "cuda:0"), Target(H100, "cuda:1")
    assert selftest.usable([a100, h100]) == [h100]
    assert capsys.readouterr().err == "cuda:0: no\n"
    with pytest.raises(NothingToTry, match=r"^cuda:0: no$"):
        selftest.usable([a100])


def test_the_bar_of_a_terminal_leaves_the_output_alone(quick, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu], as_json=True)
    json.loads(capsys.readouterr().out)
    assert "gates in right_one: right" in terminal.getvalue()


def test_verdicts_are_forgotten(quick, capsys):
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu])
    (kept,) = verdict_files.folder().glob("*.json")
    capsys.readouterr()
    assert selftest.main(["--forget"]) == 0
    assert capsys.readouterr().out == f"Removed {kept}\n"
    assert not kept.exists()
    assert selftest.main(["--forget"]) == 0
    assert capsys.readouterr().out.startswith("There is nothing to forget: no verdicts are kept in ")


def test_the_command_tries_its_backends_on_the_gpus_of_torch(quick, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "KERNEL_BACKENDS", (fakes.RIGHT_ONE,))
    monkeypatch.setattr(selftest, "gpus", lambda: [fakes.GPU])
    monkeypatch.setattr(selftest, "why_unusable", lambda device: None)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    assert program.main(["selftest", "--json", "--families", fakes.FAMILY]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"] == {"right_one": {"build": "a build", "sources": "sources"}}
    (gpu,) = found["gpus"]
    assert (gpu["name"], gpu["capability"], gpu["driver"], gpu["device"]) == ("Fake GPU", "9.0", "580.65.06", "cpu")
    assert gpu["families"]["gates"]["right_one"]["faster"] == [2.04, 3.4]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == handlers


# --- python -m gatedops ---------------------------------------------------------------------------------------------


def test_the_help_names_the_commands(capsys):
    assert program.main(["--help"]) == 0
    assert "\n  selftest   tries the kernels" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    assert program.main(["selftests"]) == 2
    told = "python -m gatedops: got 'selftests', needs selftest, --help, or nothing for the report\n"
    assert capsys.readouterr().err == told


def test_an_unknown_option_is_exit_code_2(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        program.main(["selftest", "--devices"])
    assert "unrecognized arguments: --devices" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], pytest.param(["selftest", "--forget"], marks=pytest.mark.slow)])
def test_a_reader_that_has_gone_is_no_error(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "gatedops", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 128 + signal.SIGPIPE
