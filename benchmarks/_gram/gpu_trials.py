"""Contestants on a GPU, each tried on its own: one that is wrong or raises is named and left out, the others go on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from _gram.entry import Cell

ALL = "all"  # of a failure: what all contestants share failed, or the one to blame is not known
PRINTED = 300  # characters of a reason; the JSON has it whole


@dataclass(frozen=True)
class Failure:
    """A contestant without times in one cell; `reason` is the error, `cell` the name of the problem."""

    what: str
    kernel: str
    cell: str
    reason: str

    def row(self, length: int) -> tuple[str, ...]:
        """A row of `length` columns, of which the first are the problem, what and by."""
        return self.cell, self.what, self.kernel, "failed", *["-"] * (length - 4)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.what}, {self.kernel}, {self.cell}: {textwrap.shorten(self.reason, PRINTED)}"


class GpuLostError(RuntimeError):
    """The CUDA context is broken: whatever the process does on the GPU from now on fails."""


class ContestantError(RuntimeError):
    """A call raised while all were timed in turns; `key` says whose."""

    def __init__(self, key: tuple[str, str], error: Exception):
        super().__init__(f"{', '.join(key)} raised {type(error).__name__}: {error}")
        self.key, self.error = key, error


def attributed(key: tuple[str, str], call: Callable[[], object]) -> Callable[[], object]:
    """The call, of which an error says whose it is."""

    def named() -> object:
        try:
            return call()
        except Exception as error:
            raise ContestantError(key, error) from error

    return named


def gpu_works() -> bool:
    """Whether the CUDA context outlived an error."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


class Trials:
    """All failures of a run, in order."""

    def __init__(self) -> None:
        self.failures: list[Failure] = []

    @contextmanager
    def trial(self, what: str, kernel: str, cell: Cell | str) -> Iterator[None]:
        """Notes what raises inside the block, which ends there; GpuLostError where nothing can go on after that."""
        try:
            yield
            torch.cuda.synchronize()  # an error of a kernel that was launched here is told here
        except GpuLostError:
            raise
        except Exception as error:
            self.note(what, kernel, cell, error)
            if not gpu_works():
                raise GpuLostError(str(self.failures[-1])) from error

    def note(self, what: str, kernel: str, cell: Cell | str, error: Exception) -> None:
        failure = Failure(what, kernel, str(cell), f"{type(error).__name__}: {error}")
        self.failures.append(failure)
        print(f"failed: {failure}", flush=True)
