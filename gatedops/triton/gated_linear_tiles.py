"""Pieces of the gated layers' kernels: order of the tiles, loads, products, and gates of a tile as words and back.

A matrix is read tile by tile, and constexpr READ says how: "tma", through a TMA descriptor; "aligned", by pointers to
contiguous rows of whole pieces of 16 bytes, each on 16 bytes; "any", by pointers with any strides. What lies outside a
matrix reads as 0. Offsets are 64-bit. READ is all that the compiler is told of a matrix that is read: Triton compiles a
kernel of its own for each set of arguments that are 1 or multiples of 16, and so most of them are not specialized on.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Python runs the kernels then, and inline assembly cannot be used.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
GROUP = tl.constexpr(8)  # rows of tiles that run beside each other, so that their operands are shared through L2


@triton.jit
def tile_of(program, rows, cols, M: tl.constexpr, N: tl.constexpr):
    """First row and column of a program's tile: columns of GROUP tiles, one after the other."""
    tiles_m, tiles_n = tl.cdiv(rows, M), tl.cdiv(cols, N)
    group = program // (GROUP * tiles_n)
    height = min(tiles_m - group * GROUP, GROUP)
    within = program % (GROUP * tiles_n)
    return (group * GROUP + within % height) * M, within // height * N


@triton.jit
def load_tile(
    source, row, col, rows, cols, row_stride, col_stride, M: tl.constexpr, N: tl.constexpr, READ: tl.constexpr
):
    """(M, N) of a matrix (rows, cols) from (row, col) on."""
    if READ == "tma":
        tile = source.load([row, col])
    else:
        r, c = row + tl.arange(0, M), col + tl.arange(0, N)
        if READ == "aligned":
            piece: tl.constexpr = 128 // source.dtype.element_ty.primitive_bitwidth
            # Both are multiples of it already: this tells the compiler.
            cols, row_stride = cols // piece * piece, row_stride // piece * piece
            at = tl.multiple_of(source + (r[:, None].to(tl.int64) * row_stride + c[None, :]), (1, 16))  # bytes
        else:
            at = source + (r[:, None].to(tl.int64) * row_stride + c[None, :].to(tl.int64) * col_stride)
        tile = tl.load(at, mask=(r < rows)[:, None] & (c < cols)[None, :], other=0.0)
    return tile


@triton.jit
def as_operand(tile, PRECISION: tl.constexpr):
    """float32 numbers rounded to TF32 where tensor cores are to multiply them as such, ties away from 0; the tensor
    cores themselves cut off the last 13 bits, which is twice the error."""
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
    """Words (M, N / 32) of a tile (M, N) from (row, col) on, of a layer (rows, cols); col is a multiple of 32."""
    r, word = row + tl.arange(0, M), col // 32 + tl.arange(0, N // 32)
    at = r[:, None].to(tl.int64) * words_row + word[None, :]
    return tl.load(words + at, mask=(r < rows)[:, None] & (word * 32 < cols)[None, :], other=0)


@triton.jit
def store_gates(words, packed, row, col, rows, cols, total, words_row, M: tl.constexpr, N: tl.constexpr):
    """Writes the words (M, N / 32) of a tile, and where it is the last of its rows the zeros behind it."""
    r = row + tl.arange(0, M)
    at = words + r[:, None].to(tl.int64) * words_row
    word = col // 32 + tl.arange(0, N // 32)
    tl.store(at + word[None, :], packed, mask=(r < rows)[:, None] & (word < total)[None, :])
    if col + N >= cols:
        rest = (col + N) // 32 + tl.arange(0, 8)  # a layer's words are a multiple of 8
        tl.store(at + rest[None, :], 0, mask=(r < rows)[:, None] & (rest < total)[None, :])


@triton.jit
def pack_tile(on, M: tl.constexpr, N: tl.constexpr):
    """Gates (M, N) to words (M, N / 32)."""
    bits = on.to(tl.int32).reshape(M, N // 32, 32) << tl.arange(0, 32)[None, None, :]
    return tl.sum(bits, axis=2)


@triton.jit
def unpack_tile(packed, M: tl.constexpr, N: tl.constexpr):
    """Words (M, N / 32) to gates (M, N)."""
    return ((packed[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1).reshape(M, N) != 0


@triton.jit
def masked(tile, packed, M: tl.constexpr, N: tl.constexpr):
    """tile (M, N) where its gates (M, N / 32) are on, else 0: AND with the gate spread over all bits of a number. For
    operands, inside the sum: a third fewer instructions than `tl.where`, which takes fewer registers."""
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
    """Tile (M, N) of x W^T + b, float32, x (rows, inner) and W (cols, inner)."""
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
    """Writes (M, N) into a contiguous matrix (rows, cols) from (row, col) on."""
    r, c = row + tl.arange(0, M), col + tl.arange(0, N)
    at = r[:, None].to(tl.int64) * cols + c[None, :]
    tl.store(out + at, tile.to(out.dtype.element_ty), mask=(r < rows)[:, None] & (c < cols)[None, :])


@triton.jit
def relu(q):
    """torch's relu: NaN and -0.0 pass."""
    return tl.where(q < 0, 0.0, q)


@triton.jit
def sigmoid(t):
    """sigmoid(t) and its derivative, which as s * (1 - s) would lose digits where s is close to 1."""
    e = tl.exp(-tl.abs(t))
    d = 1.0 / (1.0 + e)
    return tl.where(t < 0, e * d, d), e * d * d
