"""Verdicts in the user's cache folder: a file for each kind of GPU, driver, torch, Triton and build of the kernels."""

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
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Verdicts = dict[str, dict[str, Verdict]]  # by family, then by backend

_FORMAT = 1  # of the files; what has another is another version's
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # a place that holds no file, and cannot
_MOST = 1e9  # times as fast


def folder() -> Path:
    """The folder of the verdicts: in GATEDOPS_CACHE, else in gatedops in the user's cache folder (XDG_CACHE_HOME, else
    ~/.cache). It need not be there. Raises FileNotFoundError where nothing says where it is."""
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
    """The folder, for people."""
    try:
        return str(folder())
    except OSError as error:
        return f"nowhere ({error.strerror})"


def key_of(gpu: Gpu, backends: Sequence[KernelBackend]) -> dict[str, str]:
    """All that a verdict holds for: another value of any of these, and it says nothing."""
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
    """The file of the verdicts for a key."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    name = re.sub(r"[^a-z0-9]+", "-", key["gpu"].lower()).strip("-")
    return folder() / f"{name[:60]}-{digest}.json"


def read(gpu: Gpu, backends: Sequence[KernelBackend]) -> Verdicts:
    """The verdicts kept for a kind of GPU as it is now; none, and a line in the log, where their file is damaged."""
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
        "%s cannot be read (%s) and counts for nothing: `python -m gatedops selftest --forget` removes it", path, error
    )
    return {}


def _verdicts_in(content: Any, key: dict[str, str]) -> Verdicts:
    """The verdicts in a file's content; an error where it is not what keep() writes for this key."""
    if content["format"] != _FORMAT or content["key"] != key:
        raise ValueError("it is about something else than its name says")
    return {
        family: {backend: _verdict(made) for backend, made in by_backend.items()}
        for family, by_backend in content["families"].items()
        if family in FAMILIES
    }


def _verdict(made: dict[str, Any]) -> Verdict:
    timings = tuple(made["timings"])
    faster, texts = made["faster"], (made["outcome"], made["why"], made["date"])
    if made["outcome"] not in OUTCOMES:
        raise ValueError(f"the outcome {made['outcome']!r} is none of {', '.join(OUTCOMES)}")
    if not isinstance(faster, list) or len(faster) not in (0, 2) or not all(map(_is_ratio, faster)):
        raise ValueError(f"{faster!r} are not two ratios of speeds")
    if not all(isinstance(text, str) for text in texts) or not isinstance(made["cases"], int):
        raise ValueError("a verdict has words or a number of cases that are none")
    if not all(_is_ratio(timing[name]) for timing in timings for name in ("portable_s", "kernel_s")):
        raise ValueError("a timing has seconds that are none")
    return Verdict(**{**made, "faster": tuple(map(float, faster)), "timings": timings})


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _MOST


def keep(gpu: Gpu, backends: Sequence[KernelBackend], found: Verdicts) -> Path:
    """Adds verdicts to those that are kept for a kind of GPU, in place of older ones of the same family and backend;
    the file, which nobody reads half of.

    Raises OSError, and leaves what was, where the folder cannot be written.
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
    """Removes all verdicts, of every kind of GPU: the files that were removed, and why others could not be."""
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
    """While one process is inside, another waits before it, and tells so: timings on a GPU that works for two would be
    of no use. Nobody waits where the folder cannot be written, or has no locks."""
    file = _lock_file()
    if file is None or fcntl is None:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("Another self-test runs: this one begins when that has ended.")
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
