"""The old names gatedops.kernels and gatedops.reference_conv still work, and warn."""

from __future__ import annotations

import pytest
from forked import run_forked

import gatedops


@pytest.mark.parametrize(
    ("statement", "expression"),
    [
        ("from gatedops import kernels", "kernels.regression.fit is fit"),
        ("from gatedops.kernels.regression import fit as old", "old is fit"),
        ("import gatedops.kernels.regression as old", "old.fit is fit"),
        ("old = gatedops.kernels", "old.regression.fit is fit"),
        (
            "import gatedops.reference_conv",
            "gatedops.reference_conv.conv_gram is gatedops.reference.conv_gram.conv_gram",
        ),
        ("old = gatedops.reference_conv", "old is gatedops.reference.conv_gram"),
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
assert warning.category is DeprecationWarning and "is now gatedops." in str(warning.message)
"""
    run_forked(script)


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="module 'gatedops' has no attribute 'kernel'"):
        gatedops.kernel  # noqa: B018


def test_importing_gatedops_does_not_warn():
    script = "import warnings; warnings.simplefilter('error'); import gatedops; import gatedops.path_kernels"
    run_forked(script, imports="torch")
