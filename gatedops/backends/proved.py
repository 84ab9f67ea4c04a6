"""Reads proved.json, the table of the kernels that proved themselves on a GPU of the project. It ships with gatedops.

A row holds for GPUs of one compute capability and for one build of the kernels. The digest of their sources names the
build; for Triton, so does the version that compiled them. scripts/record_proved.py writes rows from the output of
`python -m gatedops selftest --json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import KernelBackend
from gatedops.backends.verdict_files import Verdicts
from gatedops.backends.verdicts import RIGHT, Verdict

TABLE = Path(__file__).with_name("proved.json")


@dataclass(frozen=True)
class Proved:
    """A family of a backend that was right on a GPU of this name and compute capability ("9.0"). `faster` says how many
    times as fast as the portable ops it was, at a small and at a large size."""

    family: str
    backend: str
    capability: str
    sources: str
    gpu: str
    faster: tuple[float, ...]
    date: str


@cache
def table() -> tuple[Proved, ...]:
    """Returns the rows that ship."""
    rows = json.loads(TABLE.read_text())
    return tuple(Proved(**{**row, "faster": tuple(row["faster"])}) for row in rows)


def proved_on(gpu: Gpu, backends: Sequence[KernelBackend], rows: Sequence[Proved] | None = None) -> Verdicts:
    """Returns the verdicts of the table on these backends for a kind of GPU."""
    capability = "{}.{}".format(*gpu.capability)
    sources = {backend.name: backend.sources() for backend in backends}
    found: Verdicts = {}
    for row in table() if rows is None else rows:
        if row.capability == capability and row.sources == sources.get(row.backend):
            verdict = Verdict(RIGHT, faster=row.faster, date=row.date)
            found.setdefault(row.family, {})[row.backend] = verdict
    return found
