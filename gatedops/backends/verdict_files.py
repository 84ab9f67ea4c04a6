"""Keeps verdicts in the user's cache folder: a file for each kind of GPU, driver, torch, Triton and build of the
kernels."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gatedops._version import __version__
from gatedops.atomic_file import write_text
from gatedops.backends import triton_package
from gatedops.backends.families import FAMILIES
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KernelBackend
from gatedops.backends.verdicts import OUTCOMES, Verdict

try:
    import fcntl
except ImportError:  # Windows has no such module.
    fcntl = None  # type: ignore[assignment]

Verdicts = dict[str, dict[str, Verdict]]  # by family, then by backend

# The format of the files. Another version of gatedops may write another one.
_FORMAT = 1
# These errors mean that there is no file.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# A ratio of speeds and a time in seconds must be below this.
_MOST = 1e9


def folder() -> Path:
    """Returns the folder of the verdicts, which need not exist: in GATEDOPS_CACHE, else in gatedops in the user's cache
    folder (XDG_CACHE_HOME, else ~/.cache). Raises FileNotFoundError if there is no home folder either."""
    named = os.environ.get("GATEDOPS_CACHE")
    if named:
        return Path(named).absolute() / "selftest"
    cache, home = Path(os.environ.get("XDG_CACHE_HOME") or ""), Path(os.path.expanduser("~"))
    if not cache.is_absolute():
        cache = home / ".cache"
    if not cache.is_absolute():
        raise FileNotFoundError(errno.ENOENT, "there is no home folder")
    return cache / "gatedops" / "selftest"


def folder_in_words() -> str:
    """Returns the folder as a text for people."""
    try:
        return str(folder())
    except OSError as error:
        return f"nowhere ({error.strerror})"


def key_of(gpu: Gpu, backends: Sequence[KernelBackend]) -> dict[str, str]:
    """Returns all that a verdict depends on: if any of these values changes, the verdict no longer counts."""
    return {
        "gpu": gpu.name,
        "capability": "{}.{}".format(*gpu.capability),
        "driver": gpu.driver,
        "torch": str(torch.__version__),
        "triton": triton_package.version() or "none",
        "gatedops": __version__,
        **{f"kernels in {backend.name}": backend.build() for backend in backends},
    }


def path_of(key: dict[str, str]) -> Path:
    """Returns the file of the verdicts for a key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", key["gpu"].lower()).strip("-")
    return folder() / f"{name[:60]}-{digest}.json"


def read(gpu: Gpu, backends: Sequence[KernelBackend]) -> Verdicts:
    """Returns the verdicts that are kept for a kind of GPU. If their file is damaged, there are none, and the log says
    so."""
    key = key_of(gpu, backends)
    try:
        path = path_of(key)
    except OSError:
        return {}
    try:
        return _verdicts_in(json.loads(path.read_text("utf-8")), key)
    except OSError as error:
        return {} if error.errno in _ABSENT else _unread(path, error)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        return _unread(path, error)


def _unread(path: Path, error: Exception) -> Verdicts:
    logging.getLogger("gatedops").warning(
        "%s cannot be read (%s) and is ignored: `python -m gatedops selftest --forget` removes it", path, error
    )
    return {}


def _verdicts_in(content: Any, key: dict[str, str]) -> Verdicts:
    """Returns the verdicts in a file's content; raises an error if keep() would not write it for this key."""
    if content["format"] != _FORMAT or content["key"] != key:
        raise ValueError("its content does not match its name")
    return {
        family: {backend: _verdict(made) for backend, made in by_backend.items()}
        for family, by_backend in content["families"].items()
        if family in FAMILIES
    }


def _verdict(made: dict[str, Any]) -> Verdict:
    timings = tuple(made["timings"])
    faster, texts = made["faster"], (made["outcome"], made["why"], made["date"])
    if made["outcome"] not in OUTCOMES:
        raise ValueError(f"the outcome {made['outcome']!r} is not one of {', '.join(OUTCOMES)}")
    if not isinstance(faster, list) or len(faster) not in (0, 2) or not all(map(_is_ratio, faster)):
        raise ValueError(f"{faster!r} are not two ratios of speeds")
    if not all(isinstance(text, str) for text in texts) or not isinstance(made["cases"], int):
        raise ValueError("a verdict has a text that is not a string, or a number of cases that is not an int")
    if not all(_is_ratio(timing[name]) for timing in timings for name in ("portable_s", "kernel_s")):
        raise ValueError("a timing has seconds that are not a positive number")
    return Verdict(**{**made, "faster": tuple(map(float, faster)), "timings": timings})


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _MOST


def keep(gpu: Gpu, backends: Sequence[KernelBackend], found: Verdicts) -> Path:
    """Adds verdicts to those that are kept for a kind of GPU, and returns the file. They replace older ones of the same
    family and backend. The file is replaced as a whole, so nobody reads half of it.

    Raises OSError, and leaves the old file, if the folder cannot be written.
    """
    key = key_of(gpu, backends)
    path = path_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    merged = read(gpu, backends)
    for family, by_backend in found.items():
        merged[family] = merged.get(family, {}) | by_backend
    families = {
        family: {name: asdict(verdict) for name, verdict in by_backend.items()} for family, by_backend in merged.items()
    }
    write_text(path, json.dumps({"format": _FORMAT, "key": key, "families": families}, indent=1) + "\n")
    return path


def forget() -> tuple[list[Path], list[OSError]]:
    """Removes all verdicts, for every kind of GPU. Returns the removed files, and the errors of the others."""
    removed, errors = [], []
    for path in sorted(folder().glob("[!.]*.json")):  # a hidden file is one that another process still writes
        try:
            path.unlink()
            removed.append(path)
        except OSError as error:
            errors.append(error)
    return removed, errors


@contextlib.contextmanager
def alone(tell: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time into the block, because timings on a GPU that works for two processes would be
    useless. A process that waits says so. Nobody waits if the folder cannot be written or has no locks."""
    file = _lock_file()
    if file is None or fcntl is None:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("Another self-test is running: this one begins when it has ended.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        yield


def _lock_file() -> Any:
    try:
        folder().mkdir(parents=True, exist_ok=True)
        return open(folder() / "lock", "a")
    except OSError:
        return None
