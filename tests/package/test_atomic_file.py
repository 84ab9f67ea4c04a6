"""Files that appear whole or not at all: every writer of the package, a crash half-way, two processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from strategies import dense, random_bits
from torch import nn

from gatedops import GateBits
from gatedops.atomic_file import part_of, written_whole
from gatedops.backends import verdict_files
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KERNEL_BACKENDS
from gatedops.backends.verdicts import RIGHT, Verdict
from gatedops.stats import GateRecorder
from gatedops.trace.rows import RowsInFile


def save_gates(folder: Path, seed: int) -> Path:
    random_bits(5, dense(40), seed).save(folder / "gates.safetensors")
    return folder / "gates.safetensors"


def save_rows(folder: Path, seed: int) -> Path:
    with RowsInFile(folder / "rows.safetensors") as rows:
        rows.add(random_bits(3, dense(40), seed))
        rows.add(random_bits(2, dense(40), seed + 1))
        rows.finish()
    return folder / "rows.safetensors"


def save_history(folder: Path, seed: int) -> Path:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    recorder = GateRecorder(net, torch.rand(5, 3))
    recorder.record(seed)
    recorder.save(folder)
    return folder / "history.json"


def save_verdicts(folder: Path, seed: int) -> Path:
    verdict = Verdict(RIGHT, str(seed))
    return verdict_files.keep(Gpu("NVIDIA H100", (9, 0), "580"), KERNEL_BACKENDS, {"gates": {"triton": verdict}})


WRITERS = [save_gates, save_rows, save_history, save_verdicts]
every_writer = pytest.mark.parametrize("save", WRITERS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path))


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


@every_writer
def test_bytes_are_on_the_disk_before_the_file_is_in_its_place(save: Callable, tmp_path, monkeypatch):
    happened = []
    sync, move = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (happened.append("on the disk"), sync(file)))
    monkeypatch.setattr(Path, "replace", lambda part, path: (happened.append("in its place"), move(part, path)))
    assert save(tmp_path, 0).exists()
    assert happened == ["on the disk", "in its place"] * (len(happened) // 2) != []


@every_writer
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
def test_an_error_half_way_leaves_the_old_file_and_nothing_else(save: Callable, error, tmp_path, monkeypatch):
    path = save(tmp_path, 0)
    before, files = path.read_bytes(), files_in(tmp_path)

    def fails(file: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(error)):
        save(tmp_path, 1)
    assert path.read_bytes() == before
    assert files_in(tmp_path) == files


def test_a_process_that_dies_half_way_leaves_the_old_file(tmp_path):
    path = tmp_path / "gates.safetensors"
    random_bits(5, dense(40)).save(path)
    before = path.read_bytes()
    script = (
        "import os, sys, torch\n"
        "from gatedops import GateBits\n"
        "os.fsync = lambda file: os._exit(7)\n"
        "GateBits.pack([torch.rand(9, 3)]).save(sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], timeout=120).returncode == 7
    assert path.read_bytes() == before


def test_two_processes_that_write_at_once_write_whole_files(tmp_path):
    path = tmp_path / "gates.safetensors"
    script = (
        "import sys, torch\n"
        "from gatedops import GateBits\n"
        "n = int(sys.argv[2])\n"
        "for _ in range(60):\n"
        "    GateBits.pack([torch.ones(n, 100 * n)]).save(sys.argv[1])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), str(n)]) for n in (30, 70)]
    seen = set()
    while any(process.poll() is None for process in running):
        seen |= {path.read_bytes()} if path.exists() else set()
    assert [process.returncode for process in running] == [0, 0]
    assert files_in(tmp_path) == {"gates.safetensors"}
    assert seen
    for content in seen:
        path.write_bytes(content)
        bits = GateBits.load(path)
        assert bits.widths == (100 * bits.n,)
        assert bits.unpack()[0].all()


def test_names_beside_a_file_are_of_this_process_and_this_call(tmp_path):
    names = {part_of(tmp_path / "a.txt").name for _ in range(9)}
    assert len(names) == 9
    assert all(name.startswith(f"a.txt.{os.getpid()}-") and name.endswith(".part") for name in names)


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass
