"""GatedLinear: a fully connected layer and its gates."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.ops.gated_linear import gated_linear


class GatedLinear(nn.Linear):
    """A fully connected layer with gates. It has the parameters, initialisation and state_dict keys of
    :class:`torch.nn.Linear`.

    ``layer(x)`` is Linear and ReLU; ``layer(x, gate)`` takes the gate from outside. :func:`gatedops.gated_linear` says
    which shapes and dtypes it takes, and which errors it raises.

    Args:
        in_features, out_features, bias, device, dtype: as for torch.nn.Linear.
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
        """Maps ``(..., in_features)`` to ``(..., out_features)``; with `return_gates` also returns the hard gates."""
        if return_gates:
            return gated_linear(x, self.weight, self.bias, gate, return_gates=True)
        return gated_linear(x, self.weight, self.bias, gate)
