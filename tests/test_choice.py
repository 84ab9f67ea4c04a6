"""Which backend a family gets on GPUs, from what is known of it; GPUs, files and backends here are made up."""

from __future__ import annotations

import ast
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gatedops import backends, dispatch
from gatedops.backends import choice, cuda_library, gpus, kernels, proved, verdict_files
from gatedops.backends.choice import Choice, forced_choices, proved_choices
from gatedops.backends.families import FAMILIES, FAMILY_OF
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import CUDA, KERNEL_BACKENDS, TRITON
from gatedops.backends.proved import Proved
from gatedops.backends.verdicts import OUTCOMES, Verdict
from gatedops.commands import report
from gatedops.portable.register import OPS

H100 = Gpu("NVIDIA H100", (9, 0), "580.65.06")
A100 = Gpu("NVIDIA A100", (8, 0), "580.65.06", (1,))
RIGHT = Verdict("right", faster=(1.5, 3.0), date="2026-11-28", cases=12)
FASTER = replace(RIGHT, faster=(2.0, 2.5))
BOTH = (CUDA, TRITON)
EVERYTHING = {family: {b.name: RIGHT for b in BOTH if b.ops_of(family)} for family in FAMILIES}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder for verdicts."""
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "selftest"


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
        ({"triton": RIGHT, "cuda": FASTER}, "cuda"),  # 2.0 against 1.5 where they are slowest
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


# --- what is known ---


def test_what_was_kept_is_read(cache):
    timings = ({"what": "Lambda", "size": "small", "kernel_s": 0.1, "portable_s": 0.2},)
    found = {"gram": {"cuda": replace(RIGHT, timings=timings)}, "gates": {"triton": FASTER}}
    path = verdict_files.keep(H100, BOTH, found)
    assert path.parent == cache
    assert path.name.startswith("nvidia-h100-")
    assert verdict_files.read(H100, BOTH) == found
    verdict_files.keep(H100, BOTH, {"gram": {"triton": RIGHT, "cuda": FASTER}})
    assert verdict_files.read(H100, BOTH) == {"gram": {"triton": RIGHT, "cuda": FASTER}, "gates": {"triton": FASTER}}
    assert [path.name for path in cache.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize("changed", ["gpu", "capability", "driver", "torch", "triton", "gatedops", "build"])
def test_a_verdict_holds_for_what_it_was_made_with(changed, monkeypatch):
    verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    gpu, backends = H100, BOTH
    match changed:
        case "gpu":
            gpu = replace(H100, name="NVIDIA H200")
        case "capability":
            gpu = replace(H100, capability=(9, 1))
        case "driver":
            gpu = replace(H100, driver="581.0")
        case "torch":
            monkeypatch.setattr(torch, "__version__", "2.99.0")
        case "triton":
            monkeypatch.setattr(verdict_files.triton_package, "version", lambda: "9.9")
        case "gatedops":
            monkeypatch.setattr(verdict_files, "__version__", "9.9")
        case "build":
            backends = (replace(CUDA, build=lambda: "another"), TRITON)
    assert verdict_files.read(gpu, backends) == {}


def kept_content(change) -> Path:
    """The file of verdicts with its content changed."""
    path = verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content["key"].update(gpu="another"),
        lambda content: content.pop("families"),
        lambda content: content.update(families=[]),
        lambda content: content["families"].update(gram=[1]),
        lambda content: content["families"]["gram"]["cuda"].update(outcome="splendid"),
        *(
            lambda content, faster=faster: content["families"]["gram"]["cuda"].update(faster=faster)
            for faster in (
                "99",
                [2],
                [2, 3, 4],
                [2, True],
                [2, "3"],
                [0, 2],
                [-1, 2],
                [2, 1e400],
                [2, 10**400],
                {"3": 1},
            )
        ),
        lambda content: content["families"]["gram"]["cuda"].update(faster=[2.0, float("nan")]),
        lambda content: content["families"]["gram"]["cuda"].update(why=None),
        lambda content: content["families"]["gram"]["cuda"].update(cases="many"),
        lambda content: content["families"]["gram"]["cuda"].update(unknown=1),
        lambda content: content["families"]["gram"]["cuda"].pop("faster"),
    ],
)
def test_a_file_that_keep_did_not_write_counts_for_nothing(change, caplog):
    path = kept_content(change)
    assert verdict_files.read(H100, BOTH) == {}
    assert f"{path} cannot be read" in caplog.text
    verdict_files.keep(H100, BOTH, {"gram": {"cuda": FASTER}})  # and is written again
    assert verdict_files.read(H100, BOTH) == {"gram": {"cuda": FASTER}}


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_counts_for_nothing(content, caplog):
    path = verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    path.write_bytes(content)
    assert verdict_files.read(H100, BOTH) == {}
    assert "cannot be read" in caplog.text


def test_families_of_another_version_are_passed_over():
    kept_content(lambda content: content["families"].update(quantum={"cuda": {}}))
    assert verdict_files.read(H100, BOTH) == {"gram": {"cuda": RIGHT}}


def test_forgetting_removes_all_verdicts(cache):
    assert verdict_files.forget() == ([], [])
    kept = [verdict_files.keep(gpu, BOTH, {"gram": {"cuda": RIGHT}}) for gpu in (H100, A100)]
    (cache / "a.json").mkdir()
    removed, [error] = verdict_files.forget()
    assert (removed, error.filename) == (sorted(kept), str(cache / "a.json"))
    assert verdict_files.read(H100, BOTH) == {}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GATEDOPS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/selftest"),
        ({"GATEDOPS_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/gatedops/selftest"),
        ({"XDG_CACHE_HOME": "b", "HOME": "/h"}, "/h/.cache/gatedops/selftest"),
        ({"HOME": "/h"}, "/h/.cache/gatedops/selftest"),
    ],
)
def test_the_folder_is_the_users(environment, expected, monkeypatch):
    for name in ("GATEDOPS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(verdict_files.folder()) == expected


def test_without_a_home_there_is_no_folder(monkeypatch, tmp_path):
    for name in ("GATEDOPS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that the system does not know
    monkeypatch.chdir(tmp_path)
    assert verdict_files.read(H100, BOTH) == {}
    with pytest.raises(FileNotFoundError, match="there is no home folder"):
        verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    assert verdict_files.folder_in_words() == "nowhere (there is no home folder)"
    with verdict_files.alone(pytest.fail):
        assert list(tmp_path.iterdir()) == []


def test_everybody_may_read_what_was_kept(cache):
    before = os.umask(0o022)
    try:
        path = verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_where_no_file_can_be_there_is_none(kind, monkeypatch, tmp_path, caplog):
    place = tmp_path / kind
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(place)
    monkeypatch.setenv("GATEDOPS_CACHE", str(place))
    assert verdict_files.read(H100, BOTH) == {}
    assert not caplog.records


def test_a_folder_that_cannot_be_written_is_an_oserror_and_no_lock(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path / "file"))
    assert verdict_files.read(H100, BOTH) == {}
    with pytest.raises(OSError, match="file"):
        verdict_files.keep(H100, BOTH, {"gram": {"cuda": RIGHT}})
    with verdict_files.alone(pytest.fail):
        assert verdict_files.forget() == ([], [])


# --- the table that ships ---

ROW = Proved("gram", "cuda", "9.0", "abc", "NVIDIA H100", (4.0, 9.0), "2026-12-01")


def test_the_table_that_ships_is_of_known_families_and_backends():
    names = {backend.name: backend for backend in KERNEL_BACKENDS}
    for row in proved.table():
        assert names[row.backend].ops_of(row.family)
        assert min(row.faster) > 1
        assert row.sources not in ("", "none", "unknown")


def test_the_table_holds_for_a_capability_and_a_build():
    able = (replace(CUDA, sources=lambda: "abc"), TRITON)
    found = proved.proved_on(H100, able, [ROW])
    assert found == {"gram": {"cuda": Verdict("right", faster=(4.0, 9.0), date="2026-12-01")}}
    assert proved.proved_on(A100, able, [ROW]) == {}
    assert proved.proved_on(H100, (replace(CUDA, sources=lambda: "abd"), TRITON), [ROW]) == {}
    assert proved.proved_on(H100, (TRITON,), [ROW]) == {}


def test_what_was_found_here_outranks_the_table(monkeypatch):
    able = (replace(CUDA, sources=lambda: "abc"), TRITON)
    monkeypatch.setattr(proved, "table", lambda: (ROW,))
    assert choice.known_of(H100, able, KERNEL_BACKENDS)["gram"]["cuda"].faster == (4.0, 9.0)
    wrong = Verdict("wrong", "npk_gram: 1 of 9 differ")
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": wrong}})
    assert choice.known_of(H100, able, KERNEL_BACKENDS)["gram"] == {"cuda": wrong}
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": replace(RIGHT, faster=())}})  # no memory to time it
    assert choice.known_of(H100, able, KERNEL_BACKENDS)["gram"]["cuda"].faster == (4.0, 9.0)


# --- a process with GPUs, by make-believe ---


@pytest.fixture
def with_gpus(monkeypatch):
    """Puts GPUs of these kinds there, and kernels that can run on them."""

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
    assert "in triton on NVIDIA A100. `python -m gatedops selftest` tries them" in line


def test_what_was_not_tried_is_told_though_something_was(with_gpus, caplog):
    with_gpus(H100)
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": RIGHT, "triton": RIGHT}, "conv_gram": {"cuda": RIGHT}})
    assert choice.backend_of("cuda", "gram") == "cuda"
    assert "no others were: gates, gated_linear, gated_linear_pair in triton on NVIDIA H100. `python" in caplog.text


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
    assert "cannot be told (FileNotFoundError: " in caplog.text
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
    """Other kernels for a backend: TRITON's load() gives these."""
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
        chosen(words[:, 0])  # in the words of the portable op


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
    assert "The kernel of gate_counts proved itself and failed now (RuntimeError: Failed to find C comp" in caplog.text
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
    assert "in triton cannot be loaded (libcudart.so.13: cannot open shared object file)" in caplog.text
    with pytest.raises(OSError, match=r"libcudart.so.13"):
        dispatch.kernels_of(chosen, "triton")
    monkeypatch.setattr(dispatch, "_look_up_kernels", fails)
    with pytest.raises(ValueError, match=r"GATEDOPS_BACKEND: got 'triton', whose kernels cannot be loaded: libcudart"):
        dispatch._load_forced("triton")


# --- the kinds of GPU ---


def test_gpus_of_one_kind_are_one_entry(monkeypatch):
    names = ["NVIDIA H100", "NVIDIA A100", "NVIDIA H100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index != 1 else (8, 0))
    monkeypatch.setattr(gpus, "driver_version", lambda: "580.65.06")
    assert gpus.gpus() == [replace(H100, indices=(0, 2)), A100]
    assert [gpu.device for gpu in gpus.gpus()] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a)\nGCC version: 12",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("GCC version: 12.2.0\n", "CUDA 13.0"),
        (None, "CUDA 13.0"),
    ],
)
def test_the_driver_is_named(content, version, monkeypatch, tmp_path):
    path = tmp_path / "version"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(gpus, "_DRIVER_FILE", path)
    monkeypatch.setattr(gpus, "_served_by_driver", lambda: "CUDA 13.0")
    assert gpus.driver_version() == version


def test_a_gpu_that_torch_cannot_use_says_why(monkeypatch):
    assert gpus.why_unusable("cpu") is None
    why = gpus.why_unusable("meta")
    assert why is not None
    assert why.startswith("meta: torch sees it and cannot use it: ")
    monkeypatch.setattr(gpus, "_TRIAL", "import time; time.sleep(9)")
    monkeypatch.setattr(gpus, "_LIMIT", 0.1)
    assert gpus.why_unusable("cpu") == "cpu: torch sees it, and a small product on it did not end within 0.1 s"


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
    environment = {name: value for name, value in os.environ.items() if name != "GATEDOPS_BACKEND"}
    done = subprocess.run([sys.executable, "-c", _NO_CUDA], capture_output=True, text=True, env=environment)
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
    """An op as tensors on a GPU run it; here its arguments are on the CPU."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    return getattr(torch.ops.gatedops, name).default.redispatch(keys, *args)


@pytest.fixture
def in_a_new_process(monkeypatch):
    """Nothing was looked up yet."""
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
    assert calls == [False, False]  # autocast is off inside
    assert on_cuda_key("unpack_gates", words, 1, 2).tolist() == [[[True, True]], [[True, False]]]  # portable


def test_without_a_verdict_the_whole_way_leads_to_portable(with_gpus, in_a_new_process, caplog):
    with_gpus(H100)
    words = torch.tensor([[3], [1]], dtype=torch.int32)
    assert on_cuda_key("gate_counts", words)[:3].tolist() == [2, 1, 0]
    assert len(caplog.records) == 1
