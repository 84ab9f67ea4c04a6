"""gated_linear on a GPU: one kernel computes the product and its gates, and selects by them.

The gates are those of the product after it is rounded to its dtype, as on a CPU. Few GPUs have tensor cores that
multiply float64, so float64 takes torch's product and one pass over it. The bound is the product: its tiles go through
the tensor cores, and gates add 1/8 byte for each number written. Rates are not measured here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from gatedops.layout import layer_words
from gatedops.triton.gated_linear_gate import relu_rows, select_rows
from gatedops.triton.gated_linear_tiles import (
    load_gates,
    load_tile,
    pack_tile,
    pre_activation,
    relu,
    store_gates,
    store_tile,
    tile_of,
    unpack_tile,
)
from gatedops.triton.gated_linear_tuning import Tile, as_matrix, operand, precision_of, run_fastest, way_to_read


@triton.jit(
    do_not_specialize=["rows", "inner", "x_row", "x_col", "w_row", "w_col", "words_row", "total"],
    do_not_specialize_on_alignment=["x", "weight"],
)
def layer_kernel(
    x, weight, bias, gate, y, product, rows, cols, inner,
    x_row: tl.int64, x_col, w_row: tl.int64, w_col, words_row: tl.int64, total,
    GATE: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr, READ: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Computes y (rows, cols) = gate(x W^T + b). If GATE is "own", the gate is relu, and its words go to `gate` (rows,
    total). If it is "hard", `gate` holds words. If it is "soft", `gate` holds numbers (rows, cols), contiguous, and the
    product is written as well."""
    row, col = tile_of(tl.program_id(0), rows, cols, M, N)
    v = pre_activation(
        x, weight, bias, row, col, rows, cols, inner, x_row, x_col, w_row, w_col, BIAS, PRECISION, READ, M, N, K
    ).to(y.dtype.element_ty)
    if GATE == "own":
        store_gates(gate, pack_tile(v > 0, M, N), row, col, rows, cols, total, words_row, M, N)
        v = relu(v)
    elif GATE == "hard":
        packed = load_gates(gate, row, col, rows, cols, words_row, M, N)
        v = tl.where(unpack_tile(packed, M, N), v, 0.0)
    else:
        store_tile(product, v, row, col, rows, cols, M, N)
        numbers = load_tile(gate, row, col, rows, cols, cols, 1, M, N, "any")
        v = v.to(tl.float32) * numbers.to(tl.float32)
    store_tile(y, v, row, col, rows, cols, M, N)


def _layer(
    kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor, y: Tensor, product: Tensor | None = None
) -> None:
    """Launches :func:`layer_kernel`. gate is (rows, ...), and contiguous if soft."""
    left, (cols, inner) = as_matrix(x), weight.shape
    rows, read = left.shape[0], way_to_read(left, weight)
    bias = None if bias is None else bias.contiguous()

    def launch(tile: Tile) -> None:
        layer_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(cols, tile.n),)](
            operand(left, tile.m, tile.k, read), operand(weight, tile.n, tile.k, read), bias, gate, y, product,
            rows, cols, inner, *left.stride(), *weight.stride(), gate.stride(0), gate.shape[1],
            GATE=kind, BIAS=bias is not None, PRECISION=precision_of(x.dtype), READ=read, **tile.options(),
        )  # fmt: skip

    if rows > 0:
        run_fastest("layer", (kind, inner), x, rows, cols, read, launch)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, words: Tensor, first: int) -> Tensor:
    """Returns ``G o (x W^T + b)``. Takes the arguments of the op."""
    if x.dtype == torch.float64:
        return select_rows(linear(x, weight, bias), words, first)
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    _layer("hard", x, weight, bias, words[:, first:], y)
    return y


def gated_linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns ``relu(x W^T + b)`` and the words of its gates. Takes the arguments of the op."""
    if x.dtype == torch.float64:
        return relu_rows(linear(x, weight, bias))
    y = x.new_empty((*x.shape[:-1], weight.shape[0]))
    words = new_words(y)
    _layer("own", x, weight, bias, words, y)
    return y, words


def gated_linear_soft(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``gate o v`` and ``v = x W^T + b``. Takes the arguments of the op."""
    if x.dtype == torch.float64:
        product = linear(x, weight, bias)
        return product * gate, product
    y, product = (x.new_empty((*x.shape[:-1], weight.shape[0])) for _ in range(2))
    _layer("soft", x, weight, bias, as_matrix(gate.contiguous()), y, product)
    return y, product


def new_words(y: Tensor) -> Tensor:
    """Returns new words for the gates of y (..., width)."""
    return y.new_empty((y.shape[:-1].numel(), layer_words(1, y.shape[-1])), dtype=torch.int32)
