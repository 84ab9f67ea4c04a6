"""Fixtures for tests of the self-test, which conftest.py imports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gatedops.backends.verdicts import RIGHT, Verdict
from gatedops.portable.register import OPS
from gatedops.selftest import run
from gatedops.selftest.cases import gates


@pytest.fixture
def untouched_ops(monkeypatch, tmp_path) -> Iterator[None]:
    """Gives a test a cache folder of its own, and restores the ops and the timings that fake backends replace."""
    monkeypatch.setenv("GATEDOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GATEDOPS_BACKEND", raising=False)
    monkeypatch.setattr(gates, "timings", gates.timings)
    before = dict(OPS)
    yield
    OPS.update(before)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Makes every test of a family end at once and find it right, and at least twice as fast."""
    verdict = Verdict(RIGHT, faster=(2.04, 3.4), date="2026-11-28", cases=12)
    monkeypatch.setattr(run, "verdict_on", lambda *_: verdict)
