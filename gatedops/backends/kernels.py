"""The backends whose kernels must prove themselves on a GPU before they are chosen there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatedops.backends import cuda_library, triton_package
from gatedops.backends.families import FAMILIES, FAMILY_OF

# A kernel takes the arguments of the op's schema in csrc/ops.cpp.
Kernel = Callable[..., Any]


@dataclass(frozen=True)
class KernelBackend:
    """Kernels for some families of ops.

    Attributes:
        name: its name in reports and in GATEDOPS_BACKEND.
        at: its place as "module:name", for the processes of the self-test.
        ops: the ops that it has kernels for, known without loading them.
        missing: says what the kernels need and this machine lacks, and what to do; None if they can run.
        build: returns a text that names the kernels on this machine; any change of them changes it.
        sources: returns a text that names what the kernels were built from, on any machine.
        load: loads the kernels, and returns that of each op.
    """

    name: str
    at: str
    ops: tuple[str, ...]
    missing: Callable[[], str | None]
    build: Callable[[], str]
    sources: Callable[[], str]
    load: Callable[[], dict[str, Kernel]]

    def ops_of(self, family: str) -> tuple[str, ...]:
        """Returns the ops of a family that have kernels, which may be none."""
        return tuple(op for op in self.ops if FAMILY_OF[op] == family)

    @property
    def families(self) -> tuple[str, ...]:
        """The families that it has kernels for."""
        return tuple(dict.fromkeys(FAMILY_OF[op] for op in self.ops))


def digest_of(paths: list[Path]) -> str:
    """Returns a digest of the names and the bytes of files, 16 characters."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.parent.name}/{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _build_of_triton() -> str:
    return digest_of(files_of_triton())


def files_of_triton() -> list[Path]:
    """Returns the files of the kernels, and of the modules that their launchers import."""
    package = cuda_library.PACKAGE
    return [*(package / "triton").glob("*.py"), *(package / "ops").glob("*.py"), package / "layout.py"]


def _sources_of_triton() -> str:
    """Returns the digest with Triton's version, because Triton compiles the kernels on this machine."""
    return f"{_build_of_triton()}, triton {'.'.join((triton_package.version() or 'none').split('.')[:2])}"


def _load_triton() -> dict[str, Kernel]:
    from gatedops.triton.launchers import LAUNCHERS

    return dict(LAUNCHERS)


def _build_of_cuda() -> str:
    path = cuda_library.library()
    return "none" if path is None else digest_of([path])


def _sources_of_cuda() -> str:
    path = cuda_library.library()
    return "none" if path is None else cuda_library.sources(path) or "unknown"


_OF_TRITON = ("gates", "gram", "gated_linear", "gated_linear_pair")
_NOT_IN_TRITON = ("gate_counts", "gate_neighbors")

TRITON = KernelBackend(
    "triton",
    f"{__name__}:TRITON",
    tuple(op for family in _OF_TRITON for op in FAMILIES[family] if op not in _NOT_IN_TRITON),
    triton_package.missing,
    _build_of_triton,
    _sources_of_triton,
    _load_triton,
)
CUDA = KernelBackend(
    "cuda",
    f"{__name__}:CUDA",
    cuda_library.OPS,
    cuda_library.missing,
    _build_of_cuda,
    _sources_of_cuda,
    cuda_library.kernels,
)

KERNEL_BACKENDS = (CUDA, TRITON)
