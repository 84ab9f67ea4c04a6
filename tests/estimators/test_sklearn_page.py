"""The code in the section of docs/interfaces.md about scikit-learn runs, each block after those before it."""

from __future__ import annotations

import re

import numpy as np
from pages import run_code, section_of

import gatedops.sklearn

SECTION = section_of("interfaces.md", "scikit-learn")


def test_the_code_runs():
    known = run_code(SECTION, "interfaces.md")
    assert known["accuracy"] > 0.9
    np.testing.assert_allclose(known["probabilities"].sum(1), 1)
    assert known["gates"].transform(known["X_test"]).shape == (1497, 256)
    assert known["deviation"].shape == (1497,)
    assert known["indices"].shape == (1497, 3)


def test_the_table_names_every_estimator():
    table = "\n".join(line for line in SECTION.splitlines() if line.startswith("| `"))
    named = {name for name in re.findall(r"`(\w+)", table) if hasattr(gatedops.sklearn, name)}
    assert named == set(gatedops.sklearn.__all__) - {"NPKKernel"}
