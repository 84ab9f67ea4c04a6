"""Pieces of the gated layers' kernels: order of the tiles, loads, products, and gates of a tile as words and back.

A matrix is read tile by tile, through a TMA descriptor (constexpr TMA) or by pointers with any strides; what lies
outside it reads as 0. Offsets are 64-bit. In the kernels a stride from row to row is declared as such; one from column
to column is not, for Triton compiles a kernel of its own for a stride of 1, and only of an undeclared argument.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
    source, row, col, rows, cols, row_stride, col_stride, M: tl.constexpr, N: tl.constexpr, TMA: tl.constexpr
):
    """(M, N) of a matrix (rows, cols) from (row, col) on."""
    if TMA:
        tile = source.load([row, col])
    else:
        r, c = row + tl.arange(0, M), col + tl.arange(0, N)
        at = r[:, None].to(tl.int64) * row_stride + c[None, :].to(tl.int64) * col_stride
        tile = tl.load(source + at, mask=(r < rows)[:, None] & (c < cols)[None, :], other=0.0)
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
    BIAS: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Tile (M, N) of x W^T + b, float32, x (rows, inner) and W (cols, inner)."""
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, inner, K):
        left = load_tile(x, row, k, rows, inner, x_row, x_col, M, K, TMA)
        right = load_tile(weight, col, k, cols, inner, w_row, w_col, N, K, TMA)
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
