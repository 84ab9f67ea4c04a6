"""Errors of building and importing are one sentence, and the package imports from anywhere and stays lean."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from python_process import run_python
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
# torch before 2.13 wraps each header of its pybind11 like this; later versions do not.
REFUSING_HEADER = """
#ifdef TORCH_TARGET_VERSION
#error "pybind11 refuses TORCH_TARGET_VERSION"
#endif
#include_next <pybind11/{name}>
"""


def run_alone(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process that has imported nothing, and whose folder is this one."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=dict(os.environ) | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def setup_error(folder: Path, **environment: str) -> str:
    """Returns the one line that setup.py prints if it cannot build; it fails before anything is written."""
    command = ["setup.py", "--quiet", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    done = run_alone(*command, cwd=ROOT, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    # A torch built for CUDA logs a line when it finds a toolkit and no GPU.
    ours = re.sub(r"^W.* No CUDA runtime is found, using CUDA_HOME=.*\n", "", done.stderr)
    lines = ours.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_no_torch_is_one_sentence(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    error = setup_error(tmp_path, PYTHONPATH=str(tmp_path))
    assert error.startswith("gatedops needs torch to build (No module named 'torch'): install torch")


@pytest.mark.parametrize("compiler", ["", "/nowhere/g++"])
def test_no_compiler_is_one_sentence(tmp_path, compiler):
    error = setup_error(tmp_path, PATH=str(tmp_path), CXX=compiler)
    assert error.startswith(f"gatedops needs a C++17 compiler ({compiler or 'c++, g++, clang++'}: not found)")
    assert "apt install g++" in error


def test_the_package_imports_from_any_folder(tmp_path):
    done = run_alone("-c", "import gatedops; print(gatedops.__file__)", cwd=tmp_path)
    assert done.stdout.strip().endswith("__init__.py"), done.stderr


def test_a_package_without_its_extension_says_how_to_build_it(tmp_path):
    done = run_python("-c", "import sys; sys.modules['gatedops._C'] = None; import gatedops", cwd=tmp_path)
    assert "ImportError: gatedops._C cannot be loaded" in done.stderr
    assert done.stderr.strip().endswith("build it with `make setup` or `pip install --no-build-isolation .`")


def test_import_is_lean(tmp_path):
    code = """
        import sys, torch
        before = set(sys.modules)
        import gatedops
        print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    done = run_python("-c", "\n".join(map(str.strip, code.splitlines())), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    heavy = {"matplotlib", "pandas", "safetensors", "scipy", "sklearn", "tqdm", "triton"}
    assert "gatedops" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def compile_errors(source: Path, *folders: Path | str) -> str:
    """Returns why a file does not compile for the stable ABI with these folders searched first for headers, or ""."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), "c++")
    includes = ["-I" + str(path) for path in [*folders, *include_paths(), sysconfig.get_path("include")]]
    command = [*shlex.split(compiler), "-std=c++17", "-DTORCH_TARGET_VERSION=0x020A000000000000", "-fsyntax-only"]
    done = subprocess.run([*command, *includes, str(source)], capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else ""


def test_the_module_compiles_where_pybind11_refuses_the_stable_abi(tmp_path):
    headers = tmp_path / "pybind11"
    headers.mkdir()
    for path in Path(include_paths()[0], "pybind11").glob("*.h"):
        (headers / path.name).write_text(REFUSING_HEADER.format(name=path.name))
    careless = tmp_path / "careless.cpp"
    careless.write_text("#include <pybind11/stl.h>\n")
    assert "pybind11 refuses TORCH_TARGET_VERSION" in compile_errors(careless, tmp_path)
    csrc = ROOT / "csrc"
    assert compile_errors(csrc / "module.cpp", tmp_path, csrc) == ""
