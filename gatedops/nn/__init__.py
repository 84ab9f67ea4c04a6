"""Layers that return their gates or take them from outside, as drop-in replacements for torch's layers, and deep gated
networks made of them."""

from gatedops.nn.conv import GatedConv2d
from gatedops.nn.dgn import DGN, DLGN
from gatedops.nn.dgn_spec import ConvSpec, FCSpec, conv_spec, fc_spec
from gatedops.nn.gate import Gate
from gatedops.nn.gate_cache import GateCache
from gatedops.nn.linear import GatedLinear
from gatedops.nn.soft_relu import SoftReLU

__all__ = [
    "DGN",
    "DLGN",
    "ConvSpec",
    "FCSpec",
    "Gate",
    "GateCache",
    "GatedConv2d",
    "GatedLinear",
    "SoftReLU",
    "conv_spec",
    "fc_spec",
]
