"""Layers with gates: drop-in replacements for torch's that give their gates away, or take them from outside."""

from gatedops.nn.conv import GatedConv2d
from gatedops.nn.gate import Gate
from gatedops.nn.linear import GatedLinear
from gatedops.nn.soft_relu import SoftReLU

__all__ = ["Gate", "GatedConv2d", "GatedLinear", "SoftReLU"]
