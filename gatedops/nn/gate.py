"""Gate: torch.nn.ReLU that can record and take gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.ops.gated_linear_gate import apply_gate, relu_with_gates


class Gate(nn.Module):
    """A drop-in for :class:`torch.nn.ReLU` that can record its gates, or take them from outside.

    Args:
        record: keep the gates of the last call in `gates`.

    Attributes:
        record: as given; may be changed at any time.
        gates: GateBits of the last call while `record` is on, shape ``(w,)``, ``(T, C)`` or ``(C, H, W)``; else None.
        given: gates that replace the layer's own, for networks that call it with one argument: GateBits, a bool tensor
            (hard) or a float tensor (soft) of the activations' shape. None: the layer uses its own gates.

    Raises:
        TypeError, ValueError: a call records or takes gates that do not fit the activations.
    """

    gates: GateBits | None
    given: GateBits | Tensor | None

    def __init__(self, record: bool = False) -> None:
        super().__init__()
        self.record = record
        self.gates = None
        self.given = None

    def forward(self, q: Tensor, gate: GateBits | Tensor | None = None) -> Tensor:
        """Returns ``relu(q)``, or ``q * gate``, which is exactly 0 where a hard gate is off.

        Args:
            q: any shape; if gates are recorded or given, ``(n, w)``, ``(n, T, C)`` or ``(n, C, H, W)``.
            gate: replaces `given` in this call.
        """
        gate = self.given if gate is None else gate
        if gate is not None:
            z = apply_gate(q, gate)
            if self.record:
                self.gates = _as_bits(gate)
            return z
        if not self.record:
            return torch.relu(q)
        z, self.gates = relu_with_gates(q)
        return z

    def extra_repr(self) -> str:
        return "record=True" if self.record else ""


def _as_bits(gate: GateBits | Tensor) -> GateBits | None:
    """The hard gate as GateBits; None for a soft one."""
    if isinstance(gate, GateBits):
        return gate
    return GateBits.pack([gate]) if gate.dtype == torch.bool else None
