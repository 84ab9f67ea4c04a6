"""Files that appear whole or not at all, whatever ends the process that writes them, or writes beside it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def file_at(given: Any, name: str) -> Path:
    """The path of a file that can be written; errors name it `name`."""
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"{name}: got {type(given).__name__}, needs the path of a file")
    path = Path(given)
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder, needs a file" if path.is_dir() else "lies in no existing folder; make it first"
        raise ValueError(f"{name}: {path} {fault}")
    return path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to inside the block. At its end what was written takes the place of `path`; after
    an error it is removed, and what was at `path` stays."""
    part = part_of(path)
    try:
        yield part
        put_in_place(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def part_of(path: Path) -> Path:
    """A name beside `path` that no other process, and no other call, writes to."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def put_in_place(part: Path, path: Path) -> None:
    """Moves a file that is written to `path`, once its bytes are on the disk: after a power cut the one or the other is
    there, and never an empty one."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
