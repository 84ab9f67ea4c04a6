"""GatedConv2d: a convolution and its gates."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.ops.gated_linear_gate import apply_gate, relu_with_gates


class GatedConv2d(nn.Conv2d):
    """A 2-d convolution with gates. It has the parameters, initialisation and state_dict keys of
    :class:`torch.nn.Conv2d`.

    ``layer(x)`` is Conv2d and ReLU; ``layer(x, gate)`` takes the gate from outside. A hard gate is GateBits or bool
    ``(n, C, H, W)``: the result is exactly 0 where it is off, even if the convolution is infinite or NaN there, and no
    gradient passes through the gate. A soft gate is a float tensor of the output's dtype. The backward of a hard gate
    keeps one bit per gate.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as for torch.nn.Conv2d.
    """

    @overload
    def forward(
        self, x: Tensor, gate: GateBits | Tensor | None = ..., *, return_gates: Literal[False] = ...
    ) -> Tensor: ...
    @overload
    def forward(
        self, x: Tensor, gate: GateBits | Tensor | None = ..., *, return_gates: Literal[True]
    ) -> tuple[Tensor, GateBits]: ...
    def forward(
        self, x: Tensor, gate: GateBits | Tensor | None = None, *, return_gates: bool = False
    ) -> Tensor | tuple[Tensor, GateBits]:
        """Maps ``(n, in_channels, H, W)`` to ``(n, out_channels, H', W')``; with `return_gates` also returns the hard
        gates.

        As in nn.Conv2d, an input without the first dimension gives a result without it; its gates have one row.

        Raises:
            TypeError, ValueError: an argument does not fit, and the error names it; return_gates with a soft gate.
        """
        if x.dim() not in (3, 4):
            raise ValueError(f"x: got shape {tuple(x.shape)}, needs (n, in_channels, H, W)")
        if x.device != self.weight.device:
            raise ValueError(f"x: is on {x.device}, the layer is on {self.weight.device}; move one of them")
        q = self._conv_forward(x, self.weight, self.bias)
        if gate is None and not return_gates:
            return torch.relu(q)
        if x.dim() == 4:
            return _gated(q, gate, return_gates)
        one_gate = gate.unsqueeze(0) if isinstance(gate, Tensor) else gate
        z = _gated(q.unsqueeze(0), one_gate, return_gates)
        return (z[0].squeeze(0), z[1]) if isinstance(z, tuple) else z.squeeze(0)


def _gated(q: Tensor, gate: GateBits | Tensor | None, return_gates: bool) -> Tensor | tuple[Tensor, GateBits]:
    """Returns the gated ``(n, C, H, W)`` and, with `return_gates`, its hard gates."""
    if gate is None:
        return relu_with_gates(q) if return_gates else torch.relu(q)
    z = apply_gate(q, gate)
    if not return_gates:
        return z
    if isinstance(gate, GateBits):
        return z, gate
    if gate.dtype != torch.bool:
        raise ValueError("return_gates: a soft gate has no bits to return")
    return z, GateBits.pack([gate])
