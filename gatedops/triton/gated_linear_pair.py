"""gated_linear_pair on a GPU: one layer of both networks of a DGN in one kernel.

A program computes a tile of the feature network's product, and writes its activation and its gates. It keeps hard gates
as words, 1 bit each, and soft gates as pre-activations in the result's dtype. Then it computes the same tile of the
value network's product and gates it. Only one accumulator is alive at a time. The two products bound the kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from gatedops.ops.gated_linear_pair import soft_gradients
from gatedops.triton.gated_linear import new_words
from gatedops.triton.gated_linear_backward import BLOCK, gated_linear_backward, nothing, plain_gradients
from gatedops.triton.gated_linear_gate import as_positions, relu_rows, select_rows
from gatedops.triton.gated_linear_tiles import (
    pack_tile,
    pre_activation,
    relu,
    sigmoid,
    store_gates,
    store_tile,
    tile_of,
    unpack_tile,
)
from gatedops.triton.gated_linear_tuning import Tile, as_matrix, operand, precision_of, run_fastest, way_to_read
from gatedops.triton.gates import pack_gates_out


@triton.jit(
    do_not_specialize=[
        "rows", "f_inputs", "v_inputs", "h_row", "h_col", "wf_row", "wf_col", "z_row", "z_col", "wv_row", "wv_col",
        "words_row", "total",
    ],
    do_not_specialize_on_alignment=["h", "w_f", "z", "w_v"],
)  # fmt: skip
def pair_kernel(
    h, w_f, b_f, z, w_v, b_v, h_next, z_next, words, q_out, v_out, rows, cols, f_inputs, v_inputs,
    h_row: tl.int64, h_col, wf_row: tl.int64, wf_col,
    z_row: tl.int64, z_col, wv_row: tl.int64, wv_col, words_row: tl.int64, total, beta, gain,
    SOFT: tl.constexpr, LINEAR: tl.constexpr, KEEP: tl.constexpr, F_BIAS: tl.constexpr, V_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, READ: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Computes h_next = relu(q), or q if LINEAR; the words of 1{q > 0}; and z_next = gate(q) o v. If KEEP, v is written
    too, and also q unless it is h_next."""
    row, col = tile_of(tl.program_id(0), rows, cols, M, N)
    dtype = h_next.dtype.element_ty
    q = pre_activation(
        h, w_f, b_f, row, col, rows, cols, f_inputs, h_row, h_col, wf_row, wf_col, F_BIAS, PRECISION, READ, M, N, K
    ).to(dtype)
    packed = pack_tile(q > 0, M, N)
    store_gates(words, packed, row, col, rows, cols, total, words_row, M, N)
    if LINEAR:
        store_tile(h_next, q, row, col, rows, cols, M, N)
    else:
        store_tile(h_next, relu(q), row, col, rows, cols, M, N)
        if KEEP:
            store_tile(q_out, q, row, col, rows, cols, M, N)
    v = pre_activation(
        z, w_v, b_v, row, col, rows, cols, v_inputs, z_row, z_col, wv_row, wv_col, V_BIAS, PRECISION, READ, M, N, K
    ).to(dtype)
    if SOFT:
        if KEEP:
            store_tile(v_out, v, row, col, rows, cols, M, N)
        gate, _ = sigmoid(q.to(tl.float32) * beta)
        v = v.to(tl.float32) * (gate * gain)
    else:
        v = tl.where(unpack_tile(packed, M, N), v, 0.0)
    store_tile(z_next, v, row, col, rows, cols, M, N)


@triton.jit
def pair_soft_gradients_kernel(
    grad_h, grad_z, q, v, dq, dv, size, beta, gain,
    H: tl.constexpr, Z: tl.constexpr, V: tl.constexpr, LINEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Computes dv and, if V, dq from the cotangents of the results. H and Z say which of these exist. All tensors are
    contiguous. Memory bounds it: for an element it reads up to 4 numbers and writes up to 2."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    activation = tl.load(q + at, mask=inside).to(tl.float32)
    through = tl.zeros((BLOCK,), tl.float32)
    if H:
        through = tl.load(grad_h + at, mask=inside).to(tl.float32)
        if not LINEAR:
            through = tl.where(activation > 0, through, 0.0)
    by_value = tl.zeros((BLOCK,), tl.float32)
    if Z:
        cotangent = tl.load(grad_z + at, mask=inside).to(tl.float32)
        gate, slope = sigmoid(activation * beta)
        by_value = cotangent * (gate * gain)
        if V:
            through += cotangent * tl.load(v + at, mask=inside).to(tl.float32) * (slope * (gain * beta))
    tl.store(dv + at, by_value.to(dv.dtype.element_ty), mask=inside)
    if V:
        tl.store(dq + at, through.to(dq.dtype.element_ty), mask=inside)


def _pair(
    h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None,
    h_next: Tensor, z_next: Tensor, words: Tensor, soft: tuple[float, float] | None, linear_feature: bool,
    q: Tensor | None = None, v: Tensor | None = None,
) -> None:  # fmt: skip
    """Launches :func:`pair_kernel`. soft has beta and gain. q and v are given if they are wanted too."""
    left, right = as_matrix(h), as_matrix(z)
    rows, cols = left.shape[0], w_f.shape[0]
    read = way_to_read(left, w_f, right, w_v)
    beta, gain = (1.0, 1.0) if soft is None else soft
    b_f, b_v = (None if bias is None else bias.contiguous() for bias in (b_f, b_v))

    def launch(tile: Tile) -> None:
        pair_kernel[(triton.cdiv(rows, tile.m) * triton.cdiv(cols, tile.n),)](
            operand(left, tile.m, tile.k, read), operand(w_f, tile.n, tile.k, read), b_f,
            operand(right, tile.m, tile.k, read), operand(w_v, tile.n, tile.k, read), b_v,
            h_next, z_next, words, q, v, rows, cols, left.shape[1], right.shape[1],
            *left.stride(), *w_f.stride(), *right.stride(), *w_v.stride(), words.stride(0), words.shape[1], beta, gain,
            SOFT=soft is not None, LINEAR=linear_feature, KEEP=v is not None, F_BIAS=b_f is not None,
            V_BIAS=b_v is not None, PRECISION=precision_of(h.dtype), READ=read, **tile.options(),
        )  # fmt: skip

    if rows > 0:
        name = "pair" if soft is None else "soft pair"
        run_fastest(name, (left.shape[1], right.shape[1]), h, rows, cols, read, launch)


def gated_linear_pair(
    h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None, linear_feature: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the next features, the gated values and the words. Takes the arguments of the op."""
    h_next, z_next = (h.new_empty((*h.shape[:-1], w_f.shape[0])) for _ in range(2))
    words = new_words(h_next)
    gated_linear_pair_out(
        h, w_f, b_f, z, w_v, b_v, False, 1.0, 1.0, linear_feature, h_next=h_next, z_next=z_next, gates_out=words
    )
    return h_next, z_next, words


def gated_linear_pair_soft(
    h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None, beta: float, gain: float,
    linear_feature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the next features, the gated values, the words, q (empty if it is the first result) and v. Takes the
    arguments of the op."""
    h_next, z_next, v = (h.new_empty((*h.shape[:-1], w_f.shape[0])) for _ in range(3))
    q = nothing(h) if linear_feature else torch.empty_like(h_next)
    words = new_words(h_next)
    if h.dtype == torch.float64:
        _pair_double(h, w_f, b_f, z, w_v, b_v, (beta, gain), linear_feature, h_next, z_next, words, q, v)
    else:
        _pair(h, w_f, b_f, z, w_v, b_v, h_next, z_next, words, (beta, gain), linear_feature, q, v)
    return h_next, z_next, words, q, v


def gated_linear_pair_out(
    h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None, soft: bool, beta: float,
    gain: float, linear_feature: bool, *, h_next: Tensor, z_next: Tensor, gates_out: Tensor,
) -> None:  # fmt: skip
    """Writes the next features, the gated values and the words. Takes the arguments of the op."""
    kind = (beta, gain) if soft else None
    if h.dtype == torch.float64:
        _pair_double(h, w_f, b_f, z, w_v, b_v, kind, linear_feature, h_next, z_next, gates_out)
    else:
        _pair(h, w_f, b_f, z, w_v, b_v, h_next, z_next, gates_out, kind, linear_feature)


def _pair_double(
    h: Tensor, w_f: Tensor, b_f: Tensor | None, z: Tensor, w_v: Tensor, b_v: Tensor | None,
    soft: tuple[float, float] | None, linear_feature: bool, h_next: Tensor, z_next: Tensor, words: Tensor,
    q_out: Tensor | None = None, v_out: Tensor | None = None,
) -> None:  # fmt: skip
    """Computes the pair in float64 by torch's products and passes over them."""
    q, v = linear(h, w_f, b_f), linear(z, w_v, b_v)
    pack_gates_out(as_positions(q), out=words)
    h_next.copy_(q if linear_feature else relu_rows(q)[0])
    if soft is None:
        z_next.copy_(select_rows(v, words, 0))
    else:
        z_next.copy_(v * (soft[1] * torch.sigmoid(soft[0] * q)))
    if q_out is not None and not linear_feature:
        q_out.copy_(q)
    if v_out is not None:
        v_out.copy_(v)


def gated_linear_pair_backward(
    grad_h: Tensor, grad_z: Tensor, h: Tensor | None, w_f: Tensor | None, b_f: bool, z: Tensor | None,
    w_v: Tensor | None, b_v: bool, words: Tensor, linear_feature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of h, w_f, b_f, z, w_v and b_v. Takes the arguments of the op."""
    feature = gated_linear_backward(grad_h, h, w_f, None if linear_feature else words, 0, b_f)
    return *feature, *gated_linear_backward(grad_z, z, w_v, words, 0, b_v)


def gated_linear_pair_soft_backward(
    grad_h: Tensor | None, grad_z: Tensor | None, q: Tensor, v: Tensor | None, h: Tensor | None, w_f: Tensor | None,
    b_f: bool, z: Tensor | None, w_v: Tensor | None, b_v: bool, beta: float, gain: float, linear_feature: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of h, w_f, b_f, z, w_v and b_v. Takes the arguments of the op."""
    q = q.contiguous()
    grad_h, grad_z, v = (t if t is None else t.contiguous() for t in (grad_h, grad_z, v))
    if q.dtype == torch.float64:
        found = soft_gradients(grad_h, grad_z, q, v, beta, gain, linear_feature)
        dq, dv = (torch.zeros_like(q) if t is None else t for t in found)
    else:
        dv = torch.empty_like(q)
        dq = dv if v is None else torch.empty_like(q)
        pair_soft_gradients_kernel[(max(1, triton.cdiv(q.numel(), BLOCK)),)](
            grad_h, grad_z, q, v, dq, dv, q.numel(), beta, gain,
            H=grad_h is not None, Z=grad_z is not None, V=v is not None, LINEAR=linear_feature, BLOCK=BLOCK,
        )  # fmt: skip
    return *plain_gradients(dq, h, w_f, b_f), *plain_gradients(dv, z, w_v, b_v)
