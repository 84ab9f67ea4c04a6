"""A pytest plugin for scripts/gpu_check.sh (-p gpu_pytest): what a broken test may not take with it.

A process whose CUDA context is broken, by an illegal access for example, fails all its later tests. It ends here
instead, after the test that broke it, and pytest-xdist goes on with the other tests in a new process. And a hang ends a
process before pytest tells why earlier tests failed, so that this is told at once.
"""

from __future__ import annotations

import os
import sys

import pytest

BROKEN = 70  # the exit code


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of xdist hands its reports to the process that started it
        config.pluginmanager.register(FailuresAtOnce())


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Before xdist takes the test for complete: the crash is told with its name, and only later tests are run again."""
    reason = why_broken()
    if reason is not None:
        sys.stdout.flush()
        print(f"\n{nodeid} leaves CUDA broken, this process ends: {reason}", file=sys.stderr, flush=True)
        os._exit(BROKEN)


def why_broken() -> str | None:
    """The first line of the error that every later call would meet; None where CUDA works or has not been used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


class FailuresAtOnce:
    """Prints why a test failed when it fails."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext}", flush=True)
