"""Files that appear whole or not at all: every writer of the package, a crash half-way, two processes at once."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from strategies import dense, random_bits
from torch import nn

from gatedops import GateBits, atomic_file
from gatedops.atomic_file import part_of, write_text, written_whole
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


ROOT = Path(__file__).resolve().parents[2]
# What writes or moves a file, apart from a file handed to torch.save, savefig and their like.
WRITES = re.compile(r"\.write_(text|bytes)\(|\bjson\.dump\(|\bos\.(replace|rename|fsync)\(|\.rename\(")
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

    def synced(file: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "on the disk")
        sync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda part, path: (happened.append("in its place"), move(part, path)))
    assert save(tmp_path, 0).exists()
    assert happened == ["on the disk", "in its place", "folder"] * (len(happened) // 3) != []


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
        "import os, sys, torch\n"
        "from gatedops import GateBits\n"
        "child = os.fork()\n"
        "n = 30 if child == 0 else 70\n"
        "for _ in range(60):\n"
        "    GateBits.pack([torch.ones(n, 100 * n)]).save(sys.argv[1])\n"
        "os._exit(0 if child == 0 else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script, str(path)])
    seen = set()
    while running.poll() is None:
        if path.exists():
            seen |= {path.read_bytes()}
        else:
            time.sleep(0.01)
    assert running.returncode == 0
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
    assert all(name.startswith(f".a.{os.getpid()}-") and name.endswith(".part.txt") for name in names)


def test_text_is_utf_8_in_every_locale(tmp_path):
    code = "import runpy, sys; from pathlib import Path; "
    code += "runpy.run_path(sys.argv[1])['write_text'](Path(sys.argv[2]), chr(0x3bb))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, atomic_file.__file__, tmp_path / "text"]
    subprocess.run(command, env=environment, check=True, timeout=100)
    assert (tmp_path / "text").read_bytes() == b"\xce\xbb"


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "a.txt"):
        pass


def test_a_folder_that_cannot_be_synced_holds_the_file_all_the_same(tmp_path, monkeypatch):
    def sync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError("Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    assert files_in(tmp_path) == {"a.txt"}


def test_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert files_in(tmp_path) == {"a.txt"}


def test_the_name_beside_a_file_keeps_its_suffix_and_is_hidden(tmp_path):
    with written_whole(tmp_path / "a.b.png") as part:
        assert (part.parent, part.suffix, part.name[0]) == (tmp_path, ".png", ".")
        part.touch()


def test_forgetting_verdicts_leaves_the_file_that_another_process_is_writing(tmp_path):
    kept = save_verdicts(tmp_path, 0)
    with written_whole(kept) as part:
        part.write_text("half")
        assert verdict_files.forget() == ([kept], [])
        assert part.exists()


def test_nothing_else_writes_files():
    """All of the package, the examples, the benchmarks and the scripts write by gatedops/atomic_file.py."""
    files = [path for name in ("gatedops", "examples", "benchmarks", "scripts") for path in (ROOT / name).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if WRITES.search(path.read_text(encoding="utf-8"))}
    # cost.py and outcome.py write to /proc, where a file is a command.
    assert found == {
        "gatedops/atomic_file.py",
        "examples/_kernel_regression/cost.py",
        "examples/zoo/outcome.py",
    }
