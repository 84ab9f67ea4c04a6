"""Says which kernels run on which device, and with which instruction set of the CPU. `python -m gatedops` prints it.

Ops on CPU tensors run in C++. Ops on tensors of any other device are portable, which means composites of torch's own
operations. On a GPU, kernels run a family of ops once they proved themselves there (choice.py).

These variables are read when gatedops is imported; a value that cannot be used here is a ValueError then:

GATEDOPS_BACKEND chooses kernels. "portable" runs ops on CPU tensors by torch's operations too. "cpu" gives GPUs no
kernels. "triton" gives GPUs the Triton kernels, whatever they proved. "cuda" gives them those of gatedops._C_cuda for
the gram and conv_gram families, and for the others Triton's if triton is installed. Ops without a kernel stay portable.

GATEDOPS_CUDA (sm90, sm90x1 or sm80) forces the kernel of the gram family; it is read only beside "cuda".

GATEDOPS_CPU (serial, avx2, avx512 or amx; serial or neon on Arm) forces the instruction set in C++. Without it, a
kernel may use a lower set that is faster for its shape.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gatedops.backends import cuda_library, triton_package

try:
    from gatedops import _C
except ImportError as error:
    raise ImportError(
        f"gatedops._C cannot be loaded ({error}): build it with `make setup` or `pip install --no-build-isolation .`"
    ) from error

# The instruction sets that have kernels, slowest first, with the CPU flags that each needs. isa.h has the list.
INSTRUCTION_SETS = {name: tuple(_C.isa_flags(name)) for name in _C.isa_names()}


@dataclass(frozen=True)
class Backend:
    """One way to run the ops: its name, the devices that it serves, and how it is made."""

    name: str
    devices: str
    how: str


BACKENDS = (
    Backend("cpu", "CPUs", "kernels in C++"),
    Backend("portable", "every device", "torch's own operations"),
    Backend("triton", "NVIDIA GPUs", "kernels in Triton"),
    Backend("cuda", "NVIDIA GPUs", "kernels in CUDA"),
)


def available_isas() -> list[str]:
    """Returns the instruction sets that this machine runs, slowest first."""
    return _C.available_isas()


def active_isa() -> str:
    """Returns the instruction set that the CPU kernels use now: "serial", "avx2", "avx512", "amx", or "neon" on Arm."""
    return _C.active_isa()


def cpu_features() -> list[str]:
    """Returns the flags of this CPU, among those that decide which instruction sets are available."""
    return _C.cpu_features()


def missing_flags(isa: str) -> list[str]:
    """Returns the CPU flags that an instruction set needs and this machine lacks."""
    return [flag for flag in INSTRUCTION_SETS[isa] if flag not in cpu_features()]


def build_report() -> dict[str, str]:
    """Returns the compiler, architecture, C++ standard and oldest torch that gatedops._C is built for."""
    return _C.build_report()


@contextmanager
def force_cpu(name: str) -> Iterator[None]:
    """Makes the CPU kernels use one instruction set inside a `with` block, in all threads.

    Raises ValueError if name is not one of available_isas().
    """
    before = _C.forced_isa()
    _C.force_isa(name)
    try:
        yield
    finally:
        _C.force_isa(before)


_forced: str | None = None  # _read_environment() sets it.


def forced_backend() -> str | None:
    """Returns the backend that GATEDOPS_BACKEND named when gatedops was imported, or None if it named none."""
    return _forced


def chosen_isa() -> tuple[str, str]:
    """Returns the instruction set of the CPU kernels, and why it is used."""
    if os.environ.get("GATEDOPS_CPU"):
        return active_isa(), "GATEDOPS_CPU asks for it"
    return active_isa(), "it is the fastest that this machine runs"


def missing_for(backend: str) -> str | None:
    """Says what a backend needs and this machine lacks, and what to do; None if the backend can run."""
    if backend == "cuda":
        return cuda_library.missing()
    return triton_package.missing() if backend == "triton" else None


def _read_environment() -> None:
    """Applies GATEDOPS_CPU and GATEDOPS_BACKEND, and checks GATEDOPS_CUDA. An empty value means no value."""
    global _forced
    isa = os.environ.get("GATEDOPS_CPU")
    if isa:
        try:
            _C.force_isa(isa)
        except ValueError as error:
            raise ValueError(f"GATEDOPS_CPU: {error}") from None
    wanted = os.environ.get("GATEDOPS_BACKEND") or None
    names = [backend.name for backend in BACKENDS]
    if wanted and wanted not in names:
        raise ValueError(f"GATEDOPS_BACKEND: got {wanted!r}, needs one of {', '.join(names)}, or no value")
    missing = missing_for(wanted) if wanted else None
    if missing is not None:
        raise ValueError(f"GATEDOPS_BACKEND: got {wanted!r}, which {missing}")
    kernel = os.environ.get("GATEDOPS_CUDA") if wanted == "cuda" else None
    refused = cuda_library.refused_kernel(kernel) if kernel else None
    if refused is not None:
        raise ValueError(f"GATEDOPS_CUDA: {refused}")
    _forced = wanted


_read_environment()
