"""Gram on a GPU: every kernel there is, beside torch's products of int8 and float16 gates."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial

import torch
from _common.contest import Call, Limit
from _common.machine import setting
from _common.problems import Cell, random_gates
from torch import Tensor

from _gram.gpu_limits import counts_limit, gram_limit, rates_of
from _gram.platform import COUNTS, FLOATS, INPUTS, LAMBDA, PIXELS, PORTABLE, Inputs, Peer, Platform, per_layer
from gatedops import GateBits, backends
from gatedops.backends.choice import backend_of
from gatedops.ops.gram_args import layout_of

WGMMA, ALONE, MMA_SYNC, TRITON = "wgmma", "wgmma, no clusters", "mma.sync", "Triton"
FORCED = {WGMMA: "sm90", ALONE: "sm90x1", MMA_SYNC: "sm80"}  # what GATEDOPS_CUDA calls them
INT8, FLOAT16 = "torch int8", "torch float16"
RATE = {INT8: 1.3e15, FLOAT16: 0.7e15}  # operations a second that tell how long a peer takes; two thirds of the limit
TRAFFIC = {INT8: 16, FLOAT16: 8}  # bytes that a peer reads and writes for each pair of points and layer
BANDWIDTH = 3e12  # bytes a second, for the same
LARGEST = 1e30  # a product of widths whose multipliers are still to come stays below: float32 ends at 3.4e38


class Gpu(Platform):
    """An NVIDIA GPU, whose limits are at published rates."""

    device = "cuda"

    def __init__(self, *, peers: bool):
        self.kernels = self.with_inputs = kernels_here()
        self.layer_kernels = [name for name in self.kernels if name != TRITON or name == self.kernels[0]]
        self.peers = (INT8, FLOAT16) if peers else ()
        self.threads = [torch.get_num_threads()]
        self.packer = packing_kernel()
        self.rates = rates_of(torch.cuda.get_device_name())

    def forced(self, kernel: str) -> AbstractContextManager[None]:
        return forced_kernel(kernel)

    def gram(self, kernel: str, bits: GateBits, x: Tensor | None, out: Tensor) -> Tensor:
        return triton_gram(bits, x, out) if kernel == TRITON else super().gram(kernel, bits, x, out)

    def other_gates(self, cell: Cell, seed: int) -> GateBits:
        return random_gates(cell, seed, self.device)

    def limit(self, what: str, by: str, cell: Cell) -> Limit | None:
        inputs = {LAMBDA: (0, None), PIXELS: (INPUTS, "uint8"), FLOATS: (INPUTS, "float32")}
        if self.rates is None or what not in (*inputs, COUNTS):
            return None
        return counts_limit(cell, self.rates) if what == COUNTS else gram_limit(cell, self.rates, *inputs[what])

    def packing_limit(self, q: Tensor) -> Limit | None:
        """Packing reads the input, and writes a bit for each element."""
        moved = q.nbytes + q.numel() / 8
        return None if self.rates is None else Limit({"memory": moved / self.rates.bytes_per_second})

    def memory(self) -> float:
        torch.cuda.empty_cache()
        return 0.9 * torch.cuda.mem_get_info()[0]

    def peer_seconds(self, name: str, cell: Cell) -> float:
        pairs = cell.n**2
        return 2 * pairs * cell.bits_per_pair / RATE[name] + TRAFFIC[name] * pairs * cell.layers / BANDWIDTH

    def torch_grams(self, cell: Cell, bits: GateBits, given: Inputs, seconds: float) -> Iterator[Peer]:
        """float16 computes Lambda alone. It rounds every count above 2048 and the product: it is fast and inexact."""
        names = self.affordable(cell, seconds)
        int8 = cache(lambda: Int8PerLayer(bits.unpack(), [1 / width for width in bits.widths]))

        def with_inputs(x: Tensor | None) -> Call:
            return int8().with_inputs(x)  # all Grams share its gates and buffers

        for what, x in given.items() if INT8 in names else ():
            yield what, INT8, partial(with_inputs, x)
        if FLOAT16 in names:
            yield LAMBDA, FLOAT16, partial(per_layer, bits, torch.float16)


class Int8PerLayer:
    """Lambda (or Sigma * Lambda) of gates stored as int8: torch._int_mm per layer, multiplied in place.

    masks  bool (n, w_l) per layer, widths and n multiples of 8; converted here, outside the timing
    scale  multiplier per layer; those of several layers are applied at once, before float32 would overflow

    Calling it returns the (n, n) result, in a buffer that every call uses again.
    """

    def __init__(self, masks: Sequence[Tensor], scale: Sequence[float]):
        self.gates, self.scale = [mask.to(torch.int8) for mask in masks], list(scale)
        self.x: Tensor | None = None
        self.tf32 = False
        n, device = len(self.gates[0]), masks[0].device
        self.product = torch.empty(n, n, device=device)
        self.count = torch.empty(n, n, dtype=torch.int32, device=device)

    def with_inputs(self, x: Tensor | None) -> Int8PerLayer:
        """Returns the same gates and buffers with inputs (n, d): floats are multiplied in float32, bytes in TF32."""
        other = copy.copy(self)
        other.x, other.tf32 = None if x is None else x.to(torch.float32), x is not None and x.dtype == torch.uint8
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


def float32_products(*, tf32: bool) -> AbstractContextManager[None]:
    """Makes torch multiply float32 matrices in float32, or in TF32, inside the block."""
    precision = "high" if tf32 else "highest"
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, precision)


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Makes gatedops._C_cuda, which looks at each launch, use this one of its kernels inside the block."""
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
    """Returns the kernels that can be timed with a backend on a GPU of this major version: first the one that it
    chooses, last portable, which every GPU runs; with GATEDOPS_CUDA, the forced one alone."""
    ours = [] if backend != "cuda" else list(FORCED) if major == 9 else [MMA_SYNC]
    if forced:
        return [name for name in ours if FORCED[name] == forced]
    return [*ours, *([TRITON] if triton and backend != PORTABLE else []), PORTABLE]


def kernels_here() -> list[str]:
    """Returns the kernels for this GPU; raises ValueError if GATEDOPS_CUDA asks for one that it does not have."""
    backend = backend_of("cuda", "gram")
    forced, major = os.environ.get("GATEDOPS_CUDA"), torch.cuda.get_device_capability()[0]
    names = kernel_names(backend, major, backends.missing_for("triton") is None, forced)
    if not names:
        raise ValueError(f"GATEDOPS_CUDA: got {forced!r}, which is not a kernel of the {backend} backend on this GPU")
    return names


def packing_kernel() -> str:
    """Returns the name of what packs gates here: the cuda backend has no kernel of its own for that."""
    return TRITON if backend_of("cuda", "gates") == "triton" else PORTABLE


def triton_gram(bits: GateBits, x: Tensor | None, out: Tensor) -> Tensor:
    """Computes the Gram by the kernel in Triton, which is called directly: gatedops may choose another."""
    from gatedops.triton import gram

    factors = [1 / width for width in bits.widths]
    gram.npk_gram_out(x, bits.words, None, None, None, None, *layout_of(bits, None), factors, out=out)
    return out
