"""Runs Python in a process of its own, to test what is decided when gatedops is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from forked import run_forked

# It does what Python does with the options -c and -m. `found` is the exit status and what was printed.
SCRIPT = """
import os, runpy, sys, tempfile, traceback
os.environ.clear()
os.environ.update({environment!r})
os.chdir({folder!r})
option, name, *rest = {arguments!r}
sys.argv = ["-c" if option == "-c" else name, *rest]

def run():
    try:
        if option == "-c":
            exec(name, {{"__name__": "__main__"}})
        else:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

files = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]
for number, file in enumerate(files, 1):
    os.dup2(file.fileno(), number)
status = run()
sys.stdout.flush()
sys.stderr.flush()
for file in files:
    file.seek(0)
found = status, *(file.read() for file in files)
"""


def run_python(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python, with -c or -m, without the GATEDOPS_ variables of this process, and with the given variables.

    The process is the fork of one that has imported torch, which takes longer than gatedops. If other variables are
    given than those of gatedops, Python starts anew, because torch may read them when it is imported.
    """
    wanted = {k: v for k, v in os.environ.items() if not k.startswith("GATEDOPS_")} | environment
    if all(name.startswith("GATEDOPS_") for name in environment):
        script = SCRIPT.format(environment=wanted, folder=str(cwd or Path.cwd()), arguments=arguments)
        return subprocess.CompletedProcess(arguments, *run_forked(script, "found", "torch"))
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=wanted, capture_output=True, text=True, timeout=120)


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the error message of a run that failed."""
    assert result.returncode == 1, result.stderr
    return result.stderr.strip().splitlines()[-1]
