"""The compiler finds faults of C++: two types of one name, forgotten cases, sets of flags that disagree."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from gatedops import backends

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: its linker compares types")
needs_x86 = pytest.mark.skipif("avx2" not in backends.INSTRUCTION_SETS, reason="the flags of x86-64")
# Files of an instruction set have the types of serial.cpp, and their other types in anonymous namespaces.
SOURCES = [
    path
    for path in sorted(CSRC.rglob("*.cpp"))
    if path.parent.name != "cuda" and path.stem not in {*backends.INSTRUCTION_SETS, "neon", "module"} - {"serial"}
]


def link_errors(sources, folder):
    """Returns what the linker says about types of one name that differ between files; empty if it finds none."""
    flags = [
        "-std=c++17",
        "-O0",
        "-w",
        "-fPIC",
        "-flto",
        "-fvisibility=hidden",
        "-DTORCH_TARGET_VERSION=0x020A000000000000",
    ]
    flags += [f"-I{CSRC}", *(f"-isystem{path}" for path in include_paths())]
    objects = [folder / ("-".join(path.relative_to(path.anchor).parts) + ".o") for path in sources]

    def compile_one(source, made):
        subprocess.run(["g++", *flags, "-c", source, "-o", made], check=True, timeout=200)

    with ThreadPoolExecutor(os.cpu_count()) as jobs:
        list(jobs.map(compile_one, sources, objects))
    # A link to another object compares the types, and makes no machine code, which would take most of the time.
    link = ["g++", "-r", "-flinker-output=rel", "-flto", "-O0", "-Wodr", "-Werror=odr", "-o", folder / "linked.o"]
    done = subprocess.run([*link, *objects], capture_output=True, text=True, timeout=200)
    return "" if done.returncode == 0 else done.stderr


@needs_gcc
def test_a_name_is_one_type_in_the_whole_library(tmp_path):
    assert len(SOURCES) > 15
    assert link_errors(SOURCES, tmp_path) == ""


@pytest.mark.parametrize("isa", [name for name in (*backends.INSTRUCTION_SETS, "neon") if name != "serial"])
def test_a_file_of_an_instruction_set_keeps_its_types_to_itself(isa):
    """The whole file is in an anonymous namespace, but for the lines that register its tables."""
    for path in CSRC.glob(f"*/cpu/{isa}.cpp"):
        code = re.sub(r"//.*|^#.*\n|\s", "", path.read_text().replace("namespace {", "namespace{"), flags=re.MULTILINE)
        begin, registered = "namespacegatedops::cpu{namespace{", rf"GATEDOPS_KERNELS_OF\({isa},k\w+\)"
        assert code.startswith(begin), path
        assert code.count("namespace") == 2, path
        assert re.search(rf"}}}}({registered})+$", code), path


@needs_x86
def test_every_flag_of_the_list_is_looked_up():
    lookup = (CSRC / "core" / "cpu" / "isa.cpp").read_text()
    flags = {flag for flags in backends.INSTRUCTION_SETS.values() for flag in flags}
    assert flags == {flag for flag in flags if f'GATEDOPS_FLAG("{flag}")' in lookup or f'flag == "{flag}"' in lookup}


@needs_gcc
def test_the_linker_sees_two_types_of_one_name(tmp_path):
    for name, field in (("a", "int rows"), ("b", "void (*rows)()")):
        text = (
            f"namespace n {{ struct Rows {{ {field}; virtual ~Rows(); }}; Rows::~Rows() {{}} }}\nn::Rows made_{name};\n"
        )
        (tmp_path / f"{name}.cpp").write_text(text)
    found = link_errors([tmp_path / "a.cpp", tmp_path / "b.cpp"], tmp_path)
    assert "One Definition Rule" in found


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
@pytest.mark.parametrize(
    ("body", "compiles"), [("case E::a: return 1; case E::b: return 2;", True), ("case E::a: return 1;", False)]
)
def test_a_forgotten_case_does_not_compile(body, compiles, tmp_path):
    (tmp_path / "a.cpp").write_text(f"enum class E {{ a, b }};\nint f(E e) {{ switch (e) {{ {body} }} return 0; }}\n")
    warnings = re.search(r"CXX_WARNINGS = (\[.*?\n\])", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    done = subprocess.run(
        ["c++", *ast.literal_eval(warnings), "-fsyntax-only", tmp_path / "a.cpp"], capture_output=True, text=True
    )
    assert (done.returncode == 0) is compiles, done.stderr


@needs_x86
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_a_file_is_compiled_for_flags_that_its_set_asks_the_cpu_for(isa):
    asked = re.search(r'GCC target\("([^"]+)"\)', (CSRC / "core" / "cpu" / f"target_{isa}.h").read_text())[1]
    assert set(asked.split(",")) <= set(backends.INSTRUCTION_SETS[isa])


MADE_UP_CPU = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
static bool made_up(const char* flag) {
  return (std::string(" ") + std::getenv("FLAGS") + " ").find(std::string(" ") + flag + " ") != std::string::npos;
}
#define __builtin_cpu_supports(flag) made_up(flag)
#define __builtin_cpu_init() static_cast<void>(0)
#include "core/cpu/isa.cpp"
int main() {
  for (gatedops::cpu::Isa isa : gatedops::cpu::available_isas()) {
    std::printf("%s ", gatedops::cpu::name(isa));
  }
}
"""
AVX512 = "popcnt avx2 avx512f avx512bw avx512dq avx512vl avx512vpopcntdq avx512vnni"


@pytest.fixture(scope="module")
def sets_of(tmp_path_factory):
    """Returns the instruction sets that a CPU with these flags is said to run."""
    folder = tmp_path_factory.mktemp("isa")
    (folder / "main.cpp").write_text(MADE_UP_CPU)
    subprocess.run(["c++", "-std=c++17", f"-I{CSRC}", folder / "main.cpp", "-o", folder / "main"], check=True)

    def run(flags):
        done = subprocess.run([folder / "main"], env=os.environ | {"FLAGS": flags}, capture_output=True, text=True)
        return [name for name in done.stdout.split() if name != "amx"]  # AMX asks the real CPU for tiles.

    return run


@needs_x86
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a compiler")
@pytest.mark.parametrize(
    ("flags", "sets"),
    [
        ("", ["serial"]),
        ("popcnt", ["serial"]),
        ("avx2", ["serial"]),
        ("popcnt avx2", ["serial", "avx2"]),
        (AVX512, ["serial", "avx2", "avx512"]),
        (AVX512 + " avx512fp16", ["serial", "avx2", "avx512"]),
        (AVX512.replace("avx2 ", ""), ["serial"]),
        *((AVX512.replace(flag, ""), ["serial", "avx2"]) for flag in ("avx512f ", "avx512bw", "avx512vnni")),
        (AVX512.replace("avx512vl ", "avx512vlx "), ["serial", "avx2"]),
    ],
)
def test_a_set_is_available_where_each_of_its_flags_is(flags, sets, sets_of):
    assert sets_of(flags) == sets


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
def test_nothing_that_runs_at_load_is_compiled_for_a_set(tmp_path):
    """Otherwise a CPU without the set could not import gatedops."""
    from gatedops import _C

    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _C.__file__], capture_output=True, text=True
    ).stdout
    begins = [
        part for part in re.split(r"\n\n", listing) if re.match(r"[0-9a-f]+ <(_GLOBAL__sub_I|_Z41__static_init)", part)
    ]
    assert len(begins) > 10
    assert not [part.split("\n")[0] for part in begins if re.search(r"%[yz]mm|\bv[a-z]+\s.*%xmm", part)]
