"""The digest that a kernel for NVIDIA GPUs is known by covers all that it is compiled from, and nothing for the CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402


def included(path, found):
    """Adds to `found` what `path` includes of the project, and what that includes."""
    for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.MULTILINE):
        for header in (path.parent / name, setup_cuda.CSRC / name):
            if header.exists() and header.resolve() not in found:
                found.add(header.resolve())
                included(header, found)
    return found


def test_the_digest_covers_every_file_that_is_compiled():
    compiled = set(setup_cuda.SOURCES)
    for source in setup_cuda.SOURCES:
        included(source, compiled)
    assert len(compiled) > len(setup_cuda.SOURCES)
    assert compiled <= set(setup_cuda.digested_files())


def test_no_file_for_the_cpu_is_in_the_digest():
    """Else a change of a kernel for the CPU would end what those for GPUs proved."""
    assert not [path for path in setup_cuda.digested_files() if "cpu" in path.parts]
