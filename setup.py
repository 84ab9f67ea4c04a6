"""Builds gatedops._C and, if nvcc and a torch for CUDA are installed, gatedops._C_cuda.

pyproject.toml has everything that is not compilation.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    sys.exit(
        f"gatedops needs torch to build ({error}): install torch >= 2.10, then run pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))  # A PEP 517 build does not look beside setup.py.
import setup_cuda  # noqa: E402

# The binary loads on torch from 2.10 on (stable ABI; one byte is the major version, the next the minor).
TORCH_TARGET_VERSION = "0x020A000000000000"
CUDA_MODULE = "gatedops._C_cuda"
# The flags compile for the baseline of the architecture; files that need an instruction set ask for it with a pragma.
# Contraction and fast-math are off, so that products of counts have the same bits on every instruction set.
CXX_FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden"]
# Two warnings are silenced: unused parameters in torch's headers, and GCC 12's about its own AVX-512 intrinsics.
CXX_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",
    "-Werror=switch",  # A switch over an enum may not forget a case.
]


def require_compiler() -> None:
    """Sets CXX to the compiler that both compiling and linking use; exits if none is found."""
    wanted = os.environ.get("CXX")
    candidates = [wanted.split()[0]] if wanted else ["c++", "g++", "clang++"]
    found = next(filter(shutil.which, candidates), None)
    if found is None:
        sys.exit(
            f"gatedops needs a C++17 compiler ({', '.join(candidates)}: not found): install one "
            "(Debian and Ubuntu: apt install g++; macOS: xcode-select --install), or set CXX to yours."
        )
    os.environ["CXX"] = wanted or found


def sources(*patterns: str) -> list[str]:
    """Returns the files that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def write_compile_commands(folder: Path) -> None:
    """Writes build/compile_commands.json, where clangd looks for it, from the file that ninja has just built by."""
    if not (folder / "build.ninja").exists():  # torch was told to build without ninja
        return
    command = ["ninja", "-C", str(folder), "-t", "compdb", "compile"]
    commands = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The module runs alone: gatedops cannot be imported while it is built.
    write_text = runpy.run_path(str(ROOT / "gatedops" / "atomic_file.py"))["write_text"]
    (ROOT / "build").mkdir(exist_ok=True)  # the folder of objects may be another
    write_text(ROOT / "build" / "compile_commands.json", commands)


class BuildKernels(BuildExtension):
    """In-place, editable and wheel builds share one folder of objects, so each compiles only what changed."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        require_compiler()
        super().build_extensions()
        write_compile_commands(Path(self.build_temp))

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CUDA_MODULE:
            target = Path(self.get_ext_fullpath(ext.name)).resolve()
            setup_cuda.build(Path(self.build_temp), target, TORCH_TARGET_VERSION)
        else:
            super().build_extension(ext)


def cuda_extensions() -> list[Extension]:
    """Returns gatedops._C_cuda, or nothing after it prints why."""
    reason = setup_cuda.why_not()
    if reason is not None:
        print(reason)
        return []
    return [Extension(CUDA_MODULE, [])]


if torch.__version__ < "2.10":
    sys.exit(f"gatedops needs torch >= 2.10 and this is {torch.__version__}: install a newer torch.")

# ninja is installed beside this Python, whose folder may be missing in PATH.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

setup(
    ext_modules=[
        CppExtension(
            "gatedops._C",
            sources("csrc/*.cpp", "csrc/*/*.cpp", "csrc/*/cpu/**/*.cpp"),
            include_dirs=[str(ROOT / "csrc")],
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
            extra_compile_args=CXX_FLAGS + CXX_WARNINGS,
        ),
        *cuda_extensions(),
    ],
    cmdclass={"build_ext": BuildKernels},
)
