"""Compares small products of the CUDA kernels with the CPU's, a single tile first. Needs GATEDOPS_BACKEND=cuda.

    GATEDOPS_BACKEND=cuda python scripts/gpu_single_tiles.py [VALUES.pt]

Prints a line for each product. VALUES.pt holds what the GPU computed and what was expected. It is written again after
each product, so that wrong values can be found in it even if a later product hangs or ends the process. The exit code
is 1 if a product differs, or if another kernel than that of GATEDOPS_CUDA computed it. With GATEDOPS_DRY_GPU=1 the CPU
computes both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gatedops import GateBits, gate_neighbors, gate_overlap, npk_gram, npk_matvec
from gatedops.atomic_file import written_whole
from gatedops.backends import cuda_library

DRY = os.environ.get("GATEDOPS_DRY_GPU") == "1"
DEVICE = "cpu" if DRY else "cuda"
WANTED = "" if DRY else os.environ.get("GATEDOPS_CUDA", "")  # This kernel must compute all products.
# A tile has TILE rows, a stage STAGE gates, and an instruction multiplies STEP gates.
TILE, STAGE, STEP = 128, 1024, 256


def random_bits(n: int, widths: list[int], seed: int) -> GateBits:
    generator = torch.Generator().manual_seed(seed)
    return GateBits.pack([torch.rand(n, width, generator=generator) < 0.5 for width in widths])


def one_gate_each(gates: Tensor) -> GateBits:
    """Returns a tile of rows in which one gate is on."""
    masks = torch.zeros(TILE, STAGE, dtype=torch.bool)
    masks[torch.arange(TILE), gates] = True
    return GateBits.pack([masks])


def overlaps() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields counts. Row i and column 127 - i share their gate, so that a wrong descriptor, swizzle or fragment gives
    another pattern."""
    rows = torch.arange(TILE)
    for first in range(0, STAGE, STEP):
        x, y = one_gate_each(first + rows), one_gate_each(first + TILE - 1 - rows)
        yield f"one gate a row, from gate {first}", gate_overlap(x.to(DEVICE), y.to(DEVICE)), gate_overlap(x, y)
    for name, (n, m), widths in [("random", (TILE, TILE), [STAGE]), ("edges", (130, 300), [33, 2100])]:
        x, y = random_bits(n, widths, 1), random_bits(m, widths, 2)
        yield name, gate_overlap(x.to(DEVICE), y.to(DEVICE)), gate_overlap(x, y)


def products() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields products. All of them are exact, because whole numbers below 2^24 are not rounded, whatever the order."""
    bits = random_bits(300, [200, 1500], 3)
    there = bits.to(DEVICE)
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (300, 784), generator=generator, dtype=torch.uint8)
    yield "Lambda", npk_gram(None, there), npk_gram(None, bits)
    yield "Sigma of bytes", npk_gram(pixels.to(DEVICE), there), npk_gram(pixels, bits)
    x = torch.randint(-8, 8, (TILE, 64), generator=generator).float()
    on = GateBits.pack([torch.ones(TILE, 1, dtype=torch.bool)])
    yield "Sigma of floats", npk_gram(x.to(DEVICE), on.to(DEVICE)), x @ x.T
    yield "neighbours", gate_neighbors(there, 10)[1], gate_neighbors(bits, 10)[1]
    few = random_bits(300, [30, 60], 5)
    ones = torch.ones(300, 1)
    found = npk_matvec(None, few.to(DEVICE), ones.to(DEVICE), scale="none")
    yield "matvec", found, npk_gram(None, few, scale="none", dtype=torch.float64).sum(1, keepdim=True).float()


def why_wrong(found: Tensor, expected: Tensor) -> str | None:
    """Returns what is wrong with the values or the kernel, or None."""
    if WANTED and cuda_library.last_gram_kernel() != WANTED:
        return f"made by {cuda_library.last_gram_kernel()}, not by {WANTED}"
    differ = int((found != expected).sum())
    return f"wrong in {differ} of {expected.numel()}" if differ else None


def main(values: Path | None) -> int:
    # This fills new tensors, so that no result of the last product is left in them.
    torch.use_deterministic_algorithms(True, warn_only=True)
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    wrong = 0
    for compute in (overlaps, products):
        for name, found, expected in compute():
            kept[name] = (found.cpu(), expected)
            if values is not None:
                with written_whole(values) as part:
                    torch.save(kept, part)
            reason = why_wrong(kept[name][0], expected)
            wrong += reason is not None
            print(f"{name}: {reason or 'right'}", flush=True)
    print(f"{wrong} of {len(kept)} products are wrong" if wrong else f"all {len(kept)} products are right")
    return int(wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("gpu_single_tiles.py: takes one argument, the file for the values")
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) == 2 else None))
