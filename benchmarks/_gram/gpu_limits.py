"""The least time that a GPU allows a Gram, from published rates of its units."""

from __future__ import annotations

from dataclasses import dataclass

from _gram.entry import Cell, Limit

STEP = 256  # gates of one binary tensor-core step: a layer takes whole steps

# Operations per second of and.popc on single bits, two a pair of bits. The ceiling of wgmma m64nNk256 on an H200;
# mma.sync reaches about 9e15 there. The best published matrix product on these units, SpectralSequences/sseq,
# ext/crates/fp-cuda, README: 8.5e15 (16384 cubed) and 9.6e15 (32768 cubed) on an H200 NVL.
BINARY = 12.5e15
# NVIDIA's data sheets of the H100 SXM and H200, without sparsity: int8 and TF32 tensor cores, boost clock.
INT8, TF32, CLOCK, MULTIPROCESSORS = 1979e12, 494.7e12, 1.98e9, 132
# A float32 product of three TF32 products (the scheme of CUTLASS's 3xTF32 example).
TF32_PRODUCTS = 3
# To multiply the counts of 64 x 128 pairs into a product: scale, multiply and begin anew are 3 instructions for each
# of 64 registers of 4 warps, one instruction a cycle on each of the 4 parts of a multiprocessor.
EPILOGUE_PAIRS, EPILOGUE_CYCLES = 64 * 128, 192


@dataclass(frozen=True)
class Rates:
    """gpu: part of the device's name; bytes_per_second: what a copy reaches, reads and writes counted."""

    gpu: str
    bytes_per_second: float


# An H200 copies at 4.3e12 of its 4.8e12 bytes/s; an H100 SXM, 3.35e12, is taken to reach the same share.
RATES = (Rates("H200", 4.3e12), Rates("H100", 3.0e12))


def rates_of(gpu: str) -> Rates | None:
    """For a device name; None where nothing is known."""
    return next((rates for rates in RATES if rates.gpu in gpu), None)


def gpu_limit(cell: Cell, rates: Rates | None, inputs: int = 0, dtype: str | None = None) -> Limit | None:
    """Of the symmetric Gram in float32, each unordered pair once. inputs: columns of x; dtype: "uint8", "float32"."""
    if rates is None:
        return None
    pairs = cell.n * (cell.n + 1) / 2
    steps = -(-cell.width // STEP) * STEP
    sigma = {None: 0.0, "uint8": 1 / INT8, "float32": TF32_PRODUCTS / TF32}[dtype]
    per_cycle = MULTIPROCESSORS * EPILOGUE_PAIRS / EPILOGUE_CYCLES
    return Limit(
        counts_s=2 * pairs * cell.layers * steps / BINARY,
        writes_s=4 * cell.n**2 / rates.bytes_per_second,
        epilogue_s=pairs * cell.layers / (per_cycle * CLOCK),
        sigma_s=2 * pairs * inputs * sigma,
    )


def counts_limit(cell: Cell, rates: Rates | None) -> Limit | None:
    """Of int32 counts of all n x n pairs of two different sets of one layer, no pair left out."""
    if rates is None:
        return None
    steps = -(-cell.width // STEP) * STEP
    return Limit(2 * cell.n**2 * steps / BINARY, 4 * cell.n**2 / rates.bytes_per_second)
