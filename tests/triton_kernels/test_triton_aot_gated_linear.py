"""The Triton kernels of gated layers compile without a GPU for sm_80, sm_90 and sm_100. For all offered tiles they use
tensor cores, keep to the limit of shared memory, and spill no registers."""

from __future__ import annotations

import re

import pytest
import torch

triton = pytest.importorskip("triton")

from aot import CAPABILITIES, REGISTERS, SHARED_LIMIT, compiled  # noqa: E402

from gatedops.triton.gated_linear import layer_kernel  # noqa: E402
from gatedops.triton.gated_linear_backward import (  # noqa: E402
    SUM_COLS,
    SUM_ROWS,
    bias_gradient_kernel,
    input_gradient_kernel,
    soft_gradients_kernel,
    weight_gradient_kernel,
)
from gatedops.triton.gated_linear_gate import relu_kernel, select_kernel  # noqa: E402
from gatedops.triton.gated_linear_pair import pair_kernel, pair_soft_gradients_kernel  # noqa: E402
from gatedops.triton.gated_linear_tuning import SHARED_SLACK, tiles_of  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MATRIX_UNITS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
READS = ("tma", "aligned", "any")
KERNELS = ("own layer", "hard layer", "soft layer", "pair", "soft pair", "input gradient", "weight gradient")


def matrices(name, tile):
    """Returns the operands of a kernel and the tiles that it reads of them."""
    m, n, k = tile.m, tile.n, tile.k
    if name.endswith("layer"):
        return {"x": (m, k), "weight": (n, k)}
    if name.endswith("pair"):
        return {"h": (m, k), "w_f": (n, k), "z": (m, k), "w_v": (n, k)}
    return {"grad": (m, k), "weight": (k, n)} if name == "input gradient" else {"grad": (k, m), "x": (k, n)}


def problem(name, dtype):
    """Returns a kernel, its other pointers, its int32 and int64 arguments, and its constants."""
    p = f"*{dtype}"
    if name.endswith("layer"):
        kind = name.split()[0]
        pointers = {"bias": p, "gate": p if kind == "soft" else "*i32", "y": p, "product": p}
        sizes, strides = ("rows", "cols", "inner", "x_col", "w_col", "total"), ("x_row", "w_row", "words_row")
        return layer_kernel, pointers, sizes, strides, {"GATE": kind, "BIAS": True}
    if name.endswith("pair"):
        soft = name.startswith("soft")
        pointers = dict.fromkeys(("b_f", "b_v", "h_next", "z_next", "q_out", "v_out"), p) | {"words": "*i32"}
        sizes = ("rows", "cols", "f_inputs", "v_inputs", "h_col", "wf_col", "z_col", "wv_col", "total")
        constants = {"SOFT": soft, "LINEAR": False, "KEEP": soft, "F_BIAS": True, "V_BIAS": True}
        return pair_kernel, pointers, sizes, ("h_row", "wf_row", "z_row", "wv_row", "words_row"), constants
    sizes = ("rows", "width", "inputs", "g_col")
    if name == "input gradient":
        pointers = {"words": "*i32", "dx": p}
        return input_gradient_kernel, pointers, (*sizes, "w_col"), ("g_row", "w_row", "words_row"), {}
    pointers, strides = {"words": "*i32", "dw": "*fp32"}, ("g_row", "x_row", "words_row")
    return weight_gradient_kernel, pointers, (*sizes, "x_col", "part"), strides, {}


def compile_tile(name, dtype, precision, capability, tile, read):
    """Compiles as a launch for a result whose rows are multiples of 16; the kernels specialize on nothing else."""
    kernel, pointers, sizes, strides, constants = problem(name, dtype)
    aligned = [*pointers, "inputs" if name.endswith("gradient") else "cols"]
    signature = pointers | dict.fromkeys(sizes, "i32") | dict.fromkeys(strides, "i64")
    for operand, (rows, cols) in matrices(name, tile).items():
        signature[operand] = f"tensordesc<{dtype}[{rows}, {cols}]>" if read == "tma" else f"*{dtype}"
    if name.endswith("pair"):
        signature |= {"beta": "fp32", "gain": "fp32"}
    constants |= {"PRECISION": precision, "READ": read, "M": tile.m, "N": tile.n, "K": tile.k}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiled(kernel, signature, constants, capability, aligned, **options)


def ways_to_read(capability, precision):
    """Returns the ways to read that launches use there, the best first."""
    return ("tma" if capability >= 90 and precision == "tf32" else "aligned"), "any"


def offered(name, dtype, precision, capability, read):
    return tiles_of(name, DTYPES[dtype], precision, (capability // 10, capability % 10), read)


def assert_within_limits(found, name, tile, dtype, precision, capability, read):
    estimate = tile.shared_bytes(name, DTYPES[dtype].itemsize, (capability // 10, capability % 10))
    assert found.shared <= estimate + SHARED_SLACK, "more shared memory than the estimate for pruning"
    assert found.shared <= SHARED_LIMIT[capability]
    assert found.registers * 32 * tile.warps <= REGISTERS
    assert found.local == 0, f"{found.local} bytes of spilled registers a thread"
    assert (MATRIX_UNITS[capability] in found.ptx) == (precision == "tf32")
    assert ("cp.async.bulk.tensor" in found.ptx) == (read == "tma")
    assert bool(re.search(r"cp\.async\.c[ag].* 0x10", found.ptx)) == (read == "aligned")
    rounded = found.ptx.count("cvt.rna.tf32.f32")
    if dtype == "fp32" and precision == "tf32":  # This is a thread's share of both operands of each product.
        products = 2 if name.endswith("pair") else 1
        assert rounded >= products * (tile.m + tile.n) * tile.k // (32 * tile.warps)
    else:
        assert rounded == 0


QUICK = (
    [(name, "bf16", "tf32") for name in KERNELS]
    + [(name, "fp16", "tf32") for name in ("own layer", "weight gradient")]
    + [(name, "fp32", "tf32") for name in ("own layer", "pair", "input gradient", "weight gradient")]
    + [(name, "fp32", "ieee") for name in ("own layer",)]
)
ALL = [(name, dtype, precision) for dtype, precision in
       (("bf16", "tf32"), ("fp16", "tf32"), ("fp32", "tf32"), ("fp32", "ieee")) for name in KERNELS]  # fmt: skip


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("name", "dtype", "precision"), QUICK)
def test_the_tile_with_the_most_accumulators(name, dtype, precision, capability):
    read = ways_to_read(capability, precision)[0]
    tile = max(offered(name, dtype, precision, capability, read), key=lambda tile: tile.accumulators)
    found = compile_tile(name, dtype, precision, capability, tile, read)
    assert_within_limits(found, name, tile, dtype, precision, capability, read)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("name", "dtype", "precision"), ALL)
def test_every_tile(name, dtype, precision, capability):
    for read in ways_to_read(capability, precision):
        for tile in offered(name, dtype, precision, capability, read):
            found = compile_tile(name, dtype, precision, capability, tile, read)
            assert_within_limits(found, name, tile, dtype, precision, capability, read)


def test_the_largest_tile_is_offered_with_tma_alone():
    """Read by pointers, a pair in this tile spills registers with Triton 3.6; by pointers to single numbers, more tiles
    do."""
    for name in KERNELS:
        for dtype in DTYPES.values():
            sizes = {read: [(t.m, t.n) for t in tiles_of(name, dtype, "tf32", (9, 0), read)] for read in READS}
            assert ((128, 256) in sizes["tma"]) == (dtype != torch.float32 and name != "soft pair")
            assert (128, 256) not in sizes["aligned"]
            assert sizes["any"] == [(64, 64)]


@pytest.mark.parametrize("name", KERNELS)
def test_the_operands_of_a_first_tile_fit_every_gpu(name):
    for dtype in DTYPES.values():
        for capability in CAPABILITIES:
            first = tiles_of(name, dtype, "tf32", (capability // 10, 0), "tma")[0]
            # sm_86 and sm_89 have the least shared memory since sm_80.
            assert first.shared_bytes(name, dtype.itemsize, (8, 6)) <= 99 << 10


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_passes_compile_without_spills(dtype, capability):
    p = f"*{dtype}"
    gated = dict.fromkeys(("q", "z"), p) | {"words": "*i32"}
    gated |= dict.fromkeys(("channels", "per_position", "used"), "i32")
    places = [f"{t}_{axis}" for t in ("q", "z") for axis in ("row", "position", "channel")]
    gated |= dict.fromkeys([*places, "words_row"], "i64")
    pair_soft = dict.fromkeys(("grad_h", "grad_z", "q", "v", "dq", "dv"), p)
    pair_soft |= {"size": "i32", "beta": "fp32", "gain": "fp32"}
    wanted = {"H": True, "Z": True, "V": True, "LINEAR": False, "BLOCK": 1024}
    soft = dict.fromkeys(("grad", "gate", "product", "dv", "dgate"), p) | {"size": "i32"}
    bias = {"grad": p, "words": "*i32", "db": "*fp32"} | dict.fromkeys(("rows", "width", "part"), "i32")
    bias |= {"g_row": "i64", "g_col": "i32", "words_row": "i64"}
    for kernel, signature, constants in (
        (relu_kernel, gated | {"total": "i32"}, {"ALIGNED": True, "BLOCK": 32}),
        (select_kernel, gated, {"ALIGNED": False, "BLOCK": 32}),
        (pair_soft_gradients_kernel, pair_soft, wanted),
        (soft_gradients_kernel, soft, {"GATE": True, "BLOCK": 1024}),
        (bias_gradient_kernel, bias, {"READ": "aligned", "M": SUM_ROWS, "N": SUM_COLS}),
    ):
        assert compiled(kernel, signature, constants, capability).local == 0, kernel.__name__
