"""One model for all timings, on a CPU and on a GPU: contestants that solve one problem, checked, timed in turns.

A contestant that raises or is wrong gets no time: it is named with its error, and the others go on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from _common.timing import Timing, interleaved_gpu_medians, interleaved_medians, readable_seconds

OURS = "gatedops"
PRINTED = 300  # characters of a reason on the terminal; the JSON has it whole

Call = Callable[[], Any]
Key = tuple[str, str]  # what is computed, by whom


@dataclass(frozen=True)
class Limit:
    """The least seconds that the machine allows: those of the slowest of the units that work side by side."""

    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def by(self) -> str:
        """The name of the slowest unit."""
        return max(self.parts, key=lambda name: self.parts[name])

    def lowered(self, other: Limit | None) -> Limit:
        """Each part as it is here or there, where it is less: no measurement of a limit is too fast."""
        known = {} if other is None else other.parts
        return Limit({name: min(seconds, known.get(name, seconds)) for name, seconds in self.parts.items()})


MeasuredLimit = Callable[[], Limit]


@dataclass(frozen=True)
class Entry:
    """The times of one contestant.

    problem, what, by  the sizes ("n=4096, 4 x 1024"), what is computed ("Lambda") and by whom ("torch float32")
    limit              None if no limit is known
    ratio              this median over that of the contestant whom all are compared with, each for a unit of work if
                       both count it; None if that one failed
    work, unit         what one run gets through, such as bit-pairs; None if nothing is counted
    facts              further figures of this contestant for the JSON and, if a table asks for them, for its columns
    """

    problem: str
    what: str
    by: str
    median_s: float
    best_s: float
    runs: int
    limit: Limit | None = None
    ratio: float | None = None
    work: float | None = None
    unit: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """The limit over the median: 0 to 1; None if no limit is known."""
        return None if self.limit is None else self.limit.seconds / self.median_s

    @property
    def rate(self) -> float | None:
        """Units of work a second."""
        return None if self.work is None else self.work / self.median_s

    def to_json(self) -> dict[str, object]:
        limit = self.limit
        known = {} if limit is None else {"limit_s": dict(limit.parts), "limited_by": limit.by}
        rate = {} if self.rate is None else {f"{self.unit}_per_second": self.rate}
        times = {"median_s": self.median_s, "best_s": self.best_s, "runs": self.runs}
        share = {} if limit is None else {"share_of_limit": self.share}
        names = {"problem": self.problem, "what": self.what, "by": self.by}
        return names | times | rate | known | share | {"ratio": self.ratio} | dict(self.facts)


@dataclass(frozen=True)
class Failure:
    """A contestant without times; `reason` is its error."""

    problem: str
    what: str
    by: str
    reason: str

    def to_json(self) -> dict[str, object]:
        return dict(vars(self))

    def __str__(self) -> str:
        return f"{self.what}, {self.by}, {self.problem}: {textwrap.shorten(self.reason, PRINTED)}"


class GpuLostError(RuntimeError):
    """The CUDA context is broken: everything that this process does on the GPU from now on fails."""


class ContestantError(RuntimeError):
    """A call raised while all were timed in turns; `key` says which."""

    def __init__(self, key: Key, error: Exception):
        super().__init__(f"{', '.join(key)} raised {type(error).__name__}: {error}")
        self.key, self.error = key, error


class Failures:
    """All failures of a run, in order."""

    def __init__(self) -> None:
        self.all: list[Failure] = []

    def note(self, problem: str, what: str, by: str, error: Exception) -> None:
        """Keeps and prints an error; raises GpuLostError if nothing can go on after it."""
        self.all.append(Failure(problem, what, by, f"{type(error).__name__}: {error}"))
        print(f"failed: {self.all[-1]}", flush=True)
        if not gpu_works():
            raise GpuLostError(str(self.all[-1])) from error

    @contextmanager
    def caught(self, problem: str, what: str, by: str) -> Iterator[None]:
        """Notes an error of the block, and goes on behind it."""
        try:
            yield
            synchronize()  # raises the error of a kernel that the block launched
        except GpuLostError:
            raise
        except Exception as error:
            self.note(problem, what, by, error)

    def to_json(self) -> list[dict[str, object]]:
        return [failure.to_json() for failure in self.all]


def synchronize() -> None:
    """Waits for the GPU, if this process uses one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def gpu_works() -> bool:
    """Says whether the CUDA context, if there is one, outlived an error."""
    try:
        synchronize()
    except RuntimeError:
        return False
    return True


@dataclass
class Contestant:
    """One call; known: what its Entry says of it before it is timed."""

    call: Call
    limit: Limit | MeasuredLimit | None
    known: Mapping[str, Any]

    def measured_limit(self) -> Limit | None:
        """The limit as it is now, on a machine whose clock wanders."""
        return self.limit() if callable(self.limit) else self.limit


class Contest:
    """Contestants on one problem. `enter` them, then `run`."""

    def __init__(self, problem: str, failures: Failures, *, device: str = "cpu"):
        self.problem, self.failures, self.device = problem, failures, device
        self.contestants: dict[Key, Contestant] = {}

    def enter(
        self,
        what: str,
        by: str,
        make: Callable[[], Call],
        *,
        check: Callable[[Call], Mapping[str, object] | None] | None = None,
        work: float | None = None,
        unit: str = "",
        limit: Limit | MeasuredLimit | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> bool:
        """Makes the call that is timed and checks it; without `check` it is called once. Returns whether it takes part:
        a contestant that raises is a failure and does not.

        check  raises if the result is wrong, and may return further facts
        limit  a function is called before and after the turns, and the lower limit counts
        """
        with self.failures.caught(self.problem, what, by):
            call = make()
            found = None
            if check is None:
                call()
            else:
                found = check(call)
            synchronize()
            known = {"problem": self.problem, "what": what, "by": by, "work": work, "unit": unit}
            self.contestants[what, by] = Contestant(call, limit, known | {"facts": {**(facts or {}), **(found or {})}})
        return (what, by) in self.contestants

    def run(
        self,
        repeats: int = 21,
        *,
        least: int = 5,
        seconds: float = 2.5,
        base: Key | Mapping[str, Key] | None = None,
        limits: Sequence[str] = (),
    ) -> list[Entry]:
        """Times all contestants in turns.

        base    whom all are compared with, or those of some `what`; by default, for each `what`, the first that entered
        limits  contestants (`by`) that do only what cannot be left out: the fastest of them is the others' limit
        """
        before = {key: one.measured_limit() for key, one in self.contestants.items()}
        times: dict[Key, Timing] = {}
        while self.contestants and not times:
            named = {", ".join(key): _attributed(key, one.call) for key, one in self.contestants.items()}
            try:
                times = dict(zip(self.contestants, self._timed(named, repeats, least, seconds).values(), strict=True))
            except ContestantError as error:
                self.failures.note(self.problem, *error.key, error.error)
                del self.contestants[error.key]
        after = {key: self.contestants[key].measured_limit() for key in times}
        known = {key: None if limit is None else limit.lowered(before[key]) for key, limit in after.items()}
        bases = dict.fromkeys((what for what, _ in times), base) if isinstance(base, tuple) else base or {}
        return [self._entry(key, times, known[key], bases.get(key[0]), limits) for key in times]

    def _timed(self, named: Mapping[str, Call], repeats: int, least: int, seconds: float) -> dict[str, Timing]:
        if self.device == "cuda":
            return interleaved_gpu_medians(named, repeats, label=self.problem)
        return interleaved_medians(named, repeats, least=least, seconds=seconds, label=self.problem)

    def _entry(
        self, key: Key, times: Mapping[Key, Timing], limit: Limit | None, base: Key | None, limits: Sequence[str]
    ) -> Entry:
        what, by = key
        one, taken = self.contestants[key], times[key]
        compared = base or next(other for other in self.contestants if other[0] == what)
        ratio = None
        if compared in times:
            works = one.known["work"], self.contestants[compared].known["work"]
            work, other_work = works if all(works) else (1, 1)
            ratio = taken.median / work / (times[compared].median / other_work)
        # The best run counts: a median of the limit can be above a median of what it bounds, by noise.
        floors = {name: times[what, name].best for name in limits if (what, name) in times}
        if floors and by not in limits:
            name = min(floors, key=lambda name: floors[name])
            limit = Limit({name: floors[name]})
        found: dict[str, Any] = {"median_s": taken.median, "best_s": taken.best, "runs": len(taken.samples)}
        return Entry(**one.known, **found, limit=limit, ratio=ratio)


def _attributed(key: Key, call: Call) -> Call:
    """The call, whose errors say whose they are."""

    def named() -> object:
        try:
            return call()
        except Exception as error:
            raise ContestantError(key, error) from error

    return named


def always(call: Call) -> Callable[[], Call]:
    """Returns what makes this call for a contest."""
    return lambda: call


def table(entries: Sequence[Entry], facts: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """A header and rows: problem, what, by, the facts of these names, times, rate, limit, ratio. A column that says
    nothing, or for the first two the same everywhere, is left out."""
    unit = next((entry.unit for entry in entries if entry.unit), "")
    columns: dict[str, list[str]] = {
        "problem": [entry.problem for entry in entries],
        "what": [entry.what for entry in entries],
        "by": [entry.by for entry in entries],
        **{name.replace("_", " "): [_cell(entry.facts.get(name)) for entry in entries] for name in facts},
        "median": [readable_seconds(entry.median_s) for entry in entries],
        "runs": [str(entry.runs) for entry in entries],
        f"{unit}/s": ["-" if entry.rate is None else f"{entry.rate:.3g}" for entry in entries],
        "limit": ["-" if e.limit is None else f"{readable_seconds(e.limit.seconds)} ({e.limit.by})" for e in entries],
        "of limit": ["-" if entry.share is None else f"{entry.share:.0%}" for entry in entries],
        "ratio": ["-" if entry.ratio is None else f"{entry.ratio:.2f}x" for entry in entries],
    }
    same = [name for name in ("problem", "what") if len(set(columns[name])) == 1]
    empty = [name for name, cells in columns.items() if set(cells) <= {"-"}]
    shown = {name: cells for name, cells in columns.items() if name not in (*same, *empty)}
    return list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
