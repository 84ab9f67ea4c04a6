"""The least time that a GPU allows a Gram, from published rates of its units."""

from __future__ import annotations

from dataclasses import dataclass

from _common.contest import Limit
from _common.problems import Cell

STEP = 256  # gates of one binary tensor-core step: a layer takes whole steps

# Operations per second of and.popc on single bits, two for each pair of bits. This is the ceiling of wgmma m64nNk256
# on an H200; mma.sync reaches about 9e15 there. The best published matrix product on these units
# (SpectralSequences/sseq, ext/crates/fp-cuda, README) reaches 8.5e15 (16384 cubed) and 9.6e15 (32768 cubed) on an
# H200 NVL.
BINARY = 12.5e15
# NVIDIA's data sheets of the H100 SXM and the H200 give these rates without sparsity, and the boost clock.
INT8, TF32, CLOCK, MULTIPROCESSORS = 1979e12, 494.7e12, 1.98e9, 132
# A float32 product takes three TF32 products (the scheme of CUTLASS's 3xTF32 example).
SIGMA = {None: 0.0, "uint8": 1 / INT8, "float32": 3 / TF32}  # seconds for each operation
# To multiply the counts of 64 x 128 pairs into a product takes 3 instructions (scale, multiply, begin anew) for each
# of 64 registers of 4 warps, one instruction a cycle on each of the 4 parts of a multiprocessor.
EPILOGUE_PAIRS, EPILOGUE_CYCLES = 64 * 128, 192


@dataclass(frozen=True)
class Rates:
    """gpu: a part of the device's name; bytes_per_second: what a copy reaches, reads and writes counted."""

    gpu: str
    bytes_per_second: float


# An H200 copies at 4.3e12 of its 4.8e12 bytes/s; an H100 SXM (3.35e12) is taken to reach the same share.
RATES = (Rates("H200", 4.3e12), Rates("H100", 3.0e12))


def rates_of(gpu: str) -> Rates | None:
    """Returns the rates of a device by its name, or None if nothing is known."""
    return next((rates for rates in RATES if rates.gpu in gpu), None)


def gram_limit(cell: Cell, rates: Rates, inputs: int = 0, dtype: str | None = None) -> Limit:
    """Returns the limit of the symmetric Gram in float32, each unordered pair once. inputs: columns of x."""
    pairs = cell.n * (cell.n + 1) / 2
    pairs_per_second = MULTIPROCESSORS * EPILOGUE_PAIRS / EPILOGUE_CYCLES * CLOCK
    units = {"epilogue": pairs * cell.layers / pairs_per_second, "Sigma": 2 * pairs * inputs * SIGMA[dtype]}
    return Limit({**counts_limit(cell, rates, pairs).parts, **units})


def counts_limit(cell: Cell, rates: Rates, pairs: float | None = None) -> Limit:
    """Returns the limit of counting and writing these pairs, or all n x n pairs of two different sets."""
    steps = -(-cell.width // STEP) * STEP * cell.layers
    counts = 2 * (cell.n**2 if pairs is None else pairs) * steps / BINARY
    return Limit({"counting": counts, "writing": 4 * cell.n**2 / rates.bytes_per_second})
