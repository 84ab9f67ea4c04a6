"""Triton kernels compile without a GPU for sm_80, sm_90 and sm_100, within the limits of each."""

import re

import pytest

triton = pytest.importorskip("triton")

from aot import CAPABILITIES, SHARED_LIMIT, compiled  # noqa: E402

from gatedops.triton import gates, gram  # noqa: E402

TILE = {"M": gram.TILE_M, "N": gram.TILE_N, "WORDS": gram.TILE_WORDS}
# The instruction for products of int8 summed in int32, in the PTX of a capability. For sm_100 Triton chooses tcgen05
# from 3.8 on.
MMA_SYNC = r"mma\.sync\.\S*\.s32\.s8\.s8\.s32"
INTEGER_PRODUCTS = {
    80: MMA_SYNC,
    90: r"wgmma\.mma_async\.\S*\.s32\.s8\.s8",
    100: rf"{MMA_SYNC}|tcgen05\.mma\.\S*kind::i8",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("symmetric", "dtype"),
    [
        (True, "fp64"),  # It takes the most shared memory.
        (False, "fp32"),
        pytest.param(True, "fp32", marks=pytest.mark.slow),
        pytest.param(False, "fp64", marks=pytest.mark.slow),
    ],
)
def test_gram_uses_the_integer_tensor_cores(capability, symmetric, dtype):
    signature = {
        "x_words": "*i32",
        "y_words": "*i32",
        "out": f"*{dtype}",
        "layers": "*i64",
        "scale": f"*{dtype}",
    }
    signature |= dict.fromkeys(("n", "m", "depth", "tiles_n"), "i32")
    signature |= dict.fromkeys(("x_stride", "y_stride", "out_stride"), "i64")
    constants = {"SYMMETRIC": symmetric, "TIMES": True, "ALIGNED": True, **TILE}
    kernel = compiled(gram.gram_kernel, signature, constants, capability, num_warps=8)
    assert kernel.shared <= SHARED_LIMIT[capability]
    assert re.search(INTEGER_PRODUCTS[capability], kernel.ptx)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_overlap_and_row_counts_compile(capability):
    signature = {"x_words": "*i32", "y_words": "*i32", "out": "*i32", "layers": "*i64"}
    signature |= dict.fromkeys(("n", "m", "tiles_n"), "i32") | dict.fromkeys(("x_stride", "y_stride"), "i64")
    constants = {"SYMMETRIC": True, "ALIGNED": True, **TILE}
    kernel = compiled(gram.overlap_kernel, signature, constants, capability, num_warps=8)
    assert kernel.shared <= SHARED_LIMIT[capability]
    signature = {"words": "*i32", "out": "*i32", "layers": "*i64", "n": "i32", "stride": "i64"}
    compiled(gram.row_counts_kernel, signature, {"BLOCK": 32}, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16", "u8"])
def test_packing_compiles(capability, dtype):
    signature = {"q": f"*{dtype}", "words": "*i32"}
    signature |= dict.fromkeys(("channels", "per_position", "used", "total"), "i32")
    signature |= dict.fromkeys(("q_row", "q_position", "q_channel", "words_row"), "i64")
    for aligned in (True, False):
        kernel = compiled(gates.pack_kernel, signature, {"ALIGNED": aligned, "BLOCK": gates.WORDS}, capability)
        assert bool(re.search(r"ld\.global\.v[24]", kernel.ptx)) == aligned
