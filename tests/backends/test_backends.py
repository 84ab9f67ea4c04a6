"""Tests which instruction set and backend run, how they are forced, and what `python -m gatedops` prints."""

from __future__ import annotations

import sysconfig

import pytest
import torch
from python_process import last_line, run_python

import gatedops
from gatedops import backends
from gatedops.backends import cuda_library, triton_package
from gatedops.backends.choice import backend_of
from gatedops.commands import report


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
        (
            *("GATEDOPS_BACKEND", "abacus"),
            "GATEDOPS_BACKEND: got 'abacus', needs one of cpu, portable, triton, cuda, or no value",
        ),
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
    monkeypatch.setattr(triton_package.util, "find_spec", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert backends.missing_for("triton") == missing


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU lacks")
def test_triton_without_a_gpu_is_an_error_at_import():
    message = last_line(run_python("-c", "import gatedops", GATEDOPS_BACKEND="triton"))
    assert message.startswith("ValueError: GATEDOPS_BACKEND: got 'triton', which needs ")


@pytest.mark.parametrize(
    ("cuda", "built", "capability", "missing"),
    [
        (None, "80_90a", (9, 0), "needs a torch built for CUDA, and this one is not: keep tensors on the CPU"),
        ("13.0", None, (9, 0), "is not built: install nvcc and run `pip install --no-build-isolation .` again"),
        ("13.0", "80_90a", None, "needs an NVIDIA GPU, and torch sees none: keep tensors on the CPU"),
        (
            *("13.0", "80_90a", (10, 0)),
            "is built for sm_80, sm_90a, but this GPU is sm_100: build again with TORCH_CUDA_ARCH_LIST=10.0",
        ),
        (
            "13.0",
            "90a",
            (8, 6),
            "is built for sm_90a, but this GPU is sm_86: build again with TORCH_CUDA_ARCH_LIST=8.6",
        ),
        ("13.0", "86", (8, 0), "is built for sm_86, but this GPU is sm_80: build again with TORCH_CUDA_ARCH_LIST=8.0"),
        ("13.0", "80_90a", (9, 0), None),
        ("13.0", "80_90a", (8, 9), None),
    ],
)
def test_what_the_cuda_kernels_lack_is_said(cuda, built, capability, missing, monkeypatch, tmp_path):
    path = tmp_path / "_C_cuda.so"
    path.write_bytes(b"\x7fELF...gatedops._C_cuda for " + (built or "").encode() + b"\0...")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(cuda_library, "library", lambda: None if built is None else path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert backends.missing_for("cuda") == missing


NEEDS_HOPPER = "which needs a GPU of compute capability 9.0, and this one has"


@pytest.mark.parametrize(
    ("name", "capability", "refused"),
    [
        ("sm100", (9, 0), "got 'sm100', needs one of sm90, sm90x1, sm80, or no value for the fastest"),
        (
            "sm90x1",
            (8, 6),
            "got 'sm90x1', which needs a GPU of compute capability 9.0, and this one has 8.6: use sm80",
        ),
        ("sm90", (10, 0), "got 'sm90', which needs a GPU of compute capability 9.0, and this one has 10.0: use sm80"),
        ("sm90", (9, 0), None),
        ("sm90x1", (9, 0), None),
        ("sm80", (8, 6), None),
        ("sm80", (9, 0), None),
        ("sm90", None, None),
    ],
)
def test_a_kernel_that_cannot_be_forced_is_refused(name, capability, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert cuda_library.refused_kernel(name) == refused


def test_a_forced_kernel_is_checked_at_import(monkeypatch):
    monkeypatch.setenv("GATEDOPS_BACKEND", "cuda")
    monkeypatch.setenv("GATEDOPS_CUDA", "sm70")
    monkeypatch.setattr(cuda_library, "missing", lambda: None)
    with pytest.raises(ValueError, match=r"^GATEDOPS_CUDA: got 'sm70', needs one of sm90, sm90x1, sm80"):
        backends._read_environment()


def test_each_interpreter_takes_the_library_that_it_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_library, "PACKAGE", tmp_path)
    assert cuda_library.library() is None
    others = tmp_path / "_C_cuda.cpython-300-x86_64-linux-gnu.so"
    others.touch()
    assert cuda_library.library() == others  # It is not a Python module, so any interpreter can load it.
    own = tmp_path / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    own.touch()
    assert cuda_library.library() == own


@pytest.mark.skipif(torch.version.cuda is not None, reason="says what a torch without CUDA lacks")
def test_cuda_without_a_torch_for_it_is_an_error_at_import():
    message = last_line(run_python("-c", "import gatedops", GATEDOPS_BACKEND="cuda"))
    assert message.startswith("ValueError: GATEDOPS_BACKEND: got 'cuda', which needs a torch built for CUDA")


def test_the_report_names_versions_backends_and_instruction_sets():
    done = run_python("-m", "gatedops", GATEDOPS_BACKEND="cpu")
    assert done.returncode == 0, done.stderr
    for word in [gatedops.__version__, torch.__version__, *backends.INSTRUCTION_SETS, "threads"]:
        assert word in done.stdout
    assert "  CPU        kernels in C++ (cpu); GATEDOPS_BACKEND asks for it\n" in done.stdout


PROVED = "torch's own operations (portable), and kernels where they proved themselves, below"


@pytest.mark.parametrize(
    ("forced", "on_cpu", "on_gpu"),
    [
        (None, "kernels in C++ (cpu)", PROVED),
        ("cpu", "kernels in C++ (cpu); GATEDOPS_BACKEND asks for it", PROVED.split(",")[0]),
        (
            "portable",
            "torch's own operations (portable); GATEDOPS_BACKEND asks for it",
            "torch's own operations (portable); GATEDOPS_BACKEND asks for it",
        ),
        ("triton", "kernels in C++ (cpu)", "kernels in Triton (triton); GATEDOPS_BACKEND asks for it"),
        ("cuda", "kernels in C++ (cpu)", "kernels in CUDA (cuda); GATEDOPS_BACKEND asks for it"),
    ],
)
def test_the_report_says_in_five_lines_what_runs_where(forced, on_cpu, on_gpu, monkeypatch, capsys):
    monkeypatch.setattr(backends, "_forced", forced)
    report.main()
    lines = capsys.readouterr().out.splitlines()
    where = lines[lines.index("Devices") + 1 : lines.index("GPU kernels")]
    assert where[:2] == [f"  CPU        {on_cpu}", f"  GPUs       {on_gpu}"]
    assert where[2].startswith("  others     torch's own operations (portable)")
    assert [line.split()[0] for line in where[3:]] == ["cuda", "triton"]


@pytest.mark.parametrize(
    ("device", "forced", "expected"),
    [
        ("cpu", None, "cpu"),
        ("cpu", "portable", "portable"),
        ("cpu", "triton", "cpu"),
        ("cuda:1", None, "portable"),
        ("cuda", "triton", "triton"),
        ("cuda", "cuda", "cuda"),
        ("xpu", "triton", "portable"),
        ("mps", None, "portable"),
    ],
)
def test_every_device_has_a_backend(device, forced, expected, monkeypatch):
    monkeypatch.setattr(backends, "_forced", forced)
    assert backend_of(device, "gram") == expected


def test_the_report_says_what_is_missing_and_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(backends, "cpu_features", lambda: ["popcnt"])
    monkeypatch.setattr(backends, "available_isas", lambda: ["serial"])
    monkeypatch.setattr(backends, "active_isa", lambda: "serial")
    monkeypatch.setattr(triton_package.util, "find_spec", lambda name: None)
    report.main()
    printed = capsys.readouterr().out
    assert "avx2       not on this machine (no avx2); nothing to do" in printed
    assert "triton     not installed; only the Triton kernels for GPUs need it" in printed
    assert "gated_linear_pair: needs the triton package, which is not installed: pip install triton" in printed


def test_the_report_says_where_the_cuda_kernels_do_not_fit_the_gpu(monkeypatch, capsys, tmp_path):
    path = tmp_path / "_C_cuda.so"
    path.write_bytes(b"gatedops._C_cuda for 90a\0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda_library, "library", lambda: path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(report.gpus, "gpus", list)
    monkeypatch.setattr(backends, "_forced", None)
    report.main()
    assert "for conv_gram, gram: is built for sm_90a, but this GPU is sm_86: build again" in capsys.readouterr().out


@pytest.mark.parametrize("allocate", [torch.empty, torch.ones(1).new_empty])
def test_uninitialized_memory_is_poisoned(allocate):
    assert torch.isnan(allocate(1000)).all()
