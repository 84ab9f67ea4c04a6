"""Gram on a CPU: its instruction sets and portable ops, beside torch in float32 and bfloat16, and NumKong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch
from _common.contest import OURS, Call, Limit, always
from _common.machine import bit_pair_rate, memcpy, write_bandwidth
from _common.options import available_memory
from _common.peers import input_matmul
from _common.problems import Cell
from _common.timing import best_seconds
from torch import Tensor

import gatedops
from _gram import numkong
from _gram.platform import COLUMNS, FLOATS, LAMBDA, NEW, PORTABLE, Inputs, Peer, Platform, per_layer
from gatedops import GateBits, backends
from gatedops.backends.choice import backend_of
from gatedops.portable.workspace import edge_of

PEERS = {"torch float32": torch.float32, "torch bfloat16": torch.bfloat16}
NEAREST = 10
BUFFER = 2**30  # bytes that tell how fast larger results are written
PROBE = 2048  # rows and columns of the product that tells how fast torch multiplies
PORTABLE_PROBE = 1024  # points that tell how long the portable op takes
PROBES = 4  # runs, the first of which warms up


class Cpu(Platform):
    """A CPU, on which the kernel OURS is what gatedops chooses; those named after instruction sets are forced."""

    device, packer = "cpu", OURS
    with_inputs = layer_kernels = (OURS,)

    def __init__(self, *, peers: bool):
        if backend_of("cpu", "gram") == PORTABLE:
            raise ValueError(
                "GATEDOPS_BACKEND=portable hides the kernels in C++: unset it, portable is timed beside them"
            )
        self.sets = backends.available_isas()[::-1]
        self.kernels = (OURS, *self.sets, *([PORTABLE] if peers else []))
        self.peers = tuple(PEERS) if peers else ()
        self.threads = sorted({1, torch.get_num_threads()}, reverse=True)

    def forced(self, kernel: str) -> AbstractContextManager[None]:
        return backends.force_cpu(kernel) if kernel in self.sets else nullcontext()

    def sweep_kernels(self, bits: GateBits, seconds: float) -> Sequence[str]:
        affordable = PORTABLE in self.kernels and self.portable_seconds(bits) < seconds
        return (OURS, PORTABLE) if affordable else (OURS,)

    def portable_seconds(self, bits: GateBits) -> float:
        """Estimates the time of Lambda by the portable op from the time of some of the points."""
        some = bits[: min(bits.n, PORTABLE_PROBE)]
        call = partial(self.gram, PORTABLE, some, None, torch.empty(some.n, some.n))
        return best_seconds(call, PROBES) * _pairs(bits) / _pairs(some)

    def instruction_set(self, by: str) -> str | None:
        """Returns the instruction set of one of our kernels in C++, or None for others."""
        return backends.active_isa() if by == OURS else by if by in self.sets else None

    def limit(self, what: str, by: str, cell: Cell) -> Callable[[], Limit] | None:
        isa = self.instruction_set(by)
        if what != LAMBDA or isa is None:
            return None
        return partial(lambda_limit, cell, isa, torch.get_num_threads())

    def facts(self, cell: Cell, by: str) -> dict[str, object]:
        return cell.facts() | {"threads": torch.get_num_threads(), "instruction_set": self.instruction_set(by)}

    def memory(self) -> float:
        available = available_memory()
        return float("inf") if available is None else available / 2

    def peer_seconds(self, name: str, cell: Cell) -> float:
        return cell.n**2 * cell.bits_per_pair / multiply_rate(PEERS[name])

    def torch_grams(self, cell: Cell, bits: GateBits, given: Inputs, seconds: float) -> Iterator[Peer]:
        for name in self.affordable(cell, seconds):
            yield LAMBDA, name, partial(per_layer, bits, PEERS[name])

    def layer_peers(self, bits: GateBits) -> Iterator[Peer]:
        if numkong.numkong_version() is not None:
            yield numkong.UPPER, numkong.NAME, lambda: numkong.DotsSymmetric(bits)
            yield numkong.SQUARE, numkong.NAME, lambda: numkong.DotsSquare(bits)

    def extras(self, bits: GateBits, x: Tensor) -> Iterator[Peer]:
        v = torch.randn(bits.n, COLUMNS, generator=torch.Generator().manual_seed(0))
        calls: dict[str, Call] = {
            f"matvec with x, {COLUMNS} columns": lambda: gatedops.npk_matvec(x, bits, v),
            f"{NEAREST} nearest of each": lambda: gatedops.gate_neighbors(bits, NEAREST)[0],
            NEW: lambda: gatedops.npk_gram(None, bits),
            "counts, a new (L, n, n)": lambda: gatedops.gate_overlap(bits),
        }
        for what, call in calls.items():
            yield what, OURS, always(call)
        if self.peers:
            yield FLOATS, "torch x @ x.T alone", partial(input_matmul, x)

    def copies(self, to: Tensor, source: Tensor) -> dict[str, Call]:
        threads = torch.get_num_threads()
        return {"memcpy": lambda: memcpy(to, source, threads)} | super().copies(to, source)

    def report(self) -> dict[str, object]:
        return super().report() | {numkong.NAME: numkong.numkong_version()}


def lambda_limit(cell: Cell, isa: str, threads: int) -> Limit:
    """Returns the limit of Lambda in float32 with one instruction set, from rates that are measured here."""
    size = cell.n**2 * torch.float32.itemsize
    writing = size / write_bandwidth(min(size, BUFFER), threads)
    return Limit({"counting": cell.bit_pairs / bit_pair_rate(isa, threads), "writing": writing})


@cache
def multiply_rate(dtype: torch.dtype) -> float:
    """Measures the multiply-adds per second of torch.mm."""
    a, out = torch.ones(PROBE, PROBE, dtype=dtype), torch.empty(PROBE, PROBE, dtype=dtype)
    return PROBE**3 / best_seconds(lambda: torch.mm(a, a, out=out), PROBES)


def _pairs(bits: GateBits) -> float:
    """Counts the pairs of rows in the tiles on and above the diagonal, which are those that are computed."""
    return bits.n * (bits.n + min(bits.n, edge_of(bits.device))) / 2
