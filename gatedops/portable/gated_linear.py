"""Computes gated_linear, its variants and its backwards by torch operations (docs/math.md, section 8).

The arguments of the ops are those of their schemas.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from gatedops.layout import words_used
from gatedops.portable.checks import LAYER_DTYPES, require, require_one_device
from gatedops.portable.gated_linear_gate import require_row_gates
from gatedops.portable.gates import gate_pieces, gates_at, words_of
from gatedops.portable.layer_gradients import Piece, layer_gradients
from gatedops.portable.rows import Rows
from gatedops.portable.select import select
from gatedops.portable.workspace import blocks


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, words: Tensor, first: int) -> Tensor:
    """Computes ``G o (x W^T + b)``."""
    require_linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    require_row_gates(words, first, rows, words_used(1, weight.shape[0]))
    require_one_device(x, words)
    y = product_rows(x, weight, bias)
    select_rows(y, words, first)
    return in_shape(y, x)


def gated_linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Computes ``relu(x W^T + b)`` and the words of its gates."""
    require_linear(x, weight, bias)
    y = product_rows(x, weight, bias)
    words = words_of(y.unsqueeze(1))
    return in_shape(y.relu_(), x), words


def gated_linear_soft(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ``gate o v`` and ``v = x W^T + b``."""
    require_linear(x, weight, bias)
    product = in_shape(product_rows(x, weight, bias), x)
    require_like(gate, product, "gate")
    return product * gate, product


def gated_linear_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, words: Tensor | None, first: int, bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of x, weight and bias."""
    require_backward(grad, x, weight)
    return layer_gradients(gated_gradient(grad, words, first), grad, x, weight, bias)


def gated_linear_soft_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, gate: Tensor, product: Tensor | None, bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes the gradients of x, weight, bias and the gate."""
    require_backward(grad, x, weight)
    require_like(gate, grad, "gate")
    if product is not None:
        require_like(product, grad, "product")
    left, right = Rows(grad), Rows(gate)

    def dv(rows: slice, columns: slice) -> Tensor:
        return left.at(rows, columns) * right.at(rows, columns)

    dgate = grad.new_empty(0) if product is None else (grad * product).contiguous()
    return *layer_gradients(dv, grad, x, weight, bias), dgate


def gated_gradient(grad: Tensor, words: Tensor | None, first: int) -> Piece:
    """Returns a function that makes pieces of ``G o grad``, or of grad if words is None."""
    rows_of_grad = Rows(grad)
    if words is None:
        return rows_of_grad.at
    require_row_gates(words, first, rows_of_grad.n, words_used(1, rows_of_grad.width))
    require_one_device(grad, words)

    def dv(rows: slice, columns: slice) -> Tensor:
        # The columns begin at a word.
        on = gates_at(words[rows], first, 1, rows_of_grad.width, slice(0, 1), columns)
        return select(rows_of_grad.at(rows, columns), on.squeeze(1))

    return dv


def product_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes ``x W^T + b`` by torch's linear: a new matrix with a row for each index of x's leading dimensions."""
    left = Rows(x)
    if left.matrix is not None:
        return as_rows(linear(x, weight, bias).contiguous())
    y = x.new_empty((left.n, weight.shape[0]))
    for rows in blocks(left.n, left.at_once):
        y[rows] = linear(left.at(rows), weight, bias)
    return y


def in_shape(y: Tensor, x: Tensor) -> Tensor:
    """Returns the rows of y with the leading dimensions of x."""
    return y.view(*x.shape[:-1], y.shape[-1])


def as_rows(y: Tensor) -> Tensor:
    """Returns y, ``(..., width)``, as a matrix."""
    return y.reshape(y.shape[:-1].numel(), y.shape[-1])


def select_rows(y: Tensor, words: Tensor, first: int) -> None:
    """Sets y, ``(n, width)``, to 0 where the gates are off."""
    n, width = y.shape
    for rows, here, cut in gate_pieces(n, 1, width, y.device):
        on = gates_at(words[rows], first, 1, width, here, cut).squeeze(1)
        select(y[rows, cut], on, out=y[rows, cut])


def require_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, names: tuple[str, str, str] = ("x", "weight", "bias")
) -> None:
    """Raises ValueError unless these are the input and parameters of a layer, on one device."""
    require(x.dtype in LAYER_DTYPES, lambda: f"{names[0]}: got {x.dtype}, needs float32, float64, bfloat16 or float16")
    require(x.dim() >= 1, lambda: f"{names[0]}: got shape (), needs (..., in_features)")
    fits = weight.dim() == 2 and weight.shape[1] == x.shape[-1] and weight.shape[0] >= 1
    require(fits, lambda: f"{names[1]}: got shape {tuple(weight.shape)}, needs (out_features, {x.shape[-1]})")
    require(weight.dtype == x.dtype, lambda: f"{names[1]}: needs the dtype of {names[0]}")
    if bias is not None:
        fits = tuple(bias.shape) == (weight.shape[0],) and bias.dtype == x.dtype
        require(
            fits, lambda: f"{names[2]}: got shape {tuple(bias.shape)}, needs ({weight.shape[0]},) of {names[0]}'s dtype"
        )
    require_one_device(x, weight, bias)


def require_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, names: tuple[str, str, str] = ("grad", "x", "weight")
) -> None:
    """Raises ValueError unless x and weight, if they are given, fit the gradient of the layer's output."""
    require(
        grad.dtype in LAYER_DTYPES, lambda: f"{names[0]}: got {grad.dtype}, needs float32, float64, bfloat16 or float16"
    )
    require(grad.dim() >= 1, lambda: f"{names[0]}: got shape (), needs (..., out_features)")
    if x is not None:
        fits = x.dim() >= 1 and x.shape[:-1] == grad.shape[:-1] and x.dtype == grad.dtype
        require(fits, lambda: f"{names[1]}: got {x.dtype} {tuple(x.shape)}, needs the rows and dtype of {names[0]}")
    if weight is not None:
        fits = weight.dim() == 2 and weight.shape[0] == grad.shape[-1] and weight.dtype == grad.dtype
        require(
            fits,
            lambda: f"{names[2]}: got {weight.dtype} {tuple(weight.shape)}, needs {grad.shape[-1]} rows of its dtype",
        )
    require_one_device(grad, x, weight)


def require_like(value: Tensor, y: Tensor, name: str) -> None:
    """Raises ValueError unless value has the shape, dtype and device of y."""
    fits = value.shape == y.shape and value.dtype == y.dtype
    require(fits, lambda: f"{name}: got {value.dtype} {tuple(value.shape)}, needs {y.dtype} {tuple(y.shape)}")
    require_one_device(value, y)
