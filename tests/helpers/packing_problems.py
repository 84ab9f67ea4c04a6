"""Lists what tests pack: every dtype of pre-activations, and one layer of each shape."""

from __future__ import annotations

import torch
from strategies import Spec, masks

from gatedops import GateBits

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool]
# There is one layer of each shape, and no size is at a boundary.
MIXED: list[Spec] = [((300,), "gate"), ((3, 65), "gate"), ((33, 2, 3), "gate"), ((4, 5, 2, 2), "select")]


def mixed_bits(n: int = 9, seed: int = 0) -> GateBits:
    gates = masks(n, MIXED, seed)
    return GateBits.pack(gates, names=["a", "b", "c", "d"], kinds=[kind for _, kind in MIXED])
