"""Hard gates on activations of any shape: wrappers, fake kernels and derivatives of gate_relu and gate_select."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer, layer_words
from gatedops.ops.checks import require_tensor
from gatedops.ops.differentiable import Differentiable
from gatedops.ops.gated_linear import DTYPES, soft_gate
from gatedops.ops.gates import by_position, pack_layer


def relu_with_gates(q: Tensor) -> tuple[Tensor, GateBits]:
    """Returns ``relu(q)`` in q's shape and memory format, and its gates, in one pass.

    Args:
        q: ``(n, w)``, ``(n, T, C)`` or ``(n, C, H, W)``, float32, float64, bfloat16 or float16.

    Raises:
        TypeError, ValueError: the message names q.
    """
    _require_activations(q)
    z, words = _relu(by_position(q, "gate"))
    return _from_position(z, q), GateBits(words, (GateLayer("0", tuple(q.shape[1:])),))


def apply_gate(q: Tensor, gate: GateBits | Tensor) -> Tensor:
    """Returns ``q * gate`` for a given gate.

    Args:
        q: as in :func:`relu_with_gates`.
        gate: GateBits (one layer) or bool of q's shape: a hard gate; the result is exactly 0 where it is off, even if q
            is infinite or NaN there, and no gradient passes through it. Float of q's shape and dtype: a soft gate.

    Raises:
        TypeError, ValueError: the message names the argument.
    """
    _require_activations(q)
    if not isinstance(gate, GateBits):
        require_tensor(gate, "gate")
        if gate.dtype != torch.bool:
            return q * soft_gate(gate, q.shape, q)
    words, first = _hard_gate(gate, q)
    return _from_position(_select(by_position(q, "gate"), words, first), q)


def _require_activations(q: Tensor) -> None:
    require_tensor(q, "q")
    if q.dtype not in DTYPES:
        raise TypeError(f"q: got {q.dtype}, needs float32, float64, bfloat16 or float16")
    if q.dim() not in (2, 3, 4, 5) or 0 in q.shape[1:]:
        raise ValueError(
            f"q: got shape {tuple(q.shape)}, needs (n, w), (n, T, C), (n, C, H, W) or (n, C, D, H, W), at least one"
            " gate"
        )


def _hard_gate(gate: GateBits | Tensor, q: Tensor) -> tuple[Tensor, int]:
    """Returns the words of a hard gate and the index of its first word."""
    if isinstance(gate, GateBits) and (len(gate.layers) != 1 or gate.layers[0].kind != "gate"):
        raise ValueError(f"gate: has the layers {gate.layers}, needs one of gates; choose it with select_layers")
    shape = tuple(gate.shape) if isinstance(gate, Tensor) else (gate.n, *gate.layers[0].shape)
    if shape != tuple(q.shape):
        raise ValueError(f"gate: got shape {shape}, needs that of q, {tuple(q.shape)}")
    if gate.device != q.device:
        raise ValueError(f"gate: is on {gate.device}, q is on {q.device}")
    return (pack_layer(gate, "gate"), 0) if isinstance(gate, Tensor) else (gate.words, gate.layers[0].first_word)


def _from_position(z: Tensor, q: Tensor) -> Tensor:
    """Returns z, ``(n, positions, channels)``, in the shape of q."""
    if q.dim() == 2:
        return z.squeeze(1)
    return z if q.dim() == 3 else z.unflatten(1, q.shape[2:]).movedim(-1, 1)


def _has_dense_rows(q: Tensor) -> bool:
    """Whether each row (P, C) is one block of memory, in either order, and the rows follow each other."""
    n, positions, channels = q.shape
    row, position, channel = q.stride()

    def steps(by_position: int, by_channel: int) -> bool:
        return (positions == 1 or position == by_position) and (channels == 1 or channel == by_channel)

    return (n <= 1 or row == positions * channels) and (steps(channels, 1) or steps(1, positions))


def empty_activations(q: Tensor) -> Tensor:
    """Allocates a result of q's shape (n, P, C): in q's memory format if its rows are dense, else contiguous."""
    return torch.empty_like(q) if _has_dense_rows(q) else q.new_empty(q.shape)


@torch.library.register_fake("gatedops::gate_relu")
def _(q: Tensor) -> tuple[Tensor, Tensor]:
    n, positions, channels = q.shape
    return empty_activations(q), q.new_empty((n, layer_words(positions, channels)), dtype=torch.int32)


@torch.library.register_fake("gatedops::gate_select")
def _(q: Tensor, words: Tensor, first: int) -> Tensor:
    return empty_activations(q)


def _save_relu(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.save_for_forward(output[1])


def _relu_backward(ctx: Any, grad: Tensor | None, _words: None) -> Any:
    return None if grad is None else _select(grad, ctx.saved_tensors[0], 0)


def _relu_jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
    return _select(tangent, ctx.saved_tensors[0], 0), None


def _save_select(ctx: Any, inputs: tuple) -> None:
    _, words, first = inputs
    ctx.save_for_backward(words)
    ctx.save_for_forward(words)
    ctx.first = first


def _select_backward(ctx: Any, grad: Tensor) -> tuple:
    return _select(grad, ctx.saved_tensors[0], ctx.first), None, None


def _select_jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
    return _select(tangent, ctx.saved_tensors[0], ctx.first)


_relu = Differentiable("gate_relu", _save_relu, _relu_backward, _relu_jvp, saves_output=True)
_select = Differentiable("gate_select", _save_select, _select_backward, _select_jvp)
