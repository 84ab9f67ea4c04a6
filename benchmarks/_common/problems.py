"""Sizes of problems, random gates of these sizes, and the kinds of gated layers that are timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gatedops import GateBits

LAYER_KINDS = {
    "layer": "Linear and ReLU",
    "value": "value layer, hard gates from outside",
    "pair": "pair, hard gates, both networks trained",
    "frozen": "pair, hard gates, feature network frozen",
    "soft": "pair, soft gates, both networks trained",
}


@dataclass(frozen=True)
class Cell:
    """n points, `layers` layers of `width` gates."""

    n: int
    layers: int
    width: int

    @property
    def bits_per_pair(self) -> int:
        return self.layers * self.width

    @property
    def bit_pairs(self) -> int:
        """The bit-pairs of the symmetric Gram: every unordered pair of points once, the diagonal with it."""
        return self.n * (self.n + 1) // 2 * self.bits_per_pair

    def facts(self) -> dict[str, object]:
        """For the JSON of an entry."""
        return {"n": self.n, "layers": self.layers, "width": self.width}

    def __str__(self) -> str:
        return f"n={self.n}, {self.layers} x {self.width}"


def random_gates(cell: Cell, seed: int, device: str = "cpu") -> GateBits:
    """Returns random gates of a cell."""
    return random_bits(cell.n, [cell.width] * cell.layers, seed, device)


def random_bits(n: int, widths: Sequence[int], seed: int, device: str = "cpu") -> GateBits:
    """Returns gates that are on with probability 1/2, made as words: no mask of n x sum(widths) bytes is ever there."""
    all_on = GateBits.pack([torch.ones(1, width, dtype=torch.bool) for width in widths])
    generator = torch.Generator(device).manual_seed(seed)
    shape = (n, all_on.words.shape[1])
    words = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32, device=device)
    return GateBits(words & all_on.words.to(device), all_on.layers)
