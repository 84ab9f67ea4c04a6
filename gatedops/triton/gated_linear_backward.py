"""gated_linear_backward and gated_linear_soft_backward on a GPU (docs/math.md, section 8).

With hard gates, the gradients of input, weight and bias read the cotangent U and the words of its gates. They mask each
tile of U on its way to the tensor cores, and never store the masked cotangent. With soft gates, one pass stores the
masked cotangent and the gate's gradient, and torch's products do the rest. The shape alone decides how sums over the
batch are divided into parts, and the parts are added in one order, so that the same inputs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gatedops.triton.gated_linear_gate import select_rows
from gatedops.triton.gated_linear_tiles import as_operand, load_gates, load_tile, masked, store_tile, tile_of
from gatedops.triton.gated_linear_tuning import (
    Tile,
    as_matrix,
    operand,
    precision_of,
    processors,
    run_fastest,
    way_by_pointers,
    way_to_read,
)

PART = 128  # A part of a sum has a multiple of this many rows, and so of every tile's k.
LEAST_PART = 1024  # Shorter parts would cost more to add up than they gain.
SUM_ROWS, SUM_COLS = 32, 128  # The tile of the bias's gradient.
BLOCK = 1024  # A program of a pass takes this many elements.


@triton.jit
def gated_tile(
    grad, words, row, col, rows, cols, g_row, g_col, words_row, M: tl.constexpr, N: tl.constexpr, READ: tl.constexpr
):
    """Returns a tile (M, N) of G o U. U is (rows, cols)."""
    tile = load_tile(grad, row, col, rows, cols, g_row, g_col, M, N, READ)
    return masked(tile, load_gates(words, row, col, rows, cols, words_row, M, N), M, N)


@triton.jit(
    do_not_specialize=["rows", "width", "g_row", "g_col", "w_row", "w_col", "words_row"],
    do_not_specialize_on_alignment=["grad", "weight"],
)
def input_gradient_kernel(
    grad, weight, words, dx, rows, width, inputs,
    g_row: tl.int64, g_col, w_row: tl.int64, w_col, words_row: tl.int64,
    PRECISION: tl.constexpr, READ: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Computes dx (rows, inputs) = (G o U) W."""
    row, col = tile_of(tl.program_id(0), rows, inputs, M, N)
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, width, K):
        left = as_operand(gated_tile(grad, words, row, k, rows, width, g_row, g_col, words_row, M, K, READ), PRECISION)
        right = as_operand(load_tile(weight, k, col, width, inputs, w_row, w_col, K, N, READ), PRECISION)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    store_tile(dx, total, row, col, rows, inputs, M, N)


@triton.jit(
    do_not_specialize=["rows", "width", "part", "g_row", "g_col", "x_row", "x_col", "words_row"],
    do_not_specialize_on_alignment=["grad", "x"],
)
def weight_gradient_kernel(
    grad, x, words, dw, rows, width, inputs, part,
    g_row: tl.int64, g_col, x_row: tl.int64, x_col, words_row: tl.int64,
    PRECISION: tl.constexpr, READ: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Computes dw (parts, width, inputs) = (G o U)^T X. Each program on axis 1 takes one part of the rows."""
    row, col = tile_of(tl.program_id(0), width, inputs, M, N)
    begin = tl.program_id(1) * part
    total = tl.zeros((M, N), tl.float32)
    for k in range(begin, min(begin + part, rows), K):
        left = as_operand(gated_tile(grad, words, k, row, rows, width, g_row, g_col, words_row, K, M, READ), PRECISION)
        right = as_operand(load_tile(x, k, col, rows, inputs, x_row, x_col, K, N, READ), PRECISION)
        total = tl.dot(left.T, right, total, input_precision=PRECISION)
    plane = dw + tl.program_id(1).to(tl.int64) * width * inputs
    store_tile(plane, total, row, col, width, inputs, M, N)


@triton.jit(
    do_not_specialize=["rows", "width", "part", "g_row", "g_col", "words_row"],
    do_not_specialize_on_alignment=["grad"],
)
def bias_gradient_kernel(
    grad, words, db, rows, width, part, g_row: tl.int64, g_col, words_row: tl.int64,
    READ: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums the columns of G o U into db (parts, width). Each program on axis 1 takes one part of the rows."""
    col, begin = tl.program_id(0) * N, tl.program_id(1) * part
    total = tl.zeros((M, N), tl.float32)
    for k in range(begin, min(begin + part, rows), M):
        total += gated_tile(grad, words, k, col, rows, width, g_row, g_col, words_row, M, N, READ).to(tl.float32)
    c = col + tl.arange(0, N)
    tl.store(db + tl.program_id(1) * width + c, tl.sum(total, axis=0), mask=c < width)


@triton.jit
def soft_gradients_kernel(grad, gate, product, dv, dgate, size, GATE: tl.constexpr, BLOCK: tl.constexpr):
    """Computes dv = grad * gate and, if GATE, dgate = grad * product. All are contiguous and have `size` elements.

    Memory bounds it: for an element it reads 2 numbers and writes 1, or with GATE reads 3 and writes 2."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    u = tl.load(grad + at, mask=inside)
    tl.store(dv + at, u * tl.load(gate + at, mask=inside), mask=inside)
    if GATE:
        tl.store(dgate + at, u * tl.load(product + at, mask=inside), mask=inside)


def nothing(like: Tensor) -> Tensor:
    """Returns an empty tensor, which stands for a gradient that is not asked for."""
    return like.new_empty(0)


def _input_gradient(grad: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    (rows, width), inputs = grad.shape, weight.shape[1]
    dx, read = grad.new_empty((rows, inputs)), way_to_read(grad, weight)

    def launch(tile: Tile) -> None:
        input_gradient_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(inputs, tile.n),)](
            operand(grad, tile.m, tile.k, read), operand(weight, tile.k, tile.n, read), words, dx, rows, width, inputs,
            *grad.stride(), *weight.stride(), words.stride(0),
            PRECISION=precision_of(grad.dtype), READ=read, **tile.options(),
        )  # fmt: skip

    if dx.numel() > 0:
        run_fastest("input gradient", width, grad, rows, inputs, read, launch)
    return dx


def _weight_gradient(grad: Tensor, x: Tensor, words: Tensor) -> Tensor:
    (rows, width), inputs = grad.shape, x.shape[1]
    read = way_to_read(grad, x)
    part, parts = divided(rows, triton.cdiv(width, PART) * triton.cdiv(inputs, PART), grad.device)
    dw = grad.new_empty((parts, width, inputs), dtype=grad.dtype if parts == 1 else torch.float32)

    def launch(tile: Tile) -> None:
        weight_gradient_kernel[(triton.cdiv(width, tile.m) * triton.cdiv(inputs, tile.n), parts)](
            operand(grad, tile.k, tile.m, read), operand(x, tile.k, tile.n, read), words, dw, rows, width, inputs, part,
            *grad.stride(), *x.stride(), words.stride(0),
            PRECISION=precision_of(grad.dtype), READ=read, **tile.options(),
        )  # fmt: skip

    if dw.numel() > 0:
        run_fastest("weight gradient", triton.next_power_of_2(rows), grad, width, inputs, read, launch)
    return dw[0] if parts == 1 else dw.sum(0).to(grad.dtype)


def _bias_gradient(grad: Tensor, words: Tensor) -> Tensor:
    rows, width = grad.shape
    part, parts = divided(rows, triton.cdiv(width, SUM_COLS), grad.device)
    db = grad.new_empty((parts, width), dtype=torch.float32)
    bias_gradient_kernel[(triton.cdiv(width, SUM_COLS), parts)](
        grad, words, db, rows, width, part, *grad.stride(), words.stride(0),
        READ=way_by_pointers(grad), M=SUM_ROWS, N=SUM_COLS,
    )  # fmt: skip
    return db.sum(0).to(grad.dtype)


def divided(rows: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Returns the rows of a part and the number of parts of a sum over rows, which each of `programs` programs takes.

    There are enough parts to fill the GPU. They depend on the shape and the GPU only."""
    wanted = max(1, min(processors(device) // max(programs, 1), rows // LEAST_PART))
    part = triton.cdiv(triton.cdiv(rows, wanted), PART) * PART
    return part, max(1, triton.cdiv(rows, max(part, 1)))


def plain_gradients(dv: Tensor, x: Tensor | None, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias, by torch, for the gradient dv (..., width) of the product."""
    rows = as_matrix(dv)
    dx = nothing(dv) if weight is None else torch.mm(rows, weight).view(*dv.shape[:-1], weight.shape[1])
    dw = nothing(dv) if x is None else torch.mm(rows.t(), as_matrix(x))
    return dx, dw, rows.sum(0) if bias else nothing(dv)


def gated_linear_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, words: Tensor | None, first: int, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight and bias. Takes the arguments of the op."""
    if words is None:
        return plain_gradients(grad, x, weight, bias)
    if grad.dtype == torch.float64:
        return plain_gradients(select_rows(grad, words, first), x, weight, bias)
    rows, gates = as_matrix(grad), words[:, first:]
    dx, dw, db = (nothing(grad) for _ in range(3))
    if weight is not None:
        dx = _input_gradient(rows, weight, gates).view(*grad.shape[:-1], weight.shape[1])
    if x is not None:
        dw = _weight_gradient(rows, as_matrix(x), gates)
    if bias:
        db = _bias_gradient(rows, gates)
    return dx, dw, db


def gated_linear_soft_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, gate: Tensor, product: Tensor | None, bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of x, weight, bias and gate. Takes the arguments of the op."""
    grad, gate = grad.contiguous(), gate.contiguous()
    product = None if product is None else product.contiguous()
    dv = torch.empty_like(grad)
    dgate = nothing(grad) if product is None else torch.empty_like(grad)
    soft_gradients_kernel[(max(1, triton.cdiv(grad.numel(), BLOCK)),)](
        grad, gate, product, dv, dgate, grad.numel(), GATE=product is not None, BLOCK=BLOCK
    )
    return *plain_gradients(dv, x, weight, bias), dgate
