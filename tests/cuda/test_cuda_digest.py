"""The digest that identifies a kernel for NVIDIA GPUs covers all its sources, and nothing for the CPU."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402


def included(path, found):
    """Adds to `found` what `path` includes of the project, and what those files include."""
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
    """Otherwise a change of a CPU kernel would invalidate what the GPU kernels proved."""
    assert not [path for path in setup_cuda.digested_files() if "cpu" in path.parts]
