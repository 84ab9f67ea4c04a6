"""benchmarks/dgn_training.py and ntk_vs_npk.py, which are in examples/ now: the old commands run the new ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from script_runs import BENCHMARKS, EXAMPLES, run_script

pytest.importorskip("tqdm")


@pytest.mark.parametrize(
    ("name", "options", "code"), [("dgn_training.py", ["--help"], 0), ("ntk_vs_npk.py", ["--data", "cifar10"], 2)]
)
def test_the_old_path_says_and_returns_what_the_new_one_does(
    name: str, options: list[str], code: int, tmp_path: Path
) -> None:
    old, new = (run_script(name, *options, cwd=tmp_path, folder=folder) for folder in (BENCHMARKS, EXAMPLES))
    assert old.returncode == new.returncode == code
    assert old.stdout == new.stdout
    notice = f"{name}: moved to examples/{name}; the next release removes benchmarks/{name}"
    assert old.stderr == f"{notice}\n{new.stderr}"
    assert bool(new.stdout) == (code == 0)
    assert bool(new.stderr) == (code != 0)
