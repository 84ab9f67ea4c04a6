"""Who computes a Gram on a GPU: the kernels of gatedops, and plain torch with a matrix product per layer."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from _common.peers import MatmulPerLayer
from torch import Tensor

import gatedops
from _gram.entry import Cell
from _gram.portable import PORTABLE, portable_counts, portable_gram
from gatedops import GateBits, backends
from gatedops.backends.choice import backend_of

WGMMA, ALONE, MMA_SYNC, TRITON = "wgmma", "wgmma, no clusters", "mma.sync", "Triton"
FORCED = {WGMMA: "sm90", ALONE: "sm90x1", MMA_SYNC: "sm80"}  # what GATEDOPS_CUDA calls them
INT8, FLOAT16 = "torch int8", "torch float16"
PEERS = (INT8, FLOAT16)
RATE = {INT8: 1.3e15, FLOAT16: 0.7e15}  # operations a second, to tell what a peer will take; two thirds of the limit
BANDWIDTH = 3e12  # bytes a second, for the same
LARGEST = 1e30  # of a product of widths whose multipliers are still to come: float32 ends at 3.4e38


class Int8PerLayer:
    """Lambda (or Sigma * Lambda) of gates stored as int8: torch._int_mm per layer, multiplied in place.

    masks  bool (n, w_l) per layer, widths and n multiples of 8; converted here, outside the timing
    scale  multiplier per layer; those of several layers are applied at once, before float32 would overflow
    x      inputs (n, d), or None for Lambda alone; multiplied in float32, in TF32 where `tf32`

    Calling it returns the (n, n) result, in a buffer that every call uses again.
    """

    def __init__(self, masks: Sequence[Tensor], scale: Sequence[float], x: Tensor | None = None, *, tf32: bool = False):
        self.gates = [mask.to(torch.int8) for mask in masks]
        self.scale, self.tf32 = list(scale), tf32
        self.x = None if x is None else x.to(torch.float32)
        n, device = len(self.gates[0]), masks[0].device
        self.product = torch.empty(n, n, device=device)
        self.count = torch.empty(n, n, dtype=torch.int32, device=device)

    def with_inputs(self, x: Tensor | None, *, tf32: bool) -> Int8PerLayer:
        """The same gates and buffers with other inputs."""
        other = copy.copy(self)
        other.x, other.tf32 = None if x is None else x.to(torch.float32), tf32
        return other

    def __call__(self) -> Tensor:
        pending, widths = 1.0, 1.0
        if self.x is not None:
            with float32_products(tf32=self.tf32):
                torch.mm(self.x, self.x.T, out=self.product)
        for layer, (gates, scale) in enumerate(zip(self.gates, self.scale, strict=True)):
            torch._int_mm(gates, gates.T, out=self.count)
            if layer == 0 and self.x is None:
                self.product.copy_(self.count)
            else:
                self.product.mul_(self.count)
            pending, widths = pending * scale, widths * gates.shape[1]
            if widths > LARGEST:
                self.product.mul_(pending)
                pending, widths = 1.0, 1.0
        return self.product if pending == 1.0 else self.product.mul_(pending)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """torch multiplies float32 matrices in float32, or in TF32, inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def torch_peer(name: str, masks: Sequence[Tensor], cell: Cell) -> Callable[[], Tensor]:
    """Lambda alone. float16 rounds every count above 2048 and the product: fast and inexact."""
    factors = [1 / cell.width] * cell.layers
    return Int8PerLayer(masks, factors) if name == INT8 else MatmulPerLayer(masks, factors, torch.float16)


def peer_bytes(name: str, cell: Cell) -> int:
    """Memory of a torch peer beside the packed gates: masks, gates as numbers, two n x n buffers."""
    size = {INT8: 1, FLOAT16: 2}[name]
    buffers = {INT8: 8, FLOAT16: 4}[name]
    return cell.n * cell.bits_per_pair * (1 + size) + buffers * cell.n**2


def peer_seconds(name: str, cell: Cell) -> float:
    """About what one run takes."""
    traffic = {INT8: 16, FLOAT16: 8}[name] * cell.n**2 * cell.layers
    return 2 * cell.n**2 * cell.bits_per_pair / RATE[name] + traffic / BANDWIDTH


def affordable_peers(cell: Cell, seconds: float, free: int) -> list[str]:
    """Those that a cell has the time and, all of them at once, the memory for."""
    names: list[str] = []
    for name in PEERS:
        fits = sum(peer_bytes(each, cell) for each in (*names, name)) < 0.9 * free
        names += [name] if fits and peer_seconds(name, cell) < seconds else []
    return names


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """gatedops._C_cuda, which looks at each launch, uses this one of its kernels inside the block."""
    before = os.environ.get("GATEDOPS_CUDA")
    if name in FORCED:
        os.environ["GATEDOPS_CUDA"] = FORCED[name]
    try:
        yield
    finally:
        os.environ.pop("GATEDOPS_CUDA", None)
        if before is not None:
            os.environ["GATEDOPS_CUDA"] = before


def kernel_names(backend: str, major: int, triton: bool, forced: str | None = None) -> list[str]:
    """The kernels that can be timed with a backend on a GPU of this major version, the one that it chooses first and
    portable, which every GPU runs, last; with GATEDOPS_CUDA, the forced one alone."""
    ours = [] if backend != "cuda" else list(FORCED) if major == 9 else [MMA_SYNC]
    if forced:
        return [name for name in ours if FORCED[name] == forced]
    return [*ours, *([TRITON] if triton and backend != PORTABLE else []), PORTABLE]


def kernels_here() -> list[str]:
    """ValueError when GATEDOPS_CUDA asks for what there is not."""
    backend = backend_of("cuda", "gram")
    forced, major = os.environ.get("GATEDOPS_CUDA"), torch.cuda.get_device_capability()[0]
    names = kernel_names(backend, major, backends.missing_for("triton") is None, forced)
    if not names:
        raise ValueError(f"GATEDOPS_CUDA: got {forced!r}, which is not a kernel of the {backend} backend on this GPU")
    return names


def packing_kernel() -> str:
    """What packs gates here: the cuda backend has no kernel of its own for that."""
    return TRITON if backend_of("cuda", "gates") == "triton" else PORTABLE


def counts_call(name: str, x: GateBits, y: GateBits) -> Callable[[], Tensor]:
    """The counts of two sets of rows by one of our kernels; Triton's is the one that gatedops chooses with it alone."""
    if name == PORTABLE:
        return lambda: portable_counts(x, y)

    def chosen() -> Tensor:
        with forced_kernel(name):
            return gatedops.gate_overlap(x, y)

    return chosen


def gram_call(name: str, bits: GateBits, x: Tensor | None, out: Tensor) -> Callable[[], Tensor]:
    """The Gram by one of our kernels, into `out`."""
    if name == PORTABLE:
        return portable_gram(x, bits, out)
    if name == TRITON:
        from gatedops.triton import gram

        first, count = [layer.first_word for layer in bits.layers], [layer.words for layer in bits.layers]
        factors = [1 / width for width in bits.widths]

        def launched() -> Tensor:
            gram.npk_gram_out(x, bits.words, None, None, None, None, first, first, count, factors, out=out)
            return out

        return launched

    def chosen() -> Tensor:
        with forced_kernel(name):
            return gatedops.npk_gram(x, bits, out=out)

    return chosen
