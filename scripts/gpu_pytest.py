"""A pytest plugin for scripts/gpu_check.sh (-p gpu_pytest), which keeps a broken test from taking others with it.

A process whose CUDA context is broken, by an illegal access for example, would fail all its later tests. The plugin
ends it after the test that broke it, and pytest-xdist goes on with the other tests in a new process. A hang ends a
process before pytest reports why earlier tests failed, so the plugin reports each failure at once.
"""

from __future__ import annotations

import os
import sys

import pytest

BROKEN = 70  # The exit code.


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # A worker of xdist hands its reports to the process that started it.
        config.pluginmanager.register(FailuresAtOnce())


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Ends a broken process. This hook runs before xdist takes the test for complete, so that xdist reports the crash
    with the test's name and runs only later tests again."""
    reason = why_broken()
    if reason is not None:
        sys.stdout.flush()
        print(f"\n{nodeid} leaves CUDA broken, this process ends: {reason}", file=sys.stderr, flush=True)
        os._exit(BROKEN)


def why_broken() -> str | None:
    """Returns the first line of the error that every later call would get, or None if CUDA works or was not used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


class FailuresAtOnce:
    """Prints why a test failed as soon as it fails."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext}", flush=True)
