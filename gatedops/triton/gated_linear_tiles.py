"""Pieces of the gated layers' kernels: order of the tiles, loads, products, and gates of a tile as words and back.

A matrix is read tile by tile, and constexpr READ says how. With "tma" it is read through a TMA descriptor. With
"aligned" it is read by pointers; its rows are contiguous, begin on 16 bytes, and are multiples of 16 bytes. With "any"
it is read by pointers with any strides. Elements outside a matrix read as 0. Offsets are 64-bit.

Triton compiles a kernel of its own for each set of arguments that are 1 or multiples of 16. To avoid that, most
arguments are not specialized on, and READ is all that the compiler knows about a matrix that is read.
"""

from __future__ import annotations

import triton
import triton.language as tl

# If Python interprets the kernels, inline assembly cannot be used.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
GROUP = tl.constexpr(8)  # This many rows of tiles run beside each other, so that they share operands in the L2 cache.


@triton.jit
def tile_of(program, rows, cols, M: tl.constexpr, N: tl.constexpr):
    """Returns the first row and column of a program's tile. Tiles go through columns of GROUP tiles, one by one."""
    tiles_m, tiles_n = tl.cdiv(rows, M), tl.cdiv(cols, N)
    group = program // (GROUP * tiles_n)
    height = min(tiles_m - group * GROUP, GROUP)
    within = program % (GROUP * tiles_n)
    return (group * GROUP + within % height) * M, within // height * N


@triton.jit
def load_tile(
    source, row, col, rows, cols, row_stride, col_stride, M: tl.constexpr, N: tl.constexpr, READ: tl.constexpr
):
    """Returns the tile (M, N) of a matrix (rows, cols) from (row, col) on."""
    if READ == "tma":
        tile = source.load([row, col])
    else:
        r, c = row + tl.arange(0, M), col + tl.arange(0, N)
        if READ == "aligned":
            piece: tl.constexpr = 128 // source.dtype.element_ty.primitive_bitwidth
            # Both already are multiples of it; the compiler learns it from this line.
            cols, row_stride = cols // piece * piece, row_stride // piece * piece
            at = tl.multiple_of(source + (r[:, None].to(tl.int64) * row_stride + c[None, :]), (1, 16))  # bytes
        else:
            at = source + (r[:, None].to(tl.int64) * row_stride + c[None, :].to(tl.int64) * col_stride)
        tile = tl.load(at, mask=(r < rows)[:, None] & (c < cols)[None, :], other=0.0)
    return tile


@triton.jit
def as_operand(tile, PRECISION: tl.constexpr):
    """Rounds float32 numbers to TF32, ties away from 0, if the tensor cores multiply them as TF32. The tensor cores
    would cut off the last 13 bits, which makes twice the error."""
    if tile.dtype == tl.float32 and PRECISION == "tf32":
        if INTERPRETED:
            bits = tile.to(tl.int32, bitcast=True)
            bits = tl.where(tile == tile, (bits + 0x1000) & -0x2000, bits)
        else:
            bits = tl.inline_asm_elementwise(
                "cvt.rna.tf32.f32 $0, $1;", "=r,r", [tile], dtype=tl.int32, is_pure=True, pack=1
            )
        tile = bits.to(tl.float32, bitcast=True)
    return tile


@triton.jit
def load_gates(words, row, col, rows, cols, words_row, M: tl.constexpr, N: tl.constexpr):
    """Returns the words (M, N / 32) of the tile (M, N) from (row, col) on of a layer (rows, cols). col is a multiple of
    32."""
    r, word = row + tl.arange(0, M), col // 32 + tl.arange(0, N // 32)
    at = r[:, None].to(tl.int64) * words_row + word[None, :]
    return tl.load(words + at, mask=(r < rows)[:, None] & (word * 32 < cols)[None, :], other=0)


@triton.jit
def store_gates(words, packed, row, col, rows, cols, total, words_row, M: tl.constexpr, N: tl.constexpr):
    """Writes the words (M, N / 32) of a tile and, if it is the last of its rows, the zeros behind it."""
    r = row + tl.arange(0, M)
    at = words + r[:, None].to(tl.int64) * words_row
    word = col // 32 + tl.arange(0, N // 32)
    tl.store(at + word[None, :], packed, mask=(r < rows)[:, None] & (word < total)[None, :])
    if col + N >= cols:
        rest = (col + N) // 32 + tl.arange(0, 8)  # A layer has a multiple of 8 words.
        tl.store(at + rest[None, :], 0, mask=(r < rows)[:, None] & (rest < total)[None, :])


@triton.jit
def pack_tile(on, M: tl.constexpr, N: tl.constexpr):
    """Packs gates (M, N) into words (M, N / 32)."""
    bits = on.to(tl.int32).reshape(M, N // 32, 32) << tl.arange(0, 32)[None, None, :]
    return tl.sum(bits, axis=2)


@triton.jit
def unpack_tile(packed, M: tl.constexpr, N: tl.constexpr):
    """Unpacks words (M, N / 32) into gates (M, N)."""
    return ((packed[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1).reshape(M, N) != 0


@triton.jit
def masked(tile, packed, M: tl.constexpr, N: tl.constexpr):
    """Returns tile (M, N) with zeros for the gates (M, N / 32) that are off.

    Each gate is spread over all bits of a number, and ANDed with it. This takes a third fewer instructions than
    `tl.where` but more registers. It is meant for operands, inside the loop of a sum."""
    spread = ((packed[:, :, None] << (31 - tl.arange(0, 32))[None, None, :]) >> 31).reshape(M, N)
    if tile.dtype.primitive_bitwidth == 16:
        kept = tile.to(tl.int16, bitcast=True) & spread.to(tl.int16)
    else:
        kept = tile.to(tl.int32, bitcast=True) & spread
    return kept.to(tile.dtype, bitcast=True)


@triton.jit
def pre_activation(
    x, weight, bias, row, col, rows, cols, inner, x_row, x_col, w_row, w_col,
    BIAS: tl.constexpr, PRECISION: tl.constexpr, READ: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Returns a tile (M, N) of x W^T + b in float32. x is (rows, inner) and W is (cols, inner)."""
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, inner, K):
        left = as_operand(load_tile(x, row, k, rows, inner, x_row, x_col, M, K, READ), PRECISION)
        right = as_operand(load_tile(weight, col, k, cols, inner, w_row, w_col, N, K, READ), PRECISION)
        total = tl.dot(left, right.T, total, input_precision=PRECISION)
    if BIAS:
        c = col + tl.arange(0, N)
        total += tl.load(bias + c, mask=c < cols, other=0.0).to(tl.float32)[None, :]
    return total


@triton.jit
def store_tile(out, tile, row, col, rows, cols, M: tl.constexpr, N: tl.constexpr):
    """Writes a tile (M, N) into a contiguous matrix (rows, cols) from (row, col) on."""
    r, c = row + tl.arange(0, M), col + tl.arange(0, N)
    at = r[:, None].to(tl.int64) * cols + c[None, :]
    tl.store(out + at, tile.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (c < cols)[None, :])


@triton.jit
def relu(q):
    """Returns relu(q) as torch does: NaN and -0.0 stay."""
    return tl.where(q < 0, 0.0, q)


@triton.jit
def sigmoid(t):
    """Returns sigmoid(t) and its derivative. Computed as s * (1 - s), the derivative would lose digits if s is close
    to 1."""
    e = tl.exp(-tl.abs(t))
    d = 1.0 / (1.0 + e)
    return tl.where(t < 0, e * d, d), e * d * d
