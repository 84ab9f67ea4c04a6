"""What happens to the kernel when one of the images is rotated over its edges, by every number of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import gatedops
from gatedops.nn import conv_spec

HEADER = ("padding", "H over all rotations of one image: (largest - smallest) / mean")
IMAGES = 3


@dataclass(frozen=True)
class Shifts:
    """padding mode; spread, the largest over the images of (max - min) / mean of H(x, rotated x') over all rotations;
    the map (H, W) of H(x, x' rotated by h rows and w columns) over its mean, for one pair."""

    padding: str
    spread: float
    map: Tensor

    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        return self.padding, f"{self.spread:.2e}"


def over_shifts(images: Tensor, channels: list[int], dense: list[int], seed: int) -> list[Shifts]:
    """For circular and for zero padding, with one set of random weights; images (n, C, H, W), the last one rotates.

    In float64: in float32 a pre-activation close to 0 may change its sign with the order of a sum.
    """
    images = images[: IMAGES + 1].double()
    height, width = images.shape[2:]
    rotated = torch.stack([images[-1].roll((h, w), (1, 2)) for h in range(height) for w in range(width)])
    found = []
    for padding in ("circular", "zeros"):
        spec = conv_spec(images.shape[1:], channels, dense, 2, "gap", padding_mode=padding)
        net = spec.relu_net(seed, dtype=torch.float64).eval()
        h = gatedops.npk(net, images[:-1], rotated, dtype=torch.float64)
        spread = (h.amax(1) - h.amin(1)) / h.mean(1)
        found.append(Shifts(padding, float(spread.max()), (h[0] / h[0].mean()).view(height, width)))
    return found
