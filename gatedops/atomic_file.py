"""Writes files that appear whole or not at all, even if the process ends half-way or another process writes beside it.

This module imports the standard library alone: scripts/gpu_build.py runs it without the package.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def file_at(given: Any, name: str) -> Path:
    """Returns the path of a file that can be written; errors name it `name`."""
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{name}: got {type(given).__name__}, needs the path of a file")
    path = Path(given)
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder, needs a file" if path.is_dir() else "lies in no existing folder; make it first"
        raise ValueError(f"{name}: {path} {fault}")
    return path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to. At the end of the block the file of that name replaces `path`; after an
    error it is removed, and `path` stays as it was."""
    part = part_of(path)
    try:
        yield part
        put_in_place(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def part_of(path: Path) -> Path:
    """Returns a hidden name beside `path` that no other process, and no other call, writes to. It keeps the suffix of
    `path`, by which some writers choose the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")


def put_in_place(part: Path, path: Path) -> None:
    """Moves the written file `part` to `path`. The bytes are on the disk before the move, so that after a power cut
    `path` is the old file or the new one, and never an empty one."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the move itself last through a power cut. An error is not raised: the file is in its place by then, some
    file systems cannot sync a folder, and a folder that can be written need not be readable."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
