"""What the ops can run on here, what is chosen, and why. `python -m gatedops` prints it.

GATEDOPS_CPU (serial, avx2, avx512 or amx) forces the instruction set of the CPU kernels, where it is the faster as well
as where it is not. GATEDOPS_BACKEND=triton adds the kernels for NVIDIA GPUs; GATEDOPS_BACKEND=cuda takes those of the
gram and conv_gram families from gatedops._C_cuda instead, and GATEDOPS_CUDA (sm90, sm90x1 or sm80) then forces the
kernel of the gram family. Tensors on the CPU run there all the same. All are read when gatedops is imported; a value
that cannot be had is a ValueError there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util

import torch

from gatedops import cuda_library
from gatedops._version import __version__

try:
    from gatedops import _C
except ImportError as error:
    raise ImportError(
        f"gatedops._C cannot be loaded ({error}): build it with `make setup` or `pip install --no-build-isolation .`"
    ) from error

_AVX512 = ("popcnt", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vpopcntdq", "avx512vnni")
# The instruction sets that kernels exist for, slowest first, with the CPU flags each one needs.
INSTRUCTION_SETS = {
    "serial": (),
    "avx2": ("popcnt", "avx2"),
    "avx512": _AVX512,
    "amx": (*_AVX512, "amx-tile", "amx-int8"),
}


@dataclass(frozen=True)
class Backend:
    """One way to run the ops: its name, the devices it serves, whether this version has kernels for it, and whether
    these are experimental: proved by what can be proved without a GPU, and used only where they are asked for."""

    name: str
    devices: str
    exists: bool
    experimental: bool = False


BACKENDS = (
    Backend("cpu", "the CPU, in C++", exists=True),
    Backend("triton", "NVIDIA GPUs, in Triton", exists=True, experimental=True),
    Backend("cuda", "NVIDIA GPUs, in CUDA", exists=True, experimental=True),
)

_cuda_ops: set[str] = set()  # functions that take CUDA tensors


def available_isas() -> list[str]:
    """The instruction sets that this machine runs, slowest first."""
    return _C.available_isas()


def active_isa() -> str:
    """The instruction set that the CPU kernels use now: "serial", "avx2", "avx512" or "amx"."""
    return _C.active_isa()


def cpu_features() -> list[str]:
    """The CPU flags found, among those that decide which instruction sets are available."""
    return _C.cpu_features()


def missing_flags(isa: str) -> list[str]:
    """The CPU flags that an instruction set needs and this machine lacks."""
    return [flag for flag in INSTRUCTION_SETS[isa] if flag not in cpu_features()]


def build_report() -> dict[str, str]:
    """Compiler, architecture, C++ standard and oldest torch that gatedops._C is built for."""
    return _C.build_report()


@contextmanager
def force_cpu(name: str) -> Iterator[None]:
    """Makes the CPU kernels use one instruction set inside a `with` block, in all threads.

    Raises ValueError where name is not one of available_isas().
    """
    before = _C.forced_isa()
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)


def chosen_backend() -> tuple[str, str]:
    """The backend that is chosen, and why."""
    wanted = os.environ.get("GATEDOPS_BACKEND")
    if wanted:
        return wanted, "GATEDOPS_BACKEND asks for it"
    return "cpu", "it is the only one that is not experimental"


def chosen_isa() -> tuple[str, str]:
    """The instruction set of the CPU kernels, and why."""
    if os.environ.get("GATEDOPS_CPU"):
        return active_isa(), "GATEDOPS_CPU asks for it"
    return active_isa(), "it is the fastest this machine runs"


def add_cuda_ops(names: Iterable[str]) -> None:
    """Says that these functions take CUDA tensors from now on."""
    _cuda_ops.update(names)


def cuda_ops() -> frozenset[str]:
    """The functions that take CUDA tensors."""
    return frozenset(_cuda_ops)


def supports(device: torch.device, op: str) -> bool:
    """Whether a function takes tensors on this device."""
    return device.type in ("cpu", "meta") or (device.type == "cuda" and op in _cuda_ops)


def unsupported_device(device: torch.device, op: str) -> str:
    """The sentence to raise where an op has no kernel for a device."""
    if device.type == "cuda" and not _cuda_ops:
        return (
            f"is on {device}, but {op} runs on the CPU unless GATEDOPS_BACKEND=triton is set before Python starts"
            " (experimental): set it, or move the tensor with .cpu()"
        )
    return f"is on {device}, but {op} has kernels for the CPU only: move it there with .cpu()"


def missing_for_triton() -> str | None:
    """What the Triton kernels need and this machine lacks, and what to do; None where they run."""
    if util.find_spec("triton") is None:
        return "needs the triton package, which is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU and a torch built for CUDA, and torch sees none: keep tensors on the CPU"
    return None


def missing_for(backend: str) -> str | None:
    """What a backend needs and this machine lacks, and what to do; None where it runs."""
    if backend == "cuda":
        return cuda_library.missing()
    return missing_for_triton() if backend == "triton" else None


def _read_environment() -> None:
    """Applies GATEDOPS_CPU, checks GATEDOPS_BACKEND and GATEDOPS_CUDA; an empty value is as good as none."""
    isa = os.environ.get("GATEDOPS_CPU")
    if isa:
        try:
            _C.force_isa(isa)
        except ValueError as error:
            raise ValueError(f"GATEDOPS_CPU: {error}") from None
    wanted = os.environ.get("GATEDOPS_BACKEND")
    existing = [backend.name for backend in BACKENDS if backend.exists]
    if wanted and wanted not in existing:
        raise ValueError(
            f"GATEDOPS_BACKEND: got {wanted!r}, but gatedops {__version__} has kernels only for: " + ", ".join(existing)
        )
    missing = missing_for(wanted) if wanted else None
    if missing is not None:
        raise ValueError(f"GATEDOPS_BACKEND: got {wanted!r}, which {missing}")
    kernel = os.environ.get("GATEDOPS_CUDA") if wanted == "cuda" else None
    refused = cuda_library.refused_kernel(kernel) if kernel else None
    if refused is not None:
        raise ValueError(f"GATEDOPS_CUDA: {refused}")


_read_environment()
