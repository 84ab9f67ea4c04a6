"""The dtypes that Grams are computed in, and a net that their tests share."""

from __future__ import annotations

import torch
from strategies import dense

FLOATS = [torch.float32, torch.float64]
# The first layer is wider than a tile has rows, and the layers end off every boundary.
SHAPE = dense(257, 64, 1, 1000)
