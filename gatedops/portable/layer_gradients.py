"""Computes the gradients of a layer's input, weight and bias from the gradient of its product, which is made piece by
piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gatedops.portable.rows import LARGE, Rows
from gatedops.portable.workspace import blocks, piece_of, pieces

# One product sums over at most this many rows: 32 columns of this many float64 numbers take as many bytes as LARGE.
_ROWS = 1 << 18

# Makes the gradient at some rows and columns.
Piece = Callable[[slice, slice], Tensor]


def layer_gradients(
    dv: Piece, like: Tensor, x: Tensor | None, weight: Tensor | None, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes ``dv W`` if weight is given, ``dv^T x`` if x is given, and the column sums of dv if bias is true. The
    others are empty tensors.

    Args:
        dv: makes the gradient of the product at some rows and columns.
        like: ``(..., width)``, a tensor of the shape and dtype of the gradient.
        x: ``(..., in_features)``. weight: ``(width, in_features)``.
    """
    width = like.shape[-1]
    n = like.shape[:-1].numel()
    left = None if x is None else Rows(x)
    if n * width * like.itemsize <= LARGE and (left is None or left.matrix is not None):
        inputs = None if left is None else left.matrix
        dx, dw, db = _at_once(_made(dv, slice(0, n), slice(0, width), like), inputs, weight, bias)
    else:
        dx = like.new_empty(0) if weight is None else _by_rows(dv, n, weight, like)
        dw, db = _by_columns(dv, n, left, bias, like)
    return dx if weight is None else dx.view(*like.shape[:-1], weight.shape[1]), dw, db


def _at_once(dv: Tensor, x: Tensor | None, weight: Tensor | None, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    return (
        dv.new_empty(0) if weight is None else dv @ weight,
        dv.new_empty(0) if x is None else dv.mT @ x,
        dv.sum(0) if bias else dv.new_empty(0),
    )


def _by_rows(dv: Piece, n: int, weight: Tensor, like: Tensor) -> Tensor:
    width = like.shape[-1]
    dx = like.new_empty((n, weight.shape[1]))
    for rows in pieces(n, width * like.itemsize, size=LARGE):
        torch.mm(_made(dv, rows, slice(0, width), like), weight, out=dx[rows])
    return dx


def _by_columns(dv: Piece, n: int, x: Rows | None, bias: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the gradients of weight and bias, some columns at a time, which are rows of the weight. If there are too
    many rows for one product, the sums of several products are added, in float32 if dv is in half precision."""
    width = like.shape[-1]
    dw = like.new_empty((width, x.width) if x is not None else 0)
    most = _ROWS if x is None else min(_ROWS, x.at_once)
    db = like.new_empty(width if bias else 0)
    if x is None and not bias:
        return dw, db
    precise = torch.promote_types(like.dtype, torch.float32)
    for columns in pieces(width, min(n, most) * like.itemsize, 32, size=LARGE):
        dw_sum: Tensor | float = 0.0
        db_sum: Tensor | float = 0.0
        for rows in blocks(n, most):
            part = _made(dv, rows, columns, like)
            if x is not None:
                dw_sum = dw_sum + (part.mT @ x.at(rows)).to(precise)
            if bias:
                db_sum = db_sum + part.sum(0).to(precise)
        if x is not None:
            dw[columns] = dw_sum
        if bias:
            db[columns] = db_sum
    return dw, db


def _made(dv: Piece, rows: slice, columns: slice, like: Tensor) -> Tensor:
    """Makes the gradient at these rows and columns, in pieces whose intermediate steps fit the workspace."""
    width = columns.stop - columns.start
    parts = list(pieces(rows.stop - rows.start, width, size=piece_of(like.device) // 4))
    if len(parts) <= 1:
        # It is made contiguous, so that the sums do not depend on the strides of a gradient.
        return dv(rows, columns).contiguous()
    made = like.new_empty((rows.stop - rows.start, width))
    for part in parts:
        made[part] = dv(slice(rows.start + part.start, rows.start + part.stop), columns)
    return made
