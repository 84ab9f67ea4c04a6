"""The Triton kernels, gatedops.triton: whether the package that compiles them is here."""

from __future__ import annotations

from importlib import metadata, util

import torch

_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


def missing() -> str | None:
    """What the kernels need and this machine lacks, and what to do; None where they run."""
    if not _is_installed():
        return "needs the triton package, which is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a torch built for CUDA, and torch sees none: keep tensors on the CPU"
    return None


def _is_installed() -> bool:
    try:
        return util.find_spec("triton") is not None
    except ValueError:  # an empty module that somebody put in its place
        return False


def version() -> str | None:
    """triton's version, found without importing it; None where it is not installed."""
    if not _is_installed():
        return None
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
