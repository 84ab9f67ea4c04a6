"""Every CUDA source compiles for sm_80 and sm_90a against any torch, without a GPU; checks the machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import util
from itertools import chain
from pathlib import Path

import pytest
import torch

from gatedops.backends import cuda_library

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc: install the CUDA toolkit"),
    pytest.mark.timeout(900),  # It compiles for half a minute on two quiet cores.
]

TORCH_TARGET = "0x020A000000000000"
REGISTERS = {"gram_sm80": 255, "gram_sm90": 128}  # A thread has these at launch.
TENSOR_CORES = {("gram_sm80", "80"): "BMMA", ("gram_sm80", "90a"): "BMMA", ("gram_sm90", "90a"): "BGMMA"}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture: ptxas's report, and its instructions in order."""

    name: str
    symbol: str
    architecture: str
    report: str
    instructions: list[str]


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Compiles each source alone; maps it, relative to csrc, to its object and ptxas's report."""
    folder = tmp_path_factory.mktemp("cuda")

    def compiled(source):
        target = folder / setup_cuda.object_name(source)
        command = setup_cuda.compile_command(source, target, TORCH_TARGET, ["80", "90a"])
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return str(source.relative_to(setup_cuda.CSRC)), (target, done.stdout + done.stderr)

    with ThreadPoolExecutor(2) as jobs:
        return dict(jobs.map(compiled, setup_cuda.SOURCES))


def reports(text):
    """Maps a kernel and an architecture to ptxas's lines about it."""
    parts = re.split(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", text)[1:]
    return {(parts[i], parts[i + 1]): parts[i + 2] for i in range(0, len(parts), 3)}


def disassembled(target):
    """Maps a kernel and an architecture to its opcodes."""
    tools = Path(util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([tools / "cuobjdump", "-sass", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, architecture, opcodes = {}, "", []
    for line in done.stdout.splitlines():
        if heading := re.search(r"arch = sm_(\w+)", line):
            architecture = heading[1]
        elif function := re.search(r"Function : (\S+)", line):
            opcodes = found.setdefault((function[1], architecture), [])
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            opcodes.append(instruction[1])
    return found


@pytest.fixture(scope="module")
def kernels(objects):
    if util.find_spec("triton") is None:
        pytest.skip("needs triton, whose wheel holds the disassembler: pip install triton")
    found = []
    for source in ("gram/cuda/sm80.cu", "gram/cuda/sm90.cu"):
        target, text = objects[source]
        told = reports(text)
        for (symbol, architecture), opcodes in disassembled(target).items():
            name = "gram_" + Path(source).stem
            if (name, architecture) in TENSOR_CORES and name in symbol:
                found.append(Kernel(name, symbol, architecture, told[symbol, architecture], opcodes))
    return found


def test_each_output_type_has_its_kernel(kernels):
    """Kernels write three floats and counts; products and selections are of float32 and float64. The wgmma kernels,
    with and without clusters, have no float64."""
    count = {key: sum((k.name, k.architecture) == key for k in kernels) for key in TENSOR_CORES}
    assert count == {("gram_sm80", "80"): 8, ("gram_sm80", "90a"): 8, ("gram_sm90", "90a"): 10}


def of_counts(kernel):
    """Whether the kernel writes int32 counts, so that it has no Sigma."""
    return "WriteTileIiE" in kernel.symbol


def in_clusters(kernel):
    """Whether the wgmma kernel is the one whose blocks work in pairs."""
    return "Li2EEE" in kernel.symbol


def test_counts_are_made_by_the_binary_tensor_cores(kernels):
    for kernel in kernels:
        opcodes = {opcode.split(".")[0] for opcode in kernel.instructions}
        assert TENSOR_CORES[kernel.name, kernel.architecture] in opcodes, kernel.symbol
        assert not opcodes & {"POPC", "UPOPC"}, kernel.symbol


def test_sigma_of_bytes_is_made_by_the_integer_tensor_cores(kernels):
    """They make nothing else, except that emulated products of single bits take such instructions too."""
    for kernel in kernels:
        found = {opcode for opcode in kernel.instructions if re.match(r"I(G|M)MMA|IMMA", opcode)}
        bytes_only = {"IGMMA.64x128x32.U8.U8"} if kernel.name == "gram_sm90" else {"IMMA.16832.U8.U8"}
        assert found == (set() if of_counts(kernel) else bytes_only), kernel.symbol


def test_sigma_of_floats_is_made_by_the_tf32_tensor_cores(kernels):
    """There are twelve products for each 32 columns, by wgmma alone."""
    for kernel in kernels:
        found = [opcode for opcode in kernel.instructions if "TF32" in opcode]
        expected = 0 if kernel.name == "gram_sm80" or of_counts(kernel) else 12
        assert found == ["HGMMA.64x128x8.F32.TF32"] * expected, kernel.symbol


def test_binary_products_and_their_copies_are_the_wide_ones(kernels):
    for kernel in kernels:
        opcodes = set(kernel.instructions)
        if kernel.name == "gram_sm90":
            assert {"BGMMA.64x128x256.AND.POPC", "UTMALDG.2D"} <= opcodes
            assert ("UTMALDG.2D.MULTICAST" in opcodes) == in_clusters(kernel)
        else:
            assert {"BMMA.168256.AND.POPC", "LDSM.16.M88.4"} <= opcodes
            assert any(opcode.startswith("LDGSTS") and ".128" in opcode for opcode in opcodes)


def test_full_stages_are_multiplied_without_a_wait_between(kernels):
    """The four products of a stage follow each other, with only new descriptors between them; only the last is waited
    for."""
    for kernel in kernels:
        if kernel.name != "gram_sm90":
            continue
        at = [i for i, opcode in enumerate(kernel.instructions) if opcode.startswith("BGMMA")]
        runs = [kernel.instructions[at[i] : at[i + 3]] for i in range(len(at) - 3)]
        bare = [run for run in runs if {opcode.split(".")[0] for opcode in run} <= {"BGMMA", "UIADD3", "UMOV"}]
        assert len(bare) == 1, kernel.symbol


def test_a_fence_of_the_device_comes_only_with_a_barrier_of_the_cluster(kernels):
    """Both are at the beginning and at the end of a kernel. An arrival at another block's barrier for a stage orders no
    writes: with a fence it would take longer than the stage's products. Without clusters there is neither."""
    for kernel in kernels:
        if kernel.name == "gram_sm90":
            found, expected = kernel.instructions, 2 if in_clusters(kernel) else 0
            assert found.count("MEMBAR.ALL.GPU") == found.count("UCGABAR_ARV") == expected, kernel.symbol


def test_consumers_do_not_compute_which_tile_is_next(kernels):
    """Between taking their registers and their first product they set the seeds of counts and product, 64 each, and run
    fewer than a hundred other instructions. The schedule with its divisions took 280 and a call."""
    for kernel in kernels:
        if kernel.name == "gram_sm90":
            found = kernel.instructions
            begin = found.index("USETMAXREG.TRY_ALLOC.CTAPOOL")
            first = next(i for i in range(begin, len(found)) if found[i].startswith("BGMMA"))
            assert first - begin < (64 if of_counts(kernel) else 128) + 100, kernel.symbol
            assert not {"CALL", "I2F", "F2I", "MUFU"} & {opcode.split(".")[0] for opcode in found[begin:first]}


def test_whole_tiles_are_written_sixteen_bytes_a_lane(kernels):
    """This holds for their rows, and for their columns in the mirror image; bfloat16 has four values, 8 bytes."""
    for kernel in kernels:
        if "WriteTile" in kernel.symbol:
            wide = "STG.E.64" if "bfloat16" in kernel.symbol else "STG.E.128"
            assert kernel.instructions.count(wide) >= 2, kernel.symbol


def test_nothing_goes_through_local_memory(kernels):
    for kernel in kernels:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in kernel.report
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in kernel.instructions}


def test_registers_stay_under_the_limit(kernels):
    for kernel in kernels:
        used = re.search(r"Used (\d+) registers", kernel.report)
        assert used, kernel.report
        assert int(used[1]) <= REGISTERS[kernel.name]


@pytest.fixture(scope="module")
def stretches(objects):
    """Returns the kernels of conv_gram that hold maps in registers."""
    if util.find_spec("triton") is None:
        pytest.skip("needs triton, whose wheel holds the disassembler: pip install triton")
    target, text = objects["conv_gram/cuda/kernels.cu"]
    told = reports(text)
    return [
        Kernel("conv_gram", name, architecture, told[name, architecture], opcodes)
        for (name, architecture), opcodes in disassembled(target).items()
        if "stretch_kernel" in name
    ]


def assert_maps_fit(name, report):
    """128 registers let two blocks run on a multiprocessor. With 32 rows of float32, a counter or two goes to
    memory."""
    stack, used = (int(re.search(pattern, report)[1]) for pattern in (r"(\d+) bytes stack", r"Used (\d+) registers"))
    assert used <= (128 if "IfLi" in name else 255)
    assert stack <= (32 if "IfLi32" in name else 0)


def test_maps_of_pixels_stay_in_registers(stretches):
    """This holds for float32 and float64, for squares of 8, 16 and 32 and all other shapes, on both architectures. The
    instructions that count overlaps or shuffle rows use no local memory; the float64 sums at the end may."""
    assert len(stretches) == 16
    for kernel in stretches:
        assert_maps_fit(kernel.symbol, kernel.report)
        inner = [block for block in blocks_of(kernel.instructions) if {"POPC", "SHFL"} & set(block)]
        inner = {*chain.from_iterable(block for block in inner if "IdLi" in kernel.symbol or "DADD" not in block)}
        assert {"POPC", "SHFL", "LDG"} <= inner
        assert not {"LDL", "STL"} & inner


@pytest.mark.slow
def test_maps_of_pixels_stay_in_registers_on_blackwell(tmp_path):
    source = setup_cuda.CSRC / "conv_gram" / "cuda" / "kernels.cu"
    command = setup_cuda.compile_command(source, tmp_path / "made.o", TORCH_TARGET, ["100"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: report for (name, _), report in reports(done.stdout + done.stderr).items() if "stretch" in name}
    assert len(found) == 8
    for name, report in found.items():
        assert_maps_fit(name, report)


def test_sums_of_maps_are_never_contracted(stretches):
    """The bits of a map are those of the CPU, which contracts nothing."""
    for kernel in stretches:
        if "If" in kernel.symbol:
            assert "FFMA" not in {opcode.split(".")[0] for opcode in kernel.instructions}


def blocks_of(opcodes):
    """Returns the opcodes without their modifiers, cut at branches."""
    blocks = [[]]
    for opcode in opcodes:
        blocks[-1].append(opcode.split(".")[0])
        if blocks[-1][-1] in ("BRA", "BRX", "EXIT", "RET", "CALL"):
            blocks.append([])
    return blocks


def test_registers_move_to_the_consumers(kernels):
    """If ptxas cannot tell the roles of warps apart, it ignores setmaxnreg, and only warns."""
    for kernel in kernels:
        if kernel.name == "gram_sm90":
            moved = [opcode for opcode in kernel.instructions if opcode.startswith("USETMAXREG")]
            assert len(moved) == 3, moved


def test_wgmma_is_not_serialized(objects):
    assert "serialized" not in objects["gram/cuda/sm90.cu"][1]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("", ["80", "90a"]),
        (" ", ["80", "90a"]),
        ("8.0;9.0", ["80", "90a"]),
        ("9.0a 8.6+PTX", ["86", "90a"]),
        ("10.0", ["100"]),
        ("5.2 6.0 7.5 8.0 9.0+PTX", ["80", "90a"]),  # Images for many GPUs set this.
    ],
)
def test_torch_cuda_arch_list(listed, names):
    assert setup_cuda.architectures(listed) == names


@pytest.mark.parametrize("listed", ["7.5", "6.0;7.0+PTX", "8.0;Hopper"])
def test_a_list_without_an_architecture_that_has_binary_tensor_cores_is_refused(listed):
    named = "Hopper" if "Hopper" in listed else listed
    with pytest.raises(
        SystemExit, match=rf"TORCH_CUDA_ARCH_LIST: got '{re.escape(named)}', needs versions from 8\.0 on"
    ):
        setup_cuda.architectures(listed)


@pytest.fixture(scope="module")
def library(objects, tmp_path_factory):
    target = tmp_path_factory.mktemp("linked") / "_C_cuda.so"
    command = setup_cuda.link_command([made for made, _ in objects.values()], target)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


WAITS = ("Synchronize", "cudaMemcpy", "cudaMemset", "cudaMalloc", "cudaFree", "cudaStreamWait", "cudaEvent")


def test_nothing_waits_for_the_gpu(objects):
    """The objects call no function of the runtime that makes the host wait, or that a CUDA graph cannot capture."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm: apt install binutils")
    called = set()
    for target, _ in objects.values():
        done = subprocess.run(["nm", "--undefined-only", target], capture_output=True, text=True, check=True)
        called |= {line.split()[-1] for line in done.stdout.splitlines() if " cuda" in line}
    assert "cudaLaunchKernelExC" in called
    assert not {name for name in called if any(word in name for word in WAITS)}


def test_the_library_says_what_it_is_built_for(library):
    assert cuda_library.architectures(library) == ["80", "90a"]


def test_the_library_tells_which_kernel_ran(library):
    """ctypes finds the function, and the names that it returns are in the launchers."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm: apt install binutils")
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True)
    assert "gatedops_last_gram_kernel" in done.stdout
    text = library.read_bytes()
    assert all(name.encode() + b"\0" in text for name in cuda_library.GRAM_KERNELS)


def test_the_library_needs_nothing_that_a_torch_for_cuda_lacks(library):
    """Undefined symbols belong to torch, three of them to its CUDA part, or to the system."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm: apt install binutils")
    folder = Path(torch.__file__).parent / "lib"

    def symbols(path, which):
        done = subprocess.run(["nm", "-D", which, path], capture_output=True, text=True, check=True)
        return {line.split()[-1] for line in done.stdout.splitlines()}

    needed = {s for s in symbols(library, "--undefined-only") if "torch" in s}
    offered = symbols(folder / "libtorch_cpu.so", "--defined-only") | symbols(folder / "libc10.so", "--defined-only")
    assert needed
    assert needed - offered <= {"aoti_torch_get_current_cuda_stream"}
