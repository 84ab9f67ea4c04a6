"""Which instruction set and backend run, how they are forced, and what `python -m gatedops` prints."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import gatedops
from gatedops import backends, npk_gram, pack_gates


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GATEDOPS_")}
    return subprocess.run(
        [sys.executable, *arguments], env=inherited | environment, capture_output=True, text=True, timeout=120
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_the_fastest_available_instruction_set_is_the_default():
    assert backends.available_isas()[0] == "serial"
    done = run_python("-c", "from gatedops import backends; print(backends.active_isa())")
    assert done.stdout.strip() == backends.available_isas()[-1], done.stderr


def test_an_instruction_set_is_available_where_no_flag_is_missing():
    assert [isa for isa in backends.INSTRUCTION_SETS if not backends.missing_flags(isa)] == backends.available_isas()


def test_force_cpu_holds_inside_its_block(isa):
    with backends.force_cpu("serial"):
        assert backends.active_isa() == "serial"
    assert backends.active_isa() == isa


def test_force_cpu_lets_go_after_an_error():
    before = backends.active_isa()
    with pytest.raises(RuntimeError, match="inside"), backends.force_cpu("serial"):
        raise RuntimeError("inside")
    assert backends.active_isa() == before


def test_force_cpu_refuses_what_is_not_available():
    before = backends.active_isa()
    with (
        pytest.raises(ValueError, match="got 'mmx', but this machine runs only: serial"),
        backends.force_cpu("mmx"),
    ):
        pass
    assert backends.active_isa() == before


def test_gatedops_cpu_forces_an_instruction_set():
    done = run_python("-c", "from gatedops import backends; print(*backends.chosen_isa())", GATEDOPS_CPU="serial")
    assert done.stdout == "serial GATEDOPS_CPU asks for it\n", done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GATEDOPS_CPU", "mmx", "ValueError: GATEDOPS_CPU: got 'mmx', but this machine runs only: serial"),
        ("GATEDOPS_BACKEND", "abacus", "ValueError: GATEDOPS_BACKEND: got 'abacus', but gatedops"),
        ("GATEDOPS_BACKEND", "cuda", "has kernels only for: cpu, triton"),
    ],
)
def test_a_value_that_cannot_be_had_is_an_error_at_import(variable, value, message):
    assert message in last_line(run_python("-c", "import gatedops", **{variable: value}))


@pytest.mark.parametrize(
    ("installed", "gpu", "missing"),
    [
        (None, True, "needs the triton package, which is not installed: pip install triton"),
        (
            "there",
            False,
            "needs an NVIDIA GPU and a torch built for CUDA, and torch sees none: keep tensors on the CPU",
        ),
        ("there", True, None),
    ],
)
def test_what_the_triton_kernels_lack_is_said(installed, gpu, missing, monkeypatch):
    monkeypatch.setattr(backends.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert backends.missing_for_triton() == missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU lacks")
def test_triton_without_a_gpu_is_an_error_at_import():
    message = last_line(run_python("-c", "import gatedops", GATEDOPS_BACKEND="triton"))
    assert message.startswith("ValueError: GATEDOPS_BACKEND: got 'triton', which needs ")


def test_the_report_names_versions_backends_and_instruction_sets():
    done = run_python("-m", "gatedops", GATEDOPS_BACKEND="cpu")
    assert done.returncode == 0, done.stderr
    for word in [gatedops.__version__, torch.__version__, *backends.INSTRUCTION_SETS, "threads"]:
        assert word in done.stdout
    for backend in backends.BACKENDS:
        assert backend.name in done.stdout
    assert "chosen, GATEDOPS_BACKEND asks for it" in done.stdout


def test_the_report_says_what_is_missing_and_what_to_do(monkeypatch, capsys):
    from gatedops import __main__ as report

    monkeypatch.setattr(backends, "cpu_features", lambda: ["popcnt"])
    monkeypatch.setattr(backends, "available_isas", lambda: ["serial"])
    monkeypatch.setattr(backends, "active_isa", lambda: "serial")
    monkeypatch.setattr(report.util, "find_spec", lambda name: None)
    report.main()
    printed = capsys.readouterr().out
    assert "avx2       not on this machine (no avx2); nothing to do" in printed
    assert "triton     not installed; only the experimental kernels for NVIDIA GPUs need it" in printed
    assert "(experimental): not chosen; it needs the triton package, which is not installed" in printed


def test_a_tensor_elsewhere_is_refused_with_what_to_do():
    words = pack_gates(torch.ones(2, 3))
    assert backends.unsupported_device(torch.device("xpu:0"), "npk_gram") == (
        "is on xpu:0, but npk_gram has kernels for the CPU only: move it there with .cpu()"
    )
    message = backends.unsupported_device(torch.device("cuda:0"), "soft_npk_gram")
    if backends.chosen_backend()[0] == "triton":
        assert "soft_npk_gram has kernels for the CPU only" in message
    else:
        assert "unless GATEDOPS_BACKEND=triton is set before Python starts" in message
    assert npk_gram(None, words, scale="none").tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("allocate", [torch.empty, torch.ones(1).new_empty])
def test_uninitialized_memory_is_poisoned(allocate):
    assert torch.isnan(allocate(1000)).all()
