"""NumKong's dots_symmetric on packed bits, the best published peer for one layer: optional."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch import Tensor

from gatedops import GateBits

NAME = "numkong"
UPPER, SQUARE = "counts, upper triangle", "counts, whole square"
STRIP = 32  # rows that are copied at once


def numkong_version() -> str | None:
    """Returns its version, or None if it is not installed."""
    try:
        return version(NAME)
    except PackageNotFoundError:
        return None


class DotsSymmetric:
    """Counts of one layer, the upper triangle only, into a reused buffer; NumKong has threads of its own."""

    def __init__(self, bits: GateBits):
        self.numkong, self.threads = importlib.import_module(NAME), torch.get_num_threads()
        layer = bits.layers[0]
        words = bits.words[:, layer.first_word : layer.first_word + layer.words].contiguous()
        self.bytes = words.numpy().view(np.uint8)
        self.out = self.numkong.zeros((bits.n, bits.n), dtype="uint32")

    def __call__(self) -> Tensor:
        self.numkong.dots_symmetric(self.bytes, dtype="uint1", out=self.out, threads=self.threads)
        return torch.from_numpy(np.asarray(self.out).view(np.int32))


class DotsSquare(DotsSymmetric):
    """Adds the lower triangle, as everyone who uses the Gram has to. Copying strips of a few rows is the fastest way
    that torch and NumPy offer: it takes a fifth of the time of a sum with the transpose."""

    def __call__(self) -> Tensor:
        counts = super().__call__()
        for i in range(0, len(counts), STRIP):
            end = i + STRIP
            counts[end:, i:end] = counts[i:end, end:].T
            diagonal = counts[i:end, i:end]
            diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        return counts
