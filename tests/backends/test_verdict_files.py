"""Verdicts count only for what they were made with, and other files in their folder do not; tests the shipped table."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up_gpus import A100, BOTH, FASTER, H100, RIGHT, use_cache

from gatedops.backends import choice, proved, verdict_files
from gatedops.backends.kernels import CUDA, KERNEL_BACKENDS, TRITON
from gatedops.backends.proved import Proved
from gatedops.backends.verdicts import Verdict


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Makes an empty folder for verdicts."""
    return use_cache(tmp_path / "cache", monkeypatch)


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
    assert [path.name for path in cache.iterdir()] == [path.name]  # No temporary file is left.


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
    """Changes the content of the file of verdicts."""
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
    verdict_files.keep(H100, BOTH, {"gram": {"cuda": FASTER}})  # The file is written again.
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
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # It is so for a user that the system does not know.
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
    # There was no memory to time it.
    verdict_files.keep(H100, KERNEL_BACKENDS, {"gram": {"cuda": replace(RIGHT, faster=())}})
    assert choice.known_of(H100, able, KERNEL_BACKENDS)["gram"]["cuda"].faster == (4.0, 9.0)
