"""Gated layers in plain torch (docs/math.md, section 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from gatedops.gatebits import GateBits
from gatedops.reference.gates import pack_gates, unpack_gates


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: GateBits | Tensor | None = None,
    *,
    return_gates: bool = False,
) -> Tensor | tuple[Tensor, GateBits]:
    """Computes (x W^T + b) * gate, (..., w), with own gates (None), hard ones (GateBits, bool) or soft ones (float)."""
    product = torch.nn.functional.linear(x, weight, bias)
    if isinstance(gate, Tensor) and gate.dtype != torch.bool:
        return product * gate
    if gate is None:
        y, mask = product.relu(), product > 0
    else:
        mask = (unpack_gates(gate)[0] if isinstance(gate, GateBits) else gate).reshape(product.shape)
        y = torch.where(mask, product, 0)
    return (y, pack_gates(mask.reshape(-1, mask.shape[-1]))) if return_gates else y


def gated_linear_pair(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    gate: str = "hard",
    beta: float = 4.0,
    gain: float = 1.0,
    feature: str = "relu",
    gates_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, GateBits]:
    """Computes one layer of a deep gated network: the next features and the gated values, (..., w), and q's gates."""
    q = torch.nn.functional.linear(h, w_f, b_f)
    v = torch.nn.functional.linear(z, w_v, b_v)
    h_next = q.relu() if feature == "relu" else q
    z_next = torch.where(q > 0, v, 0) if gate == "hard" else v * (gain * torch.sigmoid(beta * q))
    bits = pack_gates((q > 0).reshape(-1, q.shape[-1]))
    if gates_out is not None:
        bits = GateBits(gates_out.copy_(bits.words), bits.layers)
    return h_next, z_next, bits
