"""Builds gatedops._C_cuda with nvcc, for setup.py: torch's BuildExtension refuses .cu files if torch is CPU-only."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
SOURCES = [
    *sorted(CSRC.glob("*/cuda/*.cpp")),
    *sorted(CSRC.glob("*/cuda/*.cu")),
    CSRC / "conv_gram" / "program.cpp",  # Both modules read programs with it.
]
# Code for sm_80 runs on 8.x, and a 9.0 GPU falls back to its mma.sync. wgmma exists only for sm_90a.
ARCHITECTURES = ("80", "90a")


def why_not() -> str | None:
    """Returns one sentence that says why gatedops._C_cuda is not built here, or None if it is."""
    if torch.version.cuda is None:
        return "gatedops._C_cuda is not built: this torch has no CUDA."
    if shutil.which("nvcc") is None or subprocess.run(["nvcc", "--version"], capture_output=True).returncode != 0:
        return f"gatedops._C_cuda is not built: nvcc does not run; install the CUDA {torch.version.cuda} toolkit."
    return None


def architectures(listed: str | None = None) -> list[str]:
    """Returns "80", "90a", ... from TORCH_CUDA_ARCH_LIST ("8.0;9.0a"), else ARCHITECTURES. 9.0 means 90a, for wgmma.

    The list often comes with a machine and serves other packages too. Versions before 8.0 are left out, because these
    GPUs have no tensor cores for single bits. Raises SystemExit if nothing is left, or if an entry is not a version.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") if listed is None else listed
    entries = re.split(r"[;, ]+", listed.strip()) if listed and listed.strip() else []
    found = set()
    for entry in entries:
        version = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if version is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: got {entry!r}, needs versions from 8.0 on, like '8.0;9.0a'")
        name = version[1] + version[2] + version[3]
        if int(version[1]) >= 8:
            found.add("90a" if name == "90" else name)
    if entries and not found:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST: got {listed!r}, needs versions from 8.0 on, like '8.0;9.0a'")
    return sorted(found, key=lambda name: int(name.rstrip("af"))) or list(ARCHITECTURES)


def digested_files() -> list[Path]:
    """Returns this file and every file from which the kernels are compiled, but no file that only the CPU needs."""
    return sorted({*CSRC.glob("*/cuda/*"), *CSRC.glob("*/*.h"), *SOURCES, Path(__file__).resolve()})


@cache
def digest_of_sources() -> str:
    """Returns a digest, 16 characters, of the names and bytes of digested_files(). The library carries it, and it
    identifies a kernel that proved itself (gatedops/backends/proved.py)."""
    total = hashlib.sha256()
    for path in digested_files():
        total.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def compile_command(source: Path, target: Path, torch_target: str, names: list[str]) -> list[str]:
    """Returns nvcc's command for one file. It makes machine code for each architecture, and no PTX."""
    return [
        *("nvcc", "-O3", "-std=c++20", "-c", str(source), "-o", str(target), "-I" + str(CSRC)),
        *("-I" + path for path in include_paths()),
        *("-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={torch_target}", "-DGATEDOPS_ARCHITECTURES=" + "_".join(names)),
        "-DGATEDOPS_SOURCES=" + digest_of_sources(),
        *("-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v,-warn-spills"),
        *(f"-gencode=arch=compute_{name},code=sm_{name}" for name in names),
    ]


def link_command(objects: list[Path], target: Path) -> list[str]:
    """Returns nvcc's command to link. It keeps unused libraries, because through them torch loads its CUDA part."""
    library = str(Path(torch.__file__).parent / "lib")
    linked = ["-L" + library, "-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu", "-cudart", "static"]
    return ["nvcc", "-shared", *map(str, objects), "-o", str(target), *linked]


def object_name(source: Path) -> str:
    """Returns a name like "gram-cuda-sm80.cu.o", because families may have files of the same name."""
    return "-".join(source.relative_to(CSRC).parts) + ".o"


def build(folder: Path, target: Path, torch_target: str) -> None:
    """Compiles what has changed, MAX_JOBS files at a time, and links it."""
    names = architectures()
    folder = folder / ("cuda-" + "-".join(names))
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [Path(__file__), *CSRC.rglob("*.*")])
    objects = [folder / object_name(source) for source in SOURCES]

    def compile_one(source: Path, made: Path) -> None:
        if not made.exists() or made.stat().st_mtime < newest:
            _run(compile_command(source, made, torch_target, names))

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as jobs:
        list(jobs.map(compile_one, SOURCES, objects))
    _run(link_command(objects, target))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"gatedops._C_cuda does not build:\n{' '.join(command)}\n{done.stdout}{done.stderr}")
