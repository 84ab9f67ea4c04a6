"""The package benchmarks/_common under the same name: the examples share options, output and plots with the benchmarks.

`from _common.options import ...` in examples/ reads benchmarks/_common/options.py; no other module is in this folder.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "benchmarks" / "_common")]
