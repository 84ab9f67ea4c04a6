"""Runs Python in new processes that have imported torch already, and gatedops too, because the imports take seconds."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# The server reads a script and the name of a result on each line. A child that the server forks runs the script, and
# answers on a line. The server itself calls no op, so it has no threads that a child would miss. What a script prints
# goes to stderr.
SERVER = """
import json, os, sys, traceback
import IMPORTS
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    script, name = json.loads(line)
    if os.fork() == 0:
        scope = {}
        try:
            exec(script, scope)
            answer = ["", scope.get(name)]
        except BaseException:
            answer = [traceback.format_exc(), None]
        sys.stdout.flush()
        print(json.dumps(answer), file=answers, flush=True)
        os._exit(0)
    if status := os.wait()[1]:
        print(json.dumps([f"the process ended with status {status}", None]), file=answers, flush=True)
"""


@functools.cache
def _server(imports: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).resolve().parent)
    paths = os.pathsep.join([here, str(Path(here).parents[1]), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER.replace("IMPORTS", imports)],
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)
    return server


def run_forked(script: str, name: str = "", imports: str = "torch, gatedops, strategies") -> Any:
    """Runs a script in a process of its own, and returns the variable of this name, which JSON can hold.

    The process has imported these modules.

    Raises:
        AssertionError: the script raised an error, which the message shows.
    """
    server = _server(imports)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        server.stdin.write(json.dumps([script, name]) + "\n")
        server.stdin.flush()
        error, value = json.loads(server.stdout.readline())
    except BaseException:  # A timeout, say: the next call gets another server.
        server.kill()
        _server.cache_clear()
        raise
    assert not error, error
    return value
