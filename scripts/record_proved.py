"""Writes what kernels proved on a GPU of the project into the table that ships, gatedops/backends/proved.json.

    python -m gatedops selftest --json > FILE   # on the machine with the GPU
    python scripts/record_proved.py FILE...     # here, with the sources that ran there

A family of a backend gets a row if it was right and faster in all files. If it was tried again and was not, it loses
its row. Kernels from other sources than those here are refused, because no build here would match their row.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import setup_cuda
from gatedops.atomic_file import write_text
from gatedops.backends import proved
from gatedops.backends.kernels import TRITON
from gatedops.backends.proved import Proved
from gatedops.backends.verdicts import Verdict


def sources_here() -> dict[str, str]:
    """Returns a digest of the sources of each backend, whatever is built or installed here; for Triton, of its kernels
    alone."""
    return {"cuda": setup_cuda.digest_of_sources(), "triton": TRITON.build()}


Key = tuple[str, str, str]  # The family, backend and compute capability of a row.


def rows_of(found: dict[str, Any]) -> dict[Key, list[Proved | None]]:
    """Returns what a self-test says about each family of a backend: a row if it was right and faster, else None. Raises
    SystemExit if the kernels of a row are not those here."""
    said: dict[Key, list[Proved | None]] = {}
    for gpu in found["gpus"]:
        for family, by_backend in gpu["families"].items():
            for backend, made in by_backend.items():
                row = _row(family, backend, gpu, found["backends"][backend]["sources"], Verdict(**made))
                said.setdefault((family, backend, gpu["capability"]), []).append(row)
    return said


def _row(family: str, backend: str, gpu: dict[str, Any], sources: str, verdict: Verdict) -> Proved | None:
    faster = tuple(math.floor(ratio * 100) / 100 for ratio in verdict.faster)  # Rounding down never exaggerates.
    if not replace(verdict, faster=faster).is_chosen:
        return None
    here = sources_here()[backend]
    if sources.split(",")[0] != here:
        raise SystemExit(f"record_proved.py: the kernels in {backend} ran from the sources {sources}, here are {here}")
    return Proved(family, backend, gpu["capability"], sources, gpu["name"], faster, verdict.date)


def merged(old: list[Proved], said: list[dict[Key, list[Proved | None]]]) -> list[Proved]:
    """Returns the old rows and the new ones. A family that was tried again has a row only if it was right and faster in
    every self-test; the row is that of the slowest."""
    rows: dict[Key, Proved | None] = {(row.family, row.backend, row.capability): row for row in old}
    for key in {key for one in said for key in one}:
        new = [row for one in said for row in one.get(key, [])]
        kept = [row for row in new if row is not None]
        rows[key] = min(kept, key=lambda row: min(row.faster)) if len(kept) == len(new) else None
    return [row for key, row in sorted(rows.items()) if row is not None]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="what `python -m gatedops selftest --json` printed")
    files = parser.parse_args(arguments).files
    rows = merged(list(proved.table()), [rows_of(json.loads(Path(file).read_text())) for file in files])
    write_text(proved.TABLE, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    for row in rows:
        print(f"{row.family} in {row.backend} on {row.gpu}: {' and '.join(map(str, row.faster))} times as fast")
    print(f"{len(rows)} rows in {proved.TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
