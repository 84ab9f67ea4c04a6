"""Tests which backend a family gets on GPUs by its verdicts. The GPUs, files and backends here are made up."""

from __future__ import annotations

import ast
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_gpus import A100, BOTH, EVERYTHING, FASTER, H100, RIGHT, use_cache
from python_process import run_python

from gatedops import backends, dispatch
from gatedops.backends import choice, cuda_library, gpus, kernels, proved, verdict_files
from gatedops.backends.choice import Choice, forced_choices, proved_choices
from gatedops.backends.families import FAMILIES, FAMILY_OF
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import CUDA, KERNEL_BACKENDS, TRITON
from gatedops.backends.verdicts import OUTCOMES, Verdict
from gatedops.commands import report
from gatedops.portable.register import OPS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Makes an empty folder for verdicts."""
    return use_cache(tmp_path / "cache", monkeypatch)


# --- families and backends ---


def test_every_op_belongs_to_one_family():
    assert set(FAMILY_OF) == set(OPS)
    assert sum(len(ops) for ops in FAMILIES.values()) == len(OPS)


def test_a_backend_is_found_where_it_says():
    for backend in KERNEL_BACKENDS:
        module, name = backend.at.split(":")
        assert getattr(sys.modules[module], name) is backend
        assert backend.build()
        assert backend.sources()


def test_a_build_of_triton_covers_what_its_launchers_import():
    covered = {path.relative_to(cuda_library.PACKAGE.parent) for path in kernels.files_of_triton()}
    for path in (cuda_library.PACKAGE / "triton").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("gatedops."):
                module = Path(*node.module.split("."))
                assert module.with_suffix(".py") in covered or module.name == "triton", f"{path} imports {node.module}"


# --- the choice ---


def backends_of(chosen: dict[str, Choice]) -> dict[str, str]:
    return {family: made.backend for family, made in chosen.items()}


@pytest.mark.parametrize(
    ("forced", "able", "gram", "pair", "soft"),
    [
        ("cuda", BOTH, "cuda", "triton", "portable"),
        ("cuda", (CUDA,), "cuda", "portable", "portable"),
        ("triton", BOTH, "triton", "triton", "portable"),
        ("portable", BOTH, "portable", "portable", "portable"),
        ("cpu", BOTH, "portable", "portable", "portable"),
    ],
)
def test_a_forced_backend_takes_what_it_has_kernels_for(forced, able, gram, pair, soft):
    chosen = backends_of(forced_choices(forced, able))
    assert (chosen["gram"], chosen["gated_linear_pair"], chosen["soft_gram"]) == (gram, pair, soft)
    assert chosen["conv_gram"] == ("cuda" if forced == "cuda" else "portable")


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({}, "portable"),
        ({"triton": RIGHT}, "triton"),
        ({"triton": RIGHT, "cuda": FASTER}, "cuda"),  # At their slowest they are 2.0 and 1.5 times as fast.
        ({"triton": FASTER, "cuda": RIGHT}, "triton"),
        ({"cuda": replace(RIGHT, faster=(0.9, 30.0)), "triton": RIGHT}, "triton"),
        ({"cuda": replace(RIGHT, faster=(1.0, 9.0))}, "portable"),
        ({"cuda": replace(RIGHT, faster=(1.04, 9.0))}, "portable"),
        ({"cuda": replace(RIGHT, timings=({"portable_s": 0.89, "kernel_s": 1.0},))}, "portable"),
        ({"cuda": replace(RIGHT, timings=({"portable_s": 0.91, "kernel_s": 1.0},))}, "cuda"),
        ({"cuda": replace(RIGHT, faster=())}, "portable"),
        *(({"cuda": replace(FASTER, outcome=outcome)}, "portable") for outcome in OUTCOMES if outcome != "right"),
    ],
)
def test_a_family_goes_to_the_fastest_of_those_that_are_right_and_faster(verdicts, expected):
    assert proved_choices(BOTH, [{"gram": verdicts}])["gram"].backend == expected


def test_only_families_with_kernels_that_can_run_are_chosen():
    known = {family: {"cuda": RIGHT, "triton": RIGHT} for family in FAMILIES}
    assert backends_of(proved_choices(BOTH, [known])) == {
        "gates": "triton",
        "gram": "cuda",
        "gram_product": "portable",
        "soft_gram": "portable",
        "conv_gram": "cuda",
        "gated_linear": "triton",
        "gated_linear_pair": "triton",
    }
    assert set(backends_of(proved_choices((), [known])).values()) == {"portable"}
    assert proved_choices((TRITON,), [known])["gram"].backend == "triton"


def test_a_family_must_be_proved_on_every_kind_of_gpu():
    both, one = {"gram": {"cuda": RIGHT, "triton": FASTER}}, {"gram": {"cuda": RIGHT}}
    assert proved_choices(BOTH, [both, one])["gram"].backend == "cuda"
    assert proved_choices(BOTH, [both, {}])["gram"].backend == "portable"
    assert proved_choices(BOTH, [])["gram"].backend == "portable"


def test_the_reasons_say_what_is_known():
    known = {"gram": {"cuda": replace(RIGHT, outcome="hung", faster=()), "triton": replace(RIGHT, faster=(0.5, 0.75))}}
    chosen = proved_choices(BOTH, [known])
    assert chosen["gram"].why == "cuda: hung; triton: right, 0.5x and 0.75x as fast as the portable ops"
    assert chosen["gates"].why == "no other kernels were tried here"
    assert chosen["soft_gram"].why == "no other kernels can run here"
    assert (
        proved_choices(BOTH, [{"gram": {"cuda": RIGHT}}])["gram"].why == "it proved itself, 1.5 times as fast or more"
    )


# --- a process with GPUs, by make-believe ---


@pytest.fixture
def with_gpus(monkeypatch):
    """Makes torch see GPUs of these kinds, and gives them kernels that can run."""

    def put(*found: Gpu, load: Callable[[], dict] = dict) -> None:
        able = [replace(backend, missing=lambda: None, load=load) for backend in KERNEL_BACKENDS]
        monkeypatch.setattr(choice, "KERNEL_BACKENDS", able)
        monkeypatch.setattr(choice, "gpus", lambda: list(found))
        monkeypatch.setattr(gpus, "gpus", lambda: list(found))
        monkeypatch.setattr(backends, "_forced", None)

    monkeypatch.setattr(choice, "_decided", {})
    return put


def test_without_a_verdict_portable_runs_and_one_line_says_what_to_do(with_gpus, caplog):
    with_gpus(H100, A100)
    for _ in range(3):
        assert choice.backend_of("cuda", "gram") == "portable"
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "conv_gram, gram in cuda on NVIDIA H100; gates, gram, gated_linear, gated_linear_pair in triton on" in line
    assert "in triton on NVIDIA A100. `python -m gatedops selftest` tests them" in line


def test_what_was_not_tried_is_told_though_something_was(with_gpus, caplog):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": RIGHT, "triton": RIGHT}, "conv_gram": {"cuda": RIGHT}})
    assert choice.backend_of("cuda", "gram") == "cuda"
    assert (
        "so they are not used: gates, gated_linear, gated_linear_pair in triton on NVIDIA H100. `python" in caplog.text
    )


def test_threads_decide_once(with_gpus, caplog):
    with_gpus(H100)
    threads = [threading.Thread(target=choice.choices) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


def test_what_goes_wrong_on_the_way_leads_to_portable(with_gpus, monkeypatch, caplog):
    with_gpus(H100)
    monkeypatch.setattr(proved, "TABLE", Path("/nowhere/proved.json"))
    proved.table.cache_clear()
    assert choice.backend_of("cuda", "gram") == "portable"
    assert "cannot find out which kernels proved themselves here (FileNotFoundError: " in caplog.text
    assert set(backends_of(choice.choices()).values()) == {"portable"}
    assert len(caplog.records) == 1


def test_kernels_that_cannot_be_loaded_now_are_not_chosen(with_gpus, caplog):
    def fails():
        raise OSError("libcudart.so.13: cannot open shared object file")

    with_gpus(H100, load=fails)
    verdict_files.keep(H100, KERNEL_BACKENDS, EVERYTHING)
    assert set(backends_of(choice.choices()).values()) == {"portable"}
    assert caplog.text.count("cannot be loaded now (OSError: libcudart.so.13: cannot open shared object file)") == 2


def test_with_a_verdict_the_kernels_run_and_nothing_is_said(with_gpus, caplog):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, EVERYTHING | {"gates": {"triton": Verdict("hung", "pack_gates: it")}})
    assert [choice.backend_of("cuda:1", family) for family in ("gram", "gates")] == ["cuda", "portable"]
    assert [choice.backend_of(device, "gram") for device in ("cpu", "mps", "xpu")] == ["cpu", "portable", "portable"]
    assert not caplog.records


def test_a_forced_backend_asks_for_no_verdict(with_gpus, monkeypatch, caplog):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": RIGHT}})
    monkeypatch.setattr(choice, "gpus", lambda: pytest.fail("CUDA is started"))
    for forced, expected in [("portable", "portable"), ("triton", "triton"), ("cuda", "cuda")]:
        monkeypatch.setattr(backends, "_forced", forced)
        assert choice.backend_of("cuda", "gram") == expected
        assert choice.backend_of("cpu", "gram") == ("portable" if forced == "portable" else "cpu")
    assert not caplog.records


def test_the_report_shows_the_verdict_on_every_family(with_gpus, capsys):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": RIGHT, "triton": Verdict("hung", "npk_gram: it")}})
    report.main()
    lines = capsys.readouterr().out.splitlines()
    lines = lines[lines.index("GPU kernels") + 1 : lines.index("CPU")]
    assert lines[:6] == [
        "  cuda:0            NVIDIA H100, compute capability 9.0, driver 580.65.06",
        "  gates             portable (no other kernels were tried here)",
        "    triton          on cuda:0 not tried",
        "  gram              cuda (it proved itself, 1.5 times as fast or more)",
        "    cuda            on cuda:0 right, 1.5x and 3.0x as fast as the portable ops, 2026-11-28",
        "    triton          on cuda:0 hung",
    ]


# --- the kernels of a choice ---

PORTABLE = dict.fromkeys(FAMILIES, "portable")


def put_kernels(monkeypatch, **load):
    """Makes TRITON's load() return other kernels."""
    monkeypatch.setattr(dispatch, "KERNEL_BACKENDS", (replace(TRITON, load=lambda: load),))


def test_ops_without_a_kernel_stay_portable(monkeypatch):
    put_kernels(monkeypatch, npk_gram=lambda *_: "mine")
    found = dispatch.kernels_of(PORTABLE | {"gram": "triton"}, None)
    assert set(found) == set(OPS)
    assert found["npk_gram"](1) == "mine"
    assert all(found[name] is op for name, op in OPS.items() if name != "npk_gram")


def test_only_the_chosen_backends_are_loaded(monkeypatch):
    monkeypatch.setattr(dispatch, "KERNEL_BACKENDS", (replace(TRITON, load=lambda: pytest.fail("it is loaded")),))
    assert dispatch.kernels_of(PORTABLE, None) == OPS


def test_a_call_that_a_chosen_kernel_refuses_is_portables(monkeypatch):
    def refuses(*_):
        raise ValueError("words: the CUDA kernels need rows on 16-byte boundaries")

    put_kernels(monkeypatch, gate_counts=refuses)
    words = torch.tensor([[3], [1]], dtype=torch.int32)
    chosen, forced = (
        dispatch.kernels_of(PORTABLE | {"gates": "triton"}, forced)["gate_counts"] for forced in (None, "triton")
    )
    assert chosen(words)[:3].tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="16-byte boundaries"):
        forced(words)
    with pytest.raises(ValueError, match=r"words: got shape \(2,\), needs \(n, W\)"):
        chosen(words[:, 0])  # The portable op raises its own error.


def test_a_kernel_that_fails_is_portable_from_then_on(monkeypatch, caplog):
    calls = []

    def fails(words):
        calls.append(words)
        raise RuntimeError("Failed to find C compiler")

    put_kernels(monkeypatch, gate_counts=fails)
    words = torch.tensor([[3], [1]], dtype=torch.int32)
    chosen, forced = (
        dispatch.kernels_of(PORTABLE | {"gates": "triton"}, forced)["gate_counts"] for forced in (None, "triton")
    )
    for _ in range(3):
        assert chosen(words)[:3].tolist() == [2, 1, 0]
    assert len(calls) == len(caplog.records) == 1
    assert "The kernel of gate_counts passed its self-test but failed now (RuntimeError: Failed to find" in caplog.text
    with pytest.raises(RuntimeError, match="Failed to find C compiler"):
        forced(words)


def test_too_little_memory_is_no_fault_of_a_kernel(monkeypatch):
    def fails(words):
        raise torch.OutOfMemoryError("CUDA out of memory")

    put_kernels(monkeypatch, gate_counts=fails)
    with pytest.raises(torch.OutOfMemoryError):
        dispatch.kernels_of(PORTABLE | {"gates": "triton"}, None)["gate_counts"](torch.zeros(1, 1, dtype=torch.int32))


def test_a_forced_backend_that_does_not_load_is_an_error_and_one_beside_it_is_not(monkeypatch, caplog):
    def fails():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(dispatch, "KERNEL_BACKENDS", (replace(TRITON, load=fails), replace(CUDA, load=dict)))
    chosen = PORTABLE | {"gates": "triton", "gram": "cuda"}
    assert dispatch.kernels_of(chosen, "cuda") == OPS
    assert "cannot load its triton kernels (libcudart.so.13: cannot open shared object file)" in caplog.text
    with pytest.raises(OSError, match=r"libcudart.so.13"):
        dispatch.kernels_of(chosen, "triton")
    monkeypatch.setattr(dispatch, "_look_up_kernels", fails)
    with pytest.raises(ValueError, match=r"GATEDOPS_BACKEND: got 'triton', whose kernels cannot be loaded: libcudart"):
        dispatch._load_forced("triton")


# --- import and fork ---

_NO_CUDA = """
import torch
def fail(*_, **__): raise SystemExit("CUDA was asked for")
for name in ("is_available", "device_count", "_lazy_init", "get_device_capability", "get_device_name", "init"):
    setattr(torch.cuda, name, fail)
import gatedops
assert not torch.cuda.is_initialized()
bits = gatedops.GateBits.pack([torch.ones(2, 3)])
print(gatedops.gate_overlap(bits).tolist())
"""


def test_neither_import_nor_a_tensor_on_the_cpu_starts_cuda():
    done = run_python("-c", _NO_CUDA)
    assert done.stdout == "[[[3, 3], [3, 3]]]\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_decides_for_itself(with_gpus):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": RIGHT}})
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(choice.backend_of("cuda", "gram")))
    child.start()
    child.join(60)
    assert (child.exitcode, queue.get()) == (0, "cuda")


# --- the whole way, from an op to a kernel ---


def on_cuda_key(name: str, *args: object) -> object:
    """Runs an op as for tensors on a GPU; here its arguments are on the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.gatedops, name).default.redispatch(keys, *args)


@pytest.fixture
def in_a_new_process(monkeypatch):
    """Makes dispatch forget the kernels that it looked up, as in a new process."""
    monkeypatch.setattr(dispatch, "_gpu_kernels", {})


def test_the_first_tensor_on_a_gpu_looks_its_kernels_up_once(with_gpus, in_a_new_process, monkeypatch):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gates": {"triton": RIGHT}})
    calls = []
    put_kernels(monkeypatch, gate_counts=lambda words: calls.append(torch.is_autocast_enabled("cpu")) or words + 1)
    words = torch.tensor([[3], [1]], dtype=torch.int32)
    with torch.autocast("cpu"):
        assert on_cuda_key("gate_counts", words).tolist() == [[4], [2]]
    monkeypatch.setattr(choice, "gpus", lambda: pytest.fail("it decides again"))
    assert on_cuda_key("gate_counts", words).tolist() == [[4], [2]]
    assert calls == [False, False]  # Autocast is off inside the kernel.
    # This op is portable.
    assert on_cuda_key("unpack_gates", words, 1, 2).tolist() == [[[True, True]], [[True, False]]]


def test_without_a_verdict_the_whole_way_leads_to_portable(with_gpus, in_a_new_process, caplog):
    with_gpus(H100)
    words = torch.tensor([[3], [1]], dtype=torch.int32)
    assert on_cuda_key("gate_counts", words)[:3].tolist() == [2, 1, 0]
    assert len(caplog.records) == 1
