"""The code in the section of docs/interfaces.md about GPyTorch runs, each block after those before it."""

from __future__ import annotations

import pytest
import torch
from pages import run_code, section_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_code_runs():
    pytest.importorskip("gpytorch")
    pytest.importorskip("botorch")
    torch.manual_seed(0)
    known = run_code(section_of("interfaces.md", "GPyTorch"), "interfaces.md")
    assert known["predicted"].mean.shape == (10,)
    assert known["candidates"].grad.abs().max() > 0
    assert known["fit"].converged
