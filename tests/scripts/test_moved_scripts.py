"""benchmarks/dgn_training.py and ntk_vs_npk.py, which are in examples/ now: the old commands run the new ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_runs import BENCHMARKS, EXAMPLES, STOPPING, run_script

MOVED = ("dgn_training.py", "ntk_vs_npk.py")

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


def notice(name: str) -> str:
    return f"{name}: moved to examples/{name}; the next release removes benchmarks/{name}"


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize(("options", "code"), [(["--help"], 0), (["--data", "cifar10"], 2)])
def test_the_old_path_says_and_returns_what_the_new_one_does(
    name: str, options: list[str], code: int, tmp_path: Path
) -> None:
    old, new = (run_script(name, *options, cwd=tmp_path, folder=folder) for folder in (BENCHMARKS, EXAMPLES))
    assert old.returncode == new.returncode == code
    assert old.stdout == new.stdout
    assert old.stderr == f"{notice(name)}\n{new.stderr}"
    assert bool(new.stdout) == (code == 0)
    assert bool(new.stderr) == (code != 0)


@pytest.mark.slow
def test_the_old_path_runs_to_the_same_figures(tmp_path: Path) -> None:
    options = ("--n", "4", "--widths", "5", "--draws", "3", "--depth", "3", "--no-plot", "--out")
    found = []
    for folder in (BENCHMARKS, EXAMPLES):
        done = run_script("ntk_vs_npk.py", *options, "out", cwd=tmp_path, folder=folder)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "out" / "ntk_vs_npk.json").read_text()))
        (tmp_path / "out" / "ntk_vs_npk.json").unlink()
    commands = [one.pop("machine")["command"] for one in found]
    assert commands == [" ".join(["ntk_vs_npk.py", *options, "out"])] * 2
    assert found[0] == found[1]


def test_the_old_path_stops_as_the_new_one_does(tmp_path: Path) -> None:
    """Ctrl-C: one line, exit code 130, and checkpoints to go on from."""
    script = (str(BENCHMARKS / "dgn_training.py"), "SIGINT", "step", "100")
    options = ("--seeds", "1", "--epochs", "3", "--variants", "relu", "--checkpoint-every", "0", "--no-plot")
    done = run_script(STOPPING.name, *script, *options, "--out", "out", cwd=tmp_path, folder=STOPPING.parent)
    assert (done.returncode, done.stdout) == (130, "")
    stopped = "dgn_training.py: stopped; the same command goes on from the checkpoints in out"
    assert done.stderr.splitlines() == [notice("dgn_training.py"), stopped]
    assert (tmp_path / "out" / "dgn_training_digits.checkpoints" / "relu.pt").exists()
