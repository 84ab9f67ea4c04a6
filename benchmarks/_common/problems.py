"""Sizes of problems, and random gates of these sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gatedops import GateBits


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
    """Gates that are on with probability 1/2, made as words: no mask of n x layers x width bytes is ever there."""
    all_on = GateBits.pack([torch.ones(1, cell.width, dtype=torch.bool)] * cell.layers)
    generator = torch.Generator(device).manual_seed(seed)
    shape = (cell.n, all_on.words.shape[1])
    words = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32, device=device)
    return GateBits(words & all_on.words.to(device), all_on.layers)
