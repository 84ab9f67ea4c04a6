"""The code in the sections of docs/interfaces.md about GPyTorch and about reasons runs, each block after those before
it."""

from __future__ import annotations

import pytest
import torch
from pages import run_code, section_of

import gatedops

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_code_runs():
    pytest.importorskip("gpytorch")
    pytest.importorskip("botorch")
    torch.manual_seed(0)
    known = run_code(section_of("interfaces.md", "GPyTorch"), "interfaces.md")
    assert known["predicted"].mean.shape == (10,)
    assert known["candidates"].grad.abs().max() > 0
    assert known["fit"].converged


def test_the_code_about_reasons_runs(capsys):
    torch.manual_seed(0)
    known = run_code(section_of("interfaces.md", "Why a prediction"), "interfaces.md")
    found, bits, x = known["found"], known["bits"], known["x"]
    assert found.index.shape == (5, 3)
    pair = gatedops.stats.explain_pair(bits, 0, int(found.index[0, 0]), x=x)
    assert capsys.readouterr().out == f"{found}\n{pair}\n"
    assert pair.kernel == pytest.approx(gatedops.npk_gram(x, bits)[0, int(found.index[0, 0])].item(), rel=1e-5)
