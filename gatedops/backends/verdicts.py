"""Verdicts of the self-test on this machine: one for each family of each backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# The outcome for a family of kernels is "right", a way to fail, or "unknown", which is never kept.
RIGHT, UNKNOWN = "right", "unknown"
OUTCOMES = {
    RIGHT: "every result is what it should be",
    "wrong": "a result differs from what the portable ops give",
    "unsteady": "two runs gave different results",
    "raised": "a kernel raised an error",
    UNKNOWN: "it could not be tested",
    "hung": "the time limit was passed",
    "crashed": "the process ended by itself",
}


# Kernels must be at least this many times as fast in the mean; a smaller gain is noise.
FASTER = 1.05
# Each timed call must be at least this many times as fast: no call may lose more, whatever the others gain.
SLOWEST = 0.9


def times(ratio: float) -> str:
    """Returns a ratio of speeds as a text: "2.1x"."""
    return f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2g}x"


@dataclass(frozen=True)
class Verdict:
    """The verdict on the kernels of one backend for one family on one kind of GPU.

    Attributes:
        outcome: a key of OUTCOMES.
        why: for an outcome other than RIGHT, the case and what went wrong, in one sentence; else why nothing was timed,
            or empty.
        faster: how many times as fast as the portable ops the kernels are, at a small and at a large size; empty if
            nothing was timed.
        date: the day of the test, "2026-11-28".
        cases: how many cases were right.
        timings: what was timed, for reports; each is a dict with "what", "size", "kernel_s" and "portable_s".
    """

    outcome: str
    why: str = ""
    faster: tuple[float, ...] = ()
    date: str = ""
    cases: int = 0
    timings: tuple[dict[str, Any], ...] = field(default=())

    @property
    def is_right(self) -> bool:
        return self.outcome == RIGHT

    @property
    def is_faster(self) -> bool:
        """Whether the kernels are faster at both sizes, and no timed call loses much."""
        ratios = [timing["portable_s"] / timing["kernel_s"] for timing in self.timings]
        return len(self.faster) > 0 and min(self.faster) > FASTER and min(ratios, default=1.0) >= SLOWEST

    @property
    def is_chosen(self) -> bool:
        """Whether the kernels are chosen on this kind of GPU, because they are right and faster."""
        return self.is_right and self.is_faster
