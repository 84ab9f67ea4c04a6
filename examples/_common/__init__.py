"""Lets the examples import benchmarks/_common under the same name, and so share its options, output and plots.

`from _common.options import ...` in examples/ imports benchmarks/_common/options.py. This folder has no other module.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "benchmarks" / "_common")]
