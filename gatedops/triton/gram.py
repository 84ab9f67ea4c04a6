"""The Gram family on any GPU that Triton supports, from packed bits, in one pass over all layers of a tile.

Bits are unpacked to int8 in registers and multiplied on the integer tensor cores, which is exact. At the end of a layer
a count becomes a float32 and multiplies the running product. Population counts on the ordinary cores would be an order
of magnitude slower. A symmetric problem computes the tiles on and below the diagonal and writes each of them twice.

The int8 rate of the tensor cores bounds the counts: 1979e12 operations a second on an H100 or H200
(benchmarks/_gram/gpu_limits.py), a sixth of what their products of single bits reach. Unpacking runs beside it on the
ordinary cores and is not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_M, TILE_N = 128, 128  # The int32 counts and the product of a tile fill the registers of 8 warps.
TILE_WORDS = 4  # This many words are multiplied at a time: K = 128 gates.
WORKSPACE = 1 << 26  # npk_matvec and npk_gram_backward hold at most this many bytes of a Gram at a time.


@triton.jit
def _bits(words, WORDS: tl.constexpr):
    """Unpacks (rows, WORDS) int32 into (rows, 32 * WORDS) int8 of 0 and 1."""
    bit = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return bit.to(tl.int8).reshape(words.shape[0], 32 * WORDS)


@triton.jit
def _tile_counts(
    x_words, y_words, rows, cols, n, m, x_stride, y_stride, first, y_first, count,
    M: tl.constexpr, N: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Counts the gates of one layer that are on for both inputs of each pair, int32 (M, N)."""
    total = tl.zeros((M, N), tl.int32)
    step = tl.arange(0, WORDS)
    for k in range(0, count, WORDS):
        word = k + step
        x_at = rows[:, None].to(tl.int64) * x_stride + first + word[None, :]
        y_at = cols[:, None].to(tl.int64) * y_stride + y_first + word[None, :]
        x_packed = tl.load(x_words + x_at, mask=(rows < n)[:, None] & (word < count)[None, :], other=0)
        y_packed = tl.load(y_words + y_at, mask=(cols < m)[:, None] & (word < count)[None, :], other=0)
        total = tl.dot(_bits(x_packed, WORDS), _bits(y_packed, WORDS).T, total, out_dtype=tl.int32)
    return total


@triton.jit
def _tile_of(program, tiles_n, SYMMETRIC: tl.constexpr):
    """Returns row and column of a tile. Tiles go row by row, if SYMMETRIC through the lower triangle."""
    if SYMMETRIC:
        row = ((tl.sqrt(8.0 * program.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
        row = tl.where((row + 1) * (row + 2) // 2 <= program, row + 1, row)
        row = tl.where(row * (row + 1) // 2 > program, row - 1, row)
        col = program - row * (row + 1) // 2
    else:
        row = program // tiles_n
        col = program % tiles_n
    return row, col


@triton.jit(do_not_specialize=["n", "m", "depth", "tiles_n", "x_stride", "y_stride", "out_stride"])
def gram_kernel(
    x_words, y_words, out, layers, scale,
    n, m, depth, tiles_n, x_stride: tl.int64, y_stride: tl.int64, out_stride: tl.int64,
    SYMMETRIC: tl.constexpr, TIMES: tl.constexpr, ALIGNED: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Computes out = prod_l count_l * scale_l or, if TIMES, out = out * that product.

    layers is int64 (L, 3) and has first, y_first and count; scale is (L,) and has the dtype of out. If ALIGNED, m and
    out_stride are multiples of 16, and rows are written 16 bytes at a time."""
    row, col = _tile_of(tl.program_id(0), tiles_n, SYMMETRIC)
    rows = row * M + tl.arange(0, M)
    cols = col * N + tl.arange(0, N)
    dtype = out.dtype.element_ty
    product = tl.full((M, N), 1.0, dtype)
    for layer in range(depth):
        counts = _tile_counts(
            x_words, y_words, rows, cols, n, m, x_stride, y_stride, tl.load(layers + 3 * layer),
            tl.load(layers + 3 * layer + 1), tl.load(layers + 3 * layer + 2).to(tl.int32), M, N, WORDS,
        )  # fmt: skip
        product = product * (counts.to(dtype) * tl.load(scale + layer))
    if ALIGNED:
        m, out_stride = m // 16 * 16, out_stride // 16 * 16  # tells the compiler that they are multiples
    at = rows[:, None].to(tl.int64) * out_stride + cols[None, :]
    inside = (rows < n)[:, None] & (cols < m)[None, :]
    if SYMMETRIC:
        inside = inside & (cols[None, :] <= rows[:, None])
    if TIMES:
        product = tl.load(out + at, mask=inside, other=0.0) * product
    tl.store(out + at, product, mask=inside)
    if SYMMETRIC:
        mirrored = cols[None, :].to(tl.int64) * out_stride + rows[:, None]
        tl.store(out + mirrored, product, mask=inside)


@triton.jit(do_not_specialize=["n", "m", "tiles_n", "x_stride", "y_stride"])
def overlap_kernel(
    x_words, y_words, out, layers, n, m, tiles_n, x_stride: tl.int64, y_stride: tl.int64,
    SYMMETRIC: tl.constexpr, ALIGNED: tl.constexpr, M: tl.constexpr, N: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Writes counts to out, int32 (L, n, m). Each program on axis 1 takes one layer. If ALIGNED, n and m are multiples
    of 16."""
    row, col = _tile_of(tl.program_id(0), tiles_n, SYMMETRIC)
    layer = tl.program_id(1)
    rows = row * M + tl.arange(0, M)
    cols = col * N + tl.arange(0, N)
    counts = _tile_counts(
        x_words, y_words, rows, cols, n, m, x_stride, y_stride, tl.load(layers + 3 * layer),
        tl.load(layers + 3 * layer + 1), tl.load(layers + 3 * layer + 2).to(tl.int32), M, N, WORDS,
    )  # fmt: skip
    if ALIGNED:
        n, m = n // 16 * 16, m // 16 * 16  # tells the compiler that they are multiples
    inside = (rows < n)[:, None] & (cols < m)[None, :]
    plane = layer.to(tl.int64) * n * m
    tl.store(out + plane + rows[:, None].to(tl.int64) * m + cols[None, :], counts, mask=inside)
    if SYMMETRIC:
        tl.store(out + plane + cols[None, :].to(tl.int64) * m + rows[:, None], counts, mask=inside)


@cache
def _uploaded(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns a small constant on the device. It is kept until the process ends, because a CUDA graph that read it may
    be replayed at any time, and nothing can be uploaded while a graph is captured."""
    return torch.tensor(values, dtype=dtype).to(device)


def _layers(first: list[int], y_first: list[int], count: list[int], device: torch.device) -> Tensor:
    return _uploaded(tuple(zip(first, y_first, count, strict=True)), torch.int64, device)


def _tiles(n: int, m: int, symmetric: bool) -> tuple[int, int]:
    """Returns the number of tiles, and how many of them lie side by side."""
    rows, cols = triton.cdiv(n, TILE_M), triton.cdiv(m, TILE_N)
    return (rows * (rows + 1) // 2 if symmetric else rows * cols), cols


def _multiply_lambda(
    out: Tensor, words: Tensor, y_words: Tensor | None, first: list[int], y_first: list[int], count: list[int],
    scale: list[float], times: bool,
) -> None:  # fmt: skip
    """Computes out = Lambda, or out * Lambda if `times`."""
    right = words if y_words is None else y_words
    n, m = words.shape[0], right.shape[0]
    if n == 0 or m == 0:
        return
    tiles, tiles_n = _tiles(n, m, y_words is None)
    gram_kernel[(tiles,)](
        words, right, out, _layers(first, y_first, count, words.device),
        _uploaded(tuple(scale), out.dtype, words.device),
        n, m, len(count), tiles_n, words.stride(0), right.stride(0), out.stride(0),
        SYMMETRIC=y_words is None, TIMES=times, ALIGNED=m % 16 == 0 and out.stride(0) % 16 == 0,
        M=TILE_M, N=TILE_N, WORDS=TILE_WORDS, num_warps=8,
    )  # fmt: skip


def _require_no_slopes(slope: Sequence[float]) -> None:
    """Raises ValueError unless every slope is 0, so that the portable op takes the call."""
    if any(slope):
        raise ValueError(
            "slope: the Triton kernels take slope 0 alone; without GATEDOPS_BACKEND=triton torch's own operations take "
            "the call"
        )


def _sigma_into(out: Tensor, x: Tensor, y: Tensor) -> None:
    """Computes out = X Y^T. uint8 rows multiply in float64, which holds these integers exactly; out is rounded once."""
    if x.dtype != torch.uint8:
        torch.mm(x.to(out.dtype), y.to(out.dtype).T, out=out)
        return
    right = y.to(torch.float64).T
    for i in range(0, out.shape[0], rows := _panel_rows(out.shape[1])):
        out[i : i + rows] = (x[i : i + rows].to(torch.float64) @ right).to(out.dtype)


def _panel_rows(cols: int) -> int:
    """Returns how many rows a panel of `cols` columns has that fits the workspace: a whole number of tiles."""
    return max(TILE_M, WORKSPACE // (8 * max(cols, 1)) // TILE_M * TILE_M)


def npk_gram_out(
    x: Tensor | None, words: Tensor, y: Tensor | None, y_words: Tensor | None, factor: Tensor | None,
    y_factor: Tensor | None, first: list[int], y_first: list[int], count: list[int], scale: list[float],
    slope: Sequence[float] = (), widths: Sequence[int] = (), *, out: Tensor,
) -> None:  # fmt: skip
    """Computes out = Sigma * Lambda, with rows and columns scaled. Takes the arguments of the op."""
    _require_no_slopes(slope)
    if x is not None:
        _sigma_into(out, x, x if y is None else y)
    _multiply_lambda(out, words, y_words, first, y_first, count, scale, times=x is not None)
    if factor is not None:
        _scale_rows_and_columns(out, factor, factor if y_factor is None else y_factor)


def _scale_rows_and_columns(out: Tensor, factor: Tensor, y_factor: Tensor) -> None:
    """Computes out_ij = out_ij * (factor_i * y_factor_j) in float64, one panel of rows after the other."""
    for i in range(0, out.shape[0], rows := _panel_rows(out.shape[1])):
        panel = out[i : i + rows]
        panel.copy_(panel.to(torch.float64) * (factor[i : i + rows, None] * y_factor[None, :]))


def npk_gram(
    x: Tensor | None, words: Tensor, y: Tensor | None, y_words: Tensor | None, factor: Tensor | None,
    y_factor: Tensor | None, first: list[int], y_first: list[int], count: list[int], scale: list[float],
    dtype: torch.dtype, slope: Sequence[float] = (), widths: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Returns Sigma * Lambda, ``(n, m)``, in `dtype`. Takes the arguments of the op."""
    _require_no_slopes(slope)
    m = words.shape[0] if y_words is None else y_words.shape[0]
    out = words.new_empty((words.shape[0], m), dtype=dtype)
    npk_gram_out(x, words, y, y_words, factor, y_factor, first, y_first, count, scale, out=out)
    return out


def gate_overlap(
    words: Tensor, y_words: Tensor | None, first: list[int], y_first: list[int], count: list[int],
    widths: list[int], measure: str,
) -> Tensor:  # fmt: skip
    """Returns counts ``(L, n, m)``, int32. Takes the arguments of the op."""
    right = words if y_words is None else y_words
    n, m = words.shape[0], right.shape[0]
    out = words.new_empty((len(count), n, m))
    if out.numel() == 0:
        return out
    tiles, tiles_n = _tiles(n, m, y_words is None)
    overlap_kernel[(tiles, len(count))](
        words, right, out, _layers(first, y_first, count, words.device), n, m, tiles_n, words.stride(0),
        right.stride(0), SYMMETRIC=y_words is None, ALIGNED=n % 16 == 0 and m % 16 == 0, M=TILE_M, N=TILE_N,
        WORDS=TILE_WORDS, num_warps=8,
    )  # fmt: skip
    if measure != "both":
        on = [_row_counts(words, first, count), _row_counts(right, y_first, count)]
        for layer, width in enumerate(widths):
            differing = out[layer].mul_(-2).add_(on[0][layer][:, None]).add_(on[1][layer][None, :])
            if measure == "agree":
                differing.neg_().add_(width)
    return out


def npk_diag(
    words: Tensor, first: list[int], count: list[int], scale: list[float], dtype: torch.dtype,
    slope: Sequence[float] = (), widths: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Returns ``Lambda_ii``, ``(n,)``. Takes the arguments of the op."""
    _require_no_slopes(slope)
    product = torch.ones(words.shape[0], dtype=dtype, device=words.device)
    for counts, factor in zip(_row_counts(words, first, count), scale, strict=True):
        product *= counts.to(dtype) * _uploaded((factor,), dtype, words.device)
    return product


def npk_matvec(
    x: Tensor | None, words: Tensor, y: Tensor | None, y_words: Tensor | None, v: Tensor, first: list[int],
    y_first: list[int], count: list[int], scale: list[float], slope: Sequence[float] = (), widths: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Returns the Gram times v, computed one panel of rows after the other. Takes the arguments of the op."""
    _require_no_slopes(slope)
    right = words if y_words is None else y_words
    others = x if y is None else y
    out = v.new_empty((words.shape[0], v.shape[1]))
    rows = _panel_rows(right.shape[0])
    for i in range(0, words.shape[0], rows):
        part = None if x is None else x[i : i + rows]
        panel = npk_gram(part, words[i : i + rows], others, right, None, None, first, y_first, count, scale, v.dtype)
        torch.mm(panel, v, out=out[i : i + rows])
    return out


def npk_gram_backward(
    grad: Tensor, words: Tensor, y: Tensor, y_words: Tensor | None, first: list[int], y_first: list[int],
    count: list[int], scale: list[float], slope: Sequence[float] = (), widths: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """Returns ``(G * Lambda) Y`` or, if symmetric, ``((G + G^T) * Lambda) Y``, one panel of rows after the other. Takes
    the arguments of the op."""
    _require_no_slopes(slope)
    right = words if y_words is None else y_words
    y = y.to(grad.dtype)
    out = y.new_empty((words.shape[0], y.shape[1]))
    rows = _panel_rows(right.shape[0])
    for i in range(0, words.shape[0], rows):
        panel = grad[i : i + rows].clone(memory_format=torch.contiguous_format)
        if y_words is None:
            panel += grad[:, i : i + rows].mT
        _multiply_lambda(panel, words[i : i + rows], right, first, y_first, count, scale, times=True)
        torch.mm(panel, y, out=out[i : i + rows])
    return out


@triton.jit(do_not_specialize=["n", "stride"])
def row_counts_kernel(words, out, layers, n, stride: tl.int64, BLOCK: tl.constexpr):
    """Counts the gates that are on in each layer and row, out int32 (L, n), with one program for each row and layer."""
    row, layer = tl.program_id(0), tl.program_id(1)
    first = tl.load(layers + 3 * layer)
    count = tl.load(layers + 3 * layer + 2).to(tl.int32)
    total = tl.zeros((BLOCK,), tl.int32)
    for k in range(0, count, BLOCK):
        word = k + tl.arange(0, BLOCK)
        packed = tl.load(words + row.to(tl.int64) * stride + first + word, mask=word < count, other=0)
        bits = (packed[:, None] >> tl.arange(0, 32)[None, :]) & 1
        total += tl.sum(bits, axis=1)
    tl.store(out + layer.to(tl.int64) * n + row, tl.sum(total, axis=0))


def _row_counts(words: Tensor, first: list[int], count: list[int]) -> Tensor:
    """Counts the gates that are on in each layer and row, int32 ``(L, n)``."""
    n = words.shape[0]
    out = words.new_empty((len(count), n))
    if n > 0:
        row_counts_kernel[(n, len(count))](
            words, out, _layers(first, first, count, words.device), n, words.stride(0), BLOCK=32
        )
    return out
