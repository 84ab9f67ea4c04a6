"""Writes what kernels proved on a GPU of the project into the table that ships, gatedops/backends/proved.json.

    python -m gatedops selftest --json > FILE   # on the machine with the GPU
    python scripts/record_proved.py FILE...     # here, with the sources that ran there

A row is written for each family of a backend that was right and faster there; older rows of the same family, backend
and compute capability go. Kernels from other sources than those here are refused, for no build here would match a row.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import setup_cuda
from gatedops.backends import proved
from gatedops.backends.kernels import TRITON
from gatedops.backends.proved import Proved
from gatedops.backends.verdicts import Verdict


def sources_here() -> dict[str, str]:
    """The sources of each backend, whatever is built or installed here; of Triton those of its kernels alone."""
    return {"cuda": setup_cuda.digest_of_sources(), "triton": TRITON.build()}


def rows_of(found: dict[str, Any]) -> list[Proved]:
    """A row for each family of a backend that was right and faster. SystemExit where its kernels are not those here."""
    rows = []
    for gpu in found["gpus"]:
        for family, by_backend in gpu["families"].items():
            for backend, made in by_backend.items():
                verdict = Verdict(**made)
                if verdict.is_chosen:
                    sources = found["backends"][backend]["sources"]
                    _require_sources(backend, sources)
                    faster = tuple(round(ratio, 2) for ratio in verdict.faster)
                    rows.append(Proved(family, backend, gpu["capability"], sources, gpu["name"], faster, verdict.date))
    return rows


def _require_sources(backend: str, sources: str) -> None:
    here = sources_here()[backend]
    if sources.split(",")[0] != here:
        raise SystemExit(f"record_proved.py: the kernels in {backend} ran from the sources {sources}, here are {here}")


def merged(old: list[Proved], new: list[Proved]) -> list[Proved]:
    """The old rows and the new ones, which replace those of the same family, backend and compute capability."""
    rows = {(row.family, row.backend, row.capability): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def main(files: list[str]) -> int:
    if not files:
        print("record_proved.py: needs what `python -m gatedops selftest --json` printed, one file or more")
        return 2
    new = [row for file in files for row in rows_of(json.loads(Path(file).read_text()))]
    rows = merged(list(proved.table()), new)
    proved.TABLE.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    for row in new:
        print(f"{row.family} in {row.backend} on {row.gpu}: {' and '.join(map(str, row.faster))} times as fast")
    print(f"{len(rows)} rows in {proved.TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
