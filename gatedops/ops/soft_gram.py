"""The kernel of soft gates: wrapper, fake kernel and derivative of soft_npk_gram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gatedops.arrays import as_tensor
from gatedops.devices import can_be_read, most_precise
from gatedops.gatebits import GateBits
from gatedops.ops.checks import require_dtype, require_precision
from gatedops.ops.differentiable import Differentiable
from gatedops.ops.gram_args import listed_factors
from gatedops.ops.gram_range import highest, judge, sign_of
from gatedops.tables import listed

_DTYPES = (torch.float32, torch.float64)


def soft_npk_gram(
    x: Tensor | None,
    gates: Sequence[Tensor],
    y: Tensor | None = None,
    y_gates: Sequence[Tensor] | None = None,
    *,
    scale: str | Sequence[float] = "width",
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes the neural path kernel of real-valued gates, ``K = Sigma * prod_l scale_l <g_l, g'_l>`` (the DLNPF and
    DLGN kernels: Lakshminarayanan, Singh & Rajkumar 2021, arXiv 2110.03403; docs/math.md, section 5).

    Args:
        x: ``(n, d)`` of a float dtype, or None for the product of the gates alone.
        gates: one float tensor ``(n, *shape)`` per layer, flattened to ``(n, w_l)``. All may be numpy arrays.
        y, y_gates: the m inputs of the other side. Without them the Gram is that of the n inputs, bitwise symmetric.
        scale: "width" (1 / w_l), "none" (1) or L numbers.
        normalize: divide by ``sqrt(K_ii K_jj)``. The result is right for any number of layers, and only the signs of
            `scale` matter. Inputs with ``K_ii = 0`` give 0.
        dtype: float32 or float64; inputs are converted to it.

    Returns:
        ``(n, m)``; differentiable once in x, y and the gates, forward and backward.

    Raises:
        TypeError, ValueError: raised before any work; the message names the argument. A kernel that overflows `dtype`
            is refused too.

    Warns:
        UserWarning: on each side some input has a gate other than 0 in every layer, yet the whole Gram underflows.
    """
    return soft_gram(*sides_of(x, gates, y, y_gates, scale, dtype, normalize=normalize))


def sides_of(
    x: Tensor | None,
    gates: Sequence[Tensor],
    y: Tensor | None,
    y_gates: Sequence[Tensor] | None,
    scale: str | Sequence[float],
    dtype: torch.dtype,
    *,
    normalize: bool,
) -> tuple[Tensor, Tensor | None, list[int], list[float]]:
    """Checks the arguments of :func:`soft_npk_gram` and returns those of the op: the layers of each side, and then x,
    side by side, their widths and their factors. Warnings name the caller of the caller."""
    require_dtype(dtype, "dtype", _DTYPES)
    x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
    layers = _layers(gates, "gates")
    require_precision(dtype, layers[0].device, "dtype")
    rows = layers[0].shape[0]
    if (y is None) != (y_gates is None) and x is not None:
        raise ValueError(f"{'y' if y is None else 'y_gates'}: is missing, the other side needs both")
    if x is None and y is not None:
        raise ValueError("x: is missing, y needs it")
    widths = [q.shape[1] for q in layers]
    factors = _factors(scale, widths)
    left = _stack(x, layers, rows, "x", dtype)
    right = None
    if y_gates is not None:
        others = _layers(y_gates, "y_gates")
        if [q.shape[1] for q in others] != widths:
            raise ValueError(
                f"y_gates: has widths {listed([q.shape[1] for q in others])}, gates has {listed(widths)}; both need the"
                " same"
            )
        if others[0].device != layers[0].device:
            raise ValueError(f"y_gates: is on {others[0].device}, gates is on {layers[0].device}")
        right = _stack(y, others, others[0].shape[0], "y", dtype)
        if right.shape[1] != left.shape[1]:
            raise ValueError(f"y: has {right.shape[1] - sum(widths)} columns, x has {left.shape[1] - sum(widths)}")
    if 0.0 in factors or (x is not None and x.shape[1] == 0):
        # K is 0, and so are all gradients.
        left, right = 0.0 * left, None if right is None else 0.0 * right
    if x is not None and x.shape[1] > 0:
        widths, factors = [*widths, x.shape[1]], [*factors, 1.0]
    if normalize:
        left = _normalized(left, widths)
        right = None if right is None else _normalized(right, widths)
        factors = [-1.0 if sign_of(factors) < 0 else 1.0, *[1.0] * (len(widths) - 1)]
    else:
        _check_range([rows for rows in (left, right) if rows is not None], widths, factors)
    return left, right, widths, factors


def _layers(gates: Sequence[Tensor], name: str) -> list[Tensor]:
    if isinstance(gates, Tensor):
        raise TypeError(f"{name}: got a tensor, needs a list with one tensor per layer")
    if isinstance(gates, GateBits):
        raise TypeError(f"{name}: got GateBits, needs float tensors: npk_gram takes hard gates")
    if not isinstance(gates, Sequence):
        raise TypeError(f"{name}: got {type(gates).__name__}, needs a list with one tensor per layer")
    layers = [as_tensor(q, f"{name}[{index}]") for index, q in enumerate(gates)]
    if not layers:
        raise ValueError(f"{name}: got an empty list, needs at least one layer")
    for index, q in enumerate(layers):
        if not q.dtype.is_floating_point:
            raise TypeError(f"{name}[{index}]: got {q.dtype}, needs a float dtype; npk_gram takes hard gates")
        if q.dim() < 2 or 0 in q.shape[1:]:
            raise ValueError(f"{name}[{index}]: got shape {tuple(q.shape)}, needs (n, *shape) with at least one gate")
        if q.shape[0] != layers[0].shape[0]:
            raise ValueError(f"{name}[{index}]: got {q.shape[0]} rows, {name}[0] has {layers[0].shape[0]}")
        if q.device != layers[0].device:
            raise ValueError(f"{name}[{index}]: is on {q.device}, {name}[0] is on {layers[0].device}")
    return [q.flatten(1) for q in layers]


def _factors(scale: str | Sequence[float], widths: list[int]) -> list[float]:
    if isinstance(scale, str):
        if scale not in ("width", "none"):
            raise ValueError(f"scale: got {scale!r}, needs 'width', 'none' or one number per layer")
        return [1.0 / w if scale == "width" else 1.0 for w in widths]
    return listed_factors(scale, len(widths))


def _stack(x: Tensor | None, layers: list[Tensor], rows: int, name: str, dtype: torch.dtype) -> Tensor:
    """Returns the layers and then x side by side, ``(n, sum of widths + d)``: Sigma is one more factor."""
    columns = [q.to(dtype) for q in layers]
    if x is not None:
        if not x.dtype.is_floating_point:
            raise TypeError(f"{name}: got {x.dtype}, needs a float dtype")
        if x.dim() != 2 or x.shape[0] != rows:
            flat = f"; {name}.flatten(1) makes rows of images" if x.dim() > 2 and x.shape[0] == rows else ""
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, needs ({rows}, d): one row per row of gates{flat}")
        if x.device != layers[0].device:
            raise ValueError(f"{name}: is on {x.device}, the gates are on {layers[0].device}")
        columns.append(x.to(dtype))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def _normalized(rows: Tensor, widths: list[int]) -> Tensor:
    """Scales the layers of each row to unit length, which divides the Gram by ``sqrt(K_ii K_jj)``.

    A layer of zeros stays 0, so K_ii stays 0. A layer is first divided by its largest number, so that squares do not
    overflow, whatever the size of the gates.
    """
    parts = []
    for whole in rows.split(widths, 1):
        peak = whole.detach().abs().amax(1, keepdim=True)
        layer = whole / torch.where(peak > 0, peak, 1.0)
        square = layer.square().sum(1, keepdim=True)
        on = square > 0
        parts.append(layer * (torch.where(on, square, 1.0).rsqrt() * on))
    return torch.cat(parts, 1)


def _check_range(sides: Sequence[Tensor], widths: Sequence[int], factors: Sequence[float]) -> None:
    """Refuses a kernel that overflows, and warns of one that underflows everywhere, if the values can be read."""
    if not all(can_be_read(rows) for rows in sides):
        return
    precise = most_precise(sides[0].device)
    peaks = []
    for rows in sides:
        layers = zip(rows.detach().split(list(widths), 1), factors, strict=True)
        peaks.append(highest([vector_norm(q, dim=1, dtype=precise).square_() * abs(s) for q, s in layers]))
    judge(peaks, sides[0].dtype, "normalize=True", stacklevel=5)


@torch.library.register_fake("gatedops::soft_npk_gram")
def _(a: Tensor, b: Tensor | None, widths: list[int], scale: list[float]) -> Tensor:
    return a.new_empty((a.shape[0], a.shape[0] if b is None else b.shape[0]))


@torch.library.register_fake("gatedops::soft_npk_gram_backward")
def _(grad: Tensor, a: Tensor, b: Tensor | None, widths: list[int], scale: list[float]) -> Tensor:
    return a.new_empty(a.shape)


def _save(ctx: Any, inputs: tuple) -> None:
    a, b, widths, scale = inputs
    ctx.save_for_backward(a, b)
    ctx.save_for_forward(a, b)
    ctx.rest = (widths, scale)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    a, b = ctx.saved_tensors
    da = soft_gram_backward(grad, a, b, *ctx.rest) if ctx.needs_input_grad[0] else None
    db = soft_gram_backward(grad.mT, b, a, *ctx.rest) if ctx.needs_input_grad[1] else None
    return da, db, None, None


def _jvp(ctx: Any, ta: Tensor | None, tb: Tensor | None, *_: None) -> Tensor:
    """Sums the Grams in which one layer is replaced by its tangent."""
    a, b = ctx.saved_tensors
    widths, scale = ctx.rest
    right = a if b is None else b
    total = torch.zeros(a.shape[0], right.shape[0], dtype=a.dtype, device=a.device)
    for layer in range(len(widths)):
        if ta is not None:
            term = soft_gram(_replaced(a, ta, widths, layer), right, widths, scale)
            total = total + (term + term.mT if b is None else term)
        if tb is not None:
            total = total + soft_gram(a, _replaced(b, tb, widths, layer), widths, scale)
    return total


def _replaced(rows: Tensor, tangent: Tensor, widths: list[int], layer: int) -> Tensor:
    parts = list(rows.split(widths, 1))
    parts[layer] = tangent.split(widths, 1)[layer]
    return torch.cat(parts, 1)


def _save_nothing(ctx: Any, inputs: tuple) -> None:
    return None


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("soft_npk_gram is differentiable once; for second derivatives use gatedops.reference")


soft_gram = Differentiable("soft_npk_gram", _save, _backward, _jvp)
soft_gram_backward = Differentiable(
    "soft_npk_gram_backward", _save_nothing, _no_second_derivative, _no_second_derivative
)
