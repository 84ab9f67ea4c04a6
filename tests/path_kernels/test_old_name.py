"""gatedops.kernels, the old name of gatedops.path_kernels."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("statement", "expression"),
    [
        ("import gatedops.kernels", "gatedops.kernels.regression.fit is fit"),
        ("from gatedops import kernels", "kernels.regression.fit is fit"),
        ("from gatedops.kernels import regression", "regression.fit is fit"),
        ("from gatedops.kernels.regression import fit as old", "old is fit"),
        ("import gatedops.kernels.regression as old", "old.fit is fit"),
    ],
)
def test_the_old_name_warns_once_at_the_callers_line_and_gives_the_new_modules(statement, expression):
    script = f"""
import warnings
import gatedops
from gatedops.path_kernels.regression import fit
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    exec(compile({statement!r}, "caller.py", "exec"))
assert {expression}
[warning] = found
assert warning.filename == "caller.py", warning
assert warning.category is DeprecationWarning and "gatedops.path_kernels" in str(warning.message)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_gatedops_does_not_warn():
    script = "import warnings; warnings.simplefilter('error'); import gatedops; import gatedops.path_kernels"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
