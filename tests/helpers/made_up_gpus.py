"""Makes up GPUs, verdicts on them, and a folder for the verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gatedops.backends.families import FAMILIES
from gatedops.backends.gpus import Gpu
from gatedops.backends.kernels import CUDA, TRITON
from gatedops.backends.verdicts import Verdict

H100 = Gpu("NVIDIA H100", (9, 0), "580.65.06")
A100 = Gpu("NVIDIA A100", (8, 0), "580.65.06", (1,))
RIGHT = Verdict("right", faster=(1.5, 3.0), date="2026-11-28", cases=12)
FASTER = replace(RIGHT, faster=(2.0, 2.5))
BOTH = (CUDA, TRITON)
EVERYTHING = {family: {b.name: RIGHT for b in BOTH if b.ops_of(family)} for family in FAMILIES}


def use_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes verdicts be kept below an empty folder, and returns their place in it."""
    monkeypatch.setenv("GATEDOPS_CACHE", str(folder))
    return folder / "selftest"
