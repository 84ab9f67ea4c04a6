"""The code in the section of docs/interfaces.md about scikit-learn runs, each block after those before it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import gatedops.sklearn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interfaces.md"


def section() -> str:
    (found,) = re.findall(r"^## scikit-learn$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return found


def test_the_code_runs():
    known: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", section(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), known)
    assert known["accuracy"] > 0.9
    np.testing.assert_allclose(known["probabilities"].sum(1), 1)


def test_the_table_names_every_estimator():
    table = "\n".join(line for line in section().splitlines() if line.startswith("| `"))
    named = {name for name in re.findall(r"`(\w+)", table) if hasattr(gatedops.sklearn, name)}
    assert named == set(gatedops.sklearn.__all__) - {"NPKKernel"}
