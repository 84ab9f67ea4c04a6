"""The code in the section of docs/interfaces.md about GPyTorch runs, each block after those before it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interfaces.md"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_code_runs():
    pytest.importorskip("gpytorch")
    pytest.importorskip("botorch")
    (section,) = re.findall(r"^## GPyTorch$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    known: dict[str, object] = {}
    torch.manual_seed(0)
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), known)
    assert known["predicted"].mean.shape == (10,)
    assert known["candidates"].grad.abs().max() > 0
    assert known["fit"].converged
