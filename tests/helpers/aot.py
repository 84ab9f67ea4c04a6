"""Compiles Triton kernels ahead of time, without a GPU, and reports what the compiler says they take."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # A block may use this many bytes of shared memory.
REGISTERS = 1 << 16  # A multiprocessor has this many registers, and all warps of a block have to fit.
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """The PTX, and per thread the registers and the bytes of local memory (spills, stacks) that ptxas gave."""

    ptx: str
    shared: int
    registers: int
    local: int


def compiled(kernel, signature, constants, capability, aligned=(), **options) -> Compiled:
    """Compiles for a compute capability (80, 90, 100).

    `signature` maps an argument to its type ("*bf16", "i32", "tensordesc<fp16[64, 64]>"), and `constants` to its value,
    constexpr or not. `aligned` are arguments that are multiples of 16, or pointers on 16 bytes.
    """
    types = signature | dict.fromkeys(constants, "constexpr")
    types = {name: types[name] for name in kernel.arg_names}
    divisible = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=divisible)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, local = _resources(found.asm["cubin"])
    return Compiled(found.asm["ptx"], found.metadata.shared, registers, local)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Reads the registers and local bytes of a thread from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True)
    found = re.search(rb"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1]), int(found[2]) + int(found[3])
