"""The old name of gatedops.reference.conv_gram, kept for one release: importing it warns and gives the new module."""

from __future__ import annotations

import sys
import warnings

from gatedops.reference import conv_gram

warnings.warn(
    "gatedops.reference_conv is now gatedops.reference.conv_gram; the next release removes the old name: "
    "import the new one",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = conv_gram
