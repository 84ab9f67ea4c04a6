"""Builds gatedops._C. Everything that is not compilation stands in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ModuleNotFoundError as error:
    sys.exit(
        f"gatedops needs torch to build ({error}): install torch >= 2.10, then use pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent
# The oldest torch that the binary loads on: 2.10 (stable ABI, one byte each for major and minor).
TORCH_TARGET_VERSION = "0x020A000000000000"
# Baseline code of the architecture: files that need an instruction set ask for it with a pragma. No
# contraction, no fast-math: products of counts are the same bits on every instruction set.
CXX_FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]


def require_compiler() -> None:
    """Leaves in CXX the compiler that both compiling and linking use, or exits."""
    wanted = os.environ.get("CXX")
    found = next(filter(shutil.which, [wanted.split()[-1]] if wanted else ["c++", "g++", "clang++"]), None)
    if found is None:
        sys.exit(
            f"gatedops needs a C++17 compiler ({wanted or 'c++, g++ or clang++'} is not on PATH): "
            "install one (Debian and Ubuntu: apt install g++; macOS: xcode-select --install) or set CXX."
        )
    os.environ.setdefault("CXX", found)


def sources(*patterns: str) -> list[str]:
    """Files of csrc/ that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


class BuildKernels(BuildExtension):
    """In-place, editable and wheel builds share one folder of objects, so each compiles only what changed."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        require_compiler()
        super().build_extensions()


# ninja is installed beside this Python, which need not be on PATH.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

setup(
    ext_modules=[
        CppExtension(
            "gatedops._C",
            sources("*.cpp", "cpu/*.cpp"),
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
            extra_compile_args=CXX_FLAGS,
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
)
