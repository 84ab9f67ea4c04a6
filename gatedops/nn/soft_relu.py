"""SoftReLU: the ReLU with a soft gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatedops.scalars import positive_number


class SoftReLU(nn.Module):
    """A ReLU whose gate is a number, ``q * gain * sigmoid(beta q)`` (Lakshminarayanan, Singh & Rajkumar 2021, arXiv
    2110.03403). It is smooth, and gradients flow through the gate too; :func:`gatedops.ntk` separates the gradients
    through gates from the others.

    Args:
        beta: positive steepness of the gate; the larger it is, the closer to ReLU.
        gain: positive factor of the gate.

    Raises:
        TypeError, ValueError: beta or gain is not a positive number.
    """

    def __init__(self, beta: float = 4.0, gain: float = 1.0) -> None:
        super().__init__()
        self.beta = positive_number(beta, "beta")
        self.gain = positive_number(gain, "gain")

    def gate(self, q: Tensor) -> Tensor:
        """The soft gate of each pre-activation, in q's shape."""
        return self.gain * torch.sigmoid(self.beta * q)

    def forward(self, q: Tensor) -> Tensor:
        """The activation, in q's shape."""
        return q * self.gate(q)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, gain={self.gain}"
