"""Tests what `python -m gatedops selftest` tries, prints, keeps and refuses, with fake backends on the CPU."""

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
from dataclasses import replace

import fake_backends as fakes
import pytest
import torch
from planted import TESTED

from gatedops import __main__ as program
from gatedops import backends
from gatedops.backends import verdict_files
from gatedops.backends.choice import proved_choices
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.backends.verdicts import RIGHT, Verdict
from gatedops.commands import selftest
from gatedops.commands.selftest import NothingToTry, Target
from gatedops.selftest import report, run

pytestmark = pytest.mark.usefixtures("untouched_ops")

TARGET = Target(fakes.GPU, "cpu")
A100 = Gpu("NVIDIA A100", (8, 0), "580.65.06", (0, 2))
H100 = Gpu("NVIDIA H100", (9, 0), "580.65.06", (1,))


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
    assert "-       right and faster here, but must be on the other GPUs too" in text
    assert json.loads(report.json_of(tested, [fakes.RIGHT_ONE], chosen))["chosen"] == {"gates": "portable"}


def test_a_kind_of_gpu_that_was_not_tried_keeps_it_from_all(quick, capsys):
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu, A100])
    assert "-       right and faster here, but must be on the other GPUs too" in capsys.readouterr().out


def test_a_variable_that_chooses_is_told(quick, monkeypatch, capsys):
    monkeypatch.setattr(backends, "_forced", "portable")
    selftest.self_test([fakes.RIGHT_ONE], [TARGET], [fakes.FAMILY], [TARGET.gpu])
    assert "GATEDOPS_BACKEND=portable is set, so it chooses" in capsys.readouterr().out


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
    assert "Another self-test is running: this one begins when it has ended." in capsys.readouterr().err


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


def test_all_families_with_kernels_are_tried_unless_some_are_named():
    assert selftest.families_to_try(None, KERNEL_BACKENDS) == TESTED
    assert selftest.families_to_try(["gram", "gates", "gram"], KERNEL_BACKENDS) == ["gram", "gates"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            "grams",
            "--families: got 'grams', needs one or more of gates, gram, conv_gram, gated_linear, gated_linear_pair",
        ),
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
        (None, "torch sees no GPU, because it is built for the CPU alone: install a torch built for CUDA"),
        ("13.0", "torch sees no GPU, and the kernels to test need an NVIDIA GPU and its driver"),
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


# --- python -m gatedops ---------------------------------------------------------------------------------------------


def test_the_help_names_the_commands(capsys):
    assert program.main(["--help"]) == 0
    assert "\n  selftest   tests the kernels" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    assert program.main(["selftests"]) == 2
    told = "python -m gatedops: got 'selftests', needs selftest, --help, --version, or no argument for the report\n"
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


@pytest.mark.parametrize(
    ("redirected", "code", "err"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full", 1, "python -m gatedops: the output cannot be written: No space left on device\n"),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_streams_that_take_nothing_are_no_crash(redirected, code, err):
    command = f"{shlex.quote(sys.executable)} -m gatedops {redirected}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)
