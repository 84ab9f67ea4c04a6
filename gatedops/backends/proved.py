"""The kernels that proved themselves on a GPU of the project: a table that ships, proved.json.

A row holds for GPUs of one compute capability and for one build of the kernels, named by the digest of their sources
(for Triton also by the version that compiled them). scripts/record_proved.py writes rows from what
`python -m gatedops selftest --json` printed.
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
    """A family of a backend that was right, and so many times as fast as the portable ops at a small and at a large
    size, on a GPU of this name and compute capability ("9.0")."""

    family: str
    backend: str
    capability: str
    sources: str
    gpu: str
    faster: tuple[float, ...]
    date: str


@cache
def table() -> tuple[Proved, ...]:
    """The rows that ship."""
    rows = json.loads(TABLE.read_text())
    return tuple(Proved(**{**row, "faster": tuple(row["faster"])}) for row in rows)


def proved_on(gpu: Gpu, backends: Sequence[KernelBackend], rows: Sequence[Proved] | None = None) -> Verdicts:
    """What the table says of these backends on a kind of GPU."""
    capability = "{}.{}".format(*gpu.capability)
    sources = {backend.name: backend.sources() for backend in backends}
    found: Verdicts = {}
    for row in table() if rows is None else rows:
        if row.capability == capability and row.sources == sources.get(row.backend):
            verdict = Verdict(RIGHT, faster=row.faster, date=row.date)
            found.setdefault(row.family, {})[row.backend] = verdict
    return found
