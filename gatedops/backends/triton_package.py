"""Says whether the package that compiles the kernels of gatedops.triton is here."""

from __future__ import annotations

from importlib import metadata, util

import torch

_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


def missing() -> str | None:
    """Says what the kernels need and this machine lacks, and what to do; None if they can run."""
    if not _is_installed():
        return "needs the triton package, which is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a torch built for CUDA, and torch sees none: keep tensors on the CPU"
    return None


def _is_installed() -> bool:
    try:
        return util.find_spec("triton") is not None
    except ValueError:  # Somebody put an empty module in its place.
        return False


def version() -> str | None:
    """Returns triton's version without importing it; None if triton is not installed."""
    if not _is_installed():
        return None
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
