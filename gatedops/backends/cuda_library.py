"""Finds and loads gatedops._C_cuda, the C++ kernels for NVIDIA GPUs, and says for which GPUs it is built."""

from __future__ import annotations

import ctypes
import re
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]

# These ops have kernels in csrc/<family>/cuda/.
OPS = (
    "conv_gram",
    "gate_neighbors",
    "gate_overlap",
    "npk_diag",
    "npk_gram",
    "npk_gram_backward",
    "npk_gram_out",
    "npk_matvec",
)

# The kernels of the gram family by their names in GATEDOPS_CUDA, and what they use.
GRAM_KERNELS = {
    "sm90": "wgmma in clusters of two blocks",
    "sm90x1": "wgmma without clusters",
    "sm80": "mma.sync",
}

# csrc/gram/cuda/ops.cpp writes this text.
_MARK = rb"gatedops\._C_cuda for ([0-9a-z_]+)(?: from ([0-9a-f]+, nvcc [0-9.]+))?"


def library() -> Path | None:
    """Returns the built library: that with this interpreter's tag if it exists, else another; None if there is none."""
    built = sorted(PACKAGE.glob("_C_cuda*.so"))
    own = "_C_cuda" + str(sysconfig.get_config_var("EXT_SUFFIX"))
    return next((path for path in built if path.name == own), built[0] if built else None)


def architectures(path: Path) -> list[str]:
    """Returns what a library is built for: "80", "90a", ... It is read from the file, which needs no GPU."""
    found = re.search(_MARK, path.read_bytes())
    return found[1].decode().split("_") if found else []


def sources(path: Path) -> str:
    """Returns the digest of the sources that a library was built from (setup_cuda.digest_of_sources()) and the
    compiler, as in "7a3290474c9f5f40, nvcc 13.0"; empty if the library names none."""
    found = re.search(_MARK, path.read_bytes())
    return found[2].decode() if found and found[2] else ""


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether machine code for one of these architectures runs on a GPU. The architecture must have the GPU's major
    version and must not be newer; "90a" runs on 9.0 alone."""
    gpu = capability[0] * 10 + capability[1]
    plain = [int(name) for name in built if name.isdecimal()]
    return f"{gpu}a" in built or any(name // 10 == gpu // 10 and name <= gpu for name in plain)


def missing() -> str | None:
    """Says what the kernels need and is not here, and what to do; None if they can run."""
    if torch.version.cuda is None:
        return "needs a torch built for CUDA, and this one is not: keep tensors on the CPU"
    path = library()
    if path is None:
        return "is not built: install nvcc and run `pip install --no-build-isolation .` again"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and torch sees none: keep tensors on the CPU"
    capability = torch.cuda.get_device_capability()
    built = architectures(path)
    if not runs_on(capability, built):
        gpu = "{}.{}".format(*capability)
        names = ", ".join(f"sm_{name}" for name in built)
        return (
            f"is built for {names}, but this GPU is sm_{capability[0]}{capability[1]}: "
            f"build again with TORCH_CUDA_ARCH_LIST={gpu}"
        )
    return None


def refused_kernel(name: str) -> str | None:
    """Says in one sentence why GATEDOPS_CUDA cannot be `name` beside GATEDOPS_BACKEND=cuda; None if it can."""
    if name not in GRAM_KERNELS:
        return f"got {name!r}, needs one of {', '.join(GRAM_KERNELS)}, or no value for the fastest"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if name != "sm80" and capability is not None and capability[0] != 9:
        gpu = "{}.{}".format(*capability)
        return f"got {name!r}, which needs a GPU of compute capability 9.0, and this one has {gpu}: use sm80"
    return None


def last_gram_kernel() -> str | None:
    """Returns the kernel of the gram family that was launched last in this process, by its name in GATEDOPS_CUDA; None
    before the first launch."""
    path = library()
    assert path is not None
    function = ctypes.CDLL(str(path)).gatedops_last_gram_kernel
    function.restype = ctypes.c_char_p
    name = function()
    return None if name is None else name.decode()


@cache
def kernels() -> dict[str, Callable[..., Any]]:
    """Loads the library, and returns the kernel of each op. The kernels are ops of the same schemas in a namespace of
    their own, so loading them does not choose them."""
    path = library()
    assert path is not None
    torch.ops.load_library(str(path))
    for name in OPS:
        if not hasattr(torch.ops.gatedops_cuda, name):  # They are there already if gatedops is imported again.
            schema = str(getattr(torch.ops.gatedops, name).default._schema)
            _namespace().define(schema.removeprefix("gatedops::"))
    return {name: getattr(torch.ops.gatedops_cuda, name).default for name in OPS}


@cache
def _namespace() -> torch.library.Library:
    """Returns the namespace, whose definitions live as long as this module."""
    return torch.library.Library("gatedops_cuda", "FRAGMENT")
