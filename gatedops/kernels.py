"""The old name of gatedops.path_kernels, kept for one release: importing it, or one of its modules, warns and gives the
new module."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from importlib import import_module

from gatedops import path_kernels

warnings.warn(
    "gatedops.kernels is now gatedops.path_kernels; the next release removes the old name: import the new one",
    DeprecationWarning,
    stacklevel=2,
)
for _module in pkgutil.iter_modules(path_kernels.__path__):
    sys.modules[f"{__name__}.{_module.name}"] = import_module(f"{path_kernels.__name__}.{_module.name}")
sys.modules[__name__] = path_kernels
