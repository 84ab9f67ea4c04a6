"""Gives torch the kernels of every device, once, when gatedops is imported.

Tensors on the CPU run in C++. On every other device the portable ops run, which are composites of torch's own
operations; GATEDOPS_BACKEND names others (gatedops/backends.py).
"""

from __future__ import annotations

import warnings

from gatedops import backends, cuda_library
from gatedops.portable import register as portable


def register_kernels() -> None:
    """Registers the portable ops for all devices, and over them the kernels that GATEDOPS_BACKEND asks for."""
    portable.register("CompositeExplicitAutograd")
    forced = backends.forced_backend()
    if forced == "portable":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
            portable.register("CPU")
    if forced == "cuda":
        cuda_library.load()
    if forced == "triton" or (forced == "cuda" and backends.missing_for("triton") is None):
        from gatedops.triton import register as triton

        triton.register(taken=cuda_library.OPS if forced == "cuda" else ())
