"""The C++ kernels for NVIDIA GPUs, gatedops._C_cuda: whether it is built, for which GPUs, and loading it."""

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

# Ops with kernels in csrc/<family>/cuda/.
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

# The kernels of the gram family, as GATEDOPS_CUDA names them, and what they are.
GRAM_KERNELS = {
    "sm90": "wgmma in clusters of two blocks",
    "sm90x1": "wgmma without clusters",
    "sm80": "mma.sync",
}

# Written by csrc/gram/cuda/ops.cpp.
_MARK = rb"gatedops\._C_cuda for ([0-9a-z_]+)(?: from ([0-9a-f]+, nvcc [0-9.]+))?"


def library() -> Path | None:
    """The built library, the one whose name has this interpreter's tag when several interpreters built theirs."""
    built = sorted(PACKAGE.glob("_C_cuda*.so"))
    own = "_C_cuda" + str(sysconfig.get_config_var("EXT_SUFFIX"))
    return next((path for path in built if path.name == own), built[0] if built else None)


def architectures(path: Path) -> list[str]:
    """What a library is built for: "80", "90a", .... Read from the file, so that it needs no GPU."""
    found = re.search(_MARK, path.read_bytes())
    return found[1].decode().split("_") if found else []


def sources(path: Path) -> str:
    """The digest of the sources that a library was built from, setup_cuda.digest_of_sources(), and the compiler, as
    "7a3290474c9f5f40, nvcc 13.0"; empty where it says none."""
    found = re.search(_MARK, path.read_bytes())
    return found[2].decode() if found and found[2] else ""


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether machine code for one of these runs on a GPU: of its major version, no newer; "90a" on 9.0 alone."""
    gpu = capability[0] * 10 + capability[1]
    plain = [int(name) for name in built if name.isdecimal()]
    return f"{gpu}a" in built or any(name // 10 == gpu // 10 and name <= gpu for name in plain)


def missing() -> str | None:
    """What the kernels need and is not here, and what to do; None where they run."""
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
            f"is built for {names}, this GPU is sm_{capability[0]}{capability[1]}: "
            f"build again with TORCH_CUDA_ARCH_LIST={gpu}"
        )
    return None


def refused_kernel(name: str) -> str | None:
    """Why GATEDOPS_CUDA cannot be `name` beside GATEDOPS_BACKEND=cuda, one sentence; None where it can."""
    if name not in GRAM_KERNELS:
        return f"got {name!r}, needs one of {', '.join(GRAM_KERNELS)}, or no value for the fastest"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if name != "sm80" and capability is not None and capability[0] != 9:
        gpu = "{}.{}".format(*capability)
        return f"got {name!r}, which needs a GPU of compute capability 9.0, and this one has {gpu}: take sm80"
    return None


def last_gram_kernel() -> str | None:
    """The kernel of the gram family that was launched last in this process, as GATEDOPS_CUDA names it; None before the
    first launch."""
    path = library()
    assert path is not None
    function = ctypes.CDLL(str(path)).gatedops_last_gram_kernel
    function.restype = ctypes.c_char_p
    name = function()
    return None if name is None else name.decode()


@cache
def kernels() -> dict[str, Callable[..., Any]]:
    """Loads the library; the kernel of each op. They are ops too, of the same schemas in a namespace of their own, so
    that loading them chooses nothing."""
    path = library()
    assert path is not None
    torch.ops.load_library(str(path))
    for name in OPS:
        if not hasattr(torch.ops.gatedops_cuda, name):  # they stay where gatedops is imported again
            schema = str(getattr(torch.ops.gatedops, name).default._schema)
            _namespace().define(schema.removeprefix("gatedops::"))
    return {name: getattr(torch.ops.gatedops_cuda, name).default for name in OPS}


@cache
def _namespace() -> torch.library.Library:
    """Lives as long as this module, and what it defines with it."""
    return torch.library.Library("gatedops_cuda", "FRAGMENT")
