"""What a section has to know of a device: our kernels there, who else can be timed, and the limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from _common.contest import Call, Limit
from _common.peers import MatmulPerLayer
from _common.problems import Cell
from torch import Tensor

import gatedops
from gatedops import GateBits
from gatedops.ops.gram_args import layout_of
from gatedops.portable import gram as portable

PORTABLE = "portable"
LAMBDA, PIXELS, FLOATS = "Lambda", "Gram with x, uint8", "Gram with x, float32"
NEW, MATVEC, COUNTS = "Lambda, a new (n, n)", "matvec, 10 columns", "counts"
INPUTS, COLUMNS = 784, 10  # columns of x, and of the matrix that Lambda is multiplied by

Inputs = Mapping[str, Tensor | None]  # the name of a Gram -> its inputs
Peer = tuple[str, str, Callable[[], Call]]  # what, by, and what makes the call

# For each torch peer: bytes of a gate stored as a number, and of its n x n buffers for each pair of points.
PEER_BYTES = {"torch float32": (4, 8), "torch bfloat16": (2, 4), "torch int8": (1, 8), "torch float16": (2, 4)}


def peer_bytes(name: str, cell: Cell) -> int:
    """Returns the memory of a torch peer beside the packed gates: masks, gates as numbers, n x n buffers."""
    gate, pair = PEER_BYTES[name]
    return cell.n * cell.bits_per_pair * (1 + gate) + pair * cell.n**2


class Platform(ABC):
    """A device as the sections see it.

    kernels        our kernels that are timed, the one that gatedops chooses first
    with_inputs    those that are timed on Grams with inputs too
    layer_kernels  those that count the gates of one layer
    peers          torch peers by name; none with --no-peers
    threads        the numbers of threads that a section is run with, all of them first
    packer         the name of what packs gates here
    """

    device: str
    kernels: Sequence[str]
    with_inputs: Sequence[str]
    layer_kernels: Sequence[str]
    peers: Sequence[str]
    threads: Sequence[int]
    packer: str

    @abstractmethod
    def forced(self, kernel: str) -> AbstractContextManager[None]:
        """Makes gatedops use this kernel inside the block."""

    def sweep_kernels(self, bits: GateBits, seconds: float) -> Sequence[str]:
        """Returns the kernels that the sweep times. On a CPU, portable is one if it takes less than `seconds`."""
        return self.kernels

    @abstractmethod
    def limit(self, what: str, by: str, cell: Cell) -> Limit | Callable[[], Limit] | None:
        """Returns the least time that this machine allows, or None if it is not known."""

    def facts(self, cell: Cell, by: str) -> dict[str, object]:
        """Returns what the JSON of an entry has beside the times."""
        return cell.facts()

    @abstractmethod
    def memory(self) -> float:
        """Returns how many bytes torch peers may take."""

    @abstractmethod
    def peer_seconds(self, name: str, cell: Cell) -> float:
        """Returns about what one run of a torch peer takes."""

    @abstractmethod
    def torch_grams(self, cell: Cell, bits: GateBits, given: Inputs, seconds: float) -> Iterator[Peer]:
        """Yields Grams by the torch peers for which there is the memory, and whose run takes less than `seconds`."""

    def affordable(self, cell: Cell, seconds: float) -> list[str]:
        """Returns the peers for which there is the time and, for all of them at once, the memory."""
        memory, names = self.memory(), list[str]()
        for name in self.peers:
            fits = sum(peer_bytes(each, cell) for each in (*names, name)) < memory
            names += [name] if fits and self.peer_seconds(name, cell) < seconds else []
        return names

    def gram(self, kernel: str, bits: GateBits, x: Tensor | None, out: Tensor) -> Tensor:
        """Computes the Gram by one of our kernels into `out`. gatedops itself would not choose the portable op."""
        if kernel == PORTABLE:
            layout, factors = layout_of(bits, None), [1 / width for width in bits.widths]
            portable.npk_gram_out(x, bits.words, None, None, None, None, *layout, factors, out=out)
            return out
        with self.forced(kernel):
            return gatedops.npk_gram(x, bits, out=out)

    def counts(self, kernel: str, x: GateBits, y: GateBits | None) -> Tensor:
        """Returns the counts of one or two sets of rows by one of our kernels, a new ``(L, n, n)``."""
        if kernel == PORTABLE:
            words = (x.words, None if y is None else y.words)
            return portable.gate_overlap(*words, *layout_of(x, y), list(x.widths), "both")
        with self.forced(kernel):
            return gatedops.gate_overlap(x, y)

    def product(self, kernel: str, bits: GateBits, v: Tensor) -> Tensor:
        """Returns Lambda times a matrix by one of our kernels."""
        with self.forced(kernel):
            return gatedops.npk_matvec(None, bits, v)

    def other_gates(self, cell: Cell, seed: int) -> GateBits | None:
        """Returns the second set of rows of one-layer, or None if it counts those of one set."""
        return None

    def layer_peers(self, bits: GateBits) -> Iterator[Peer]:
        """Yields who else counts the gates of one layer."""
        yield from ()

    def extras(self, bits: GateBits, x: Tensor) -> Iterator[Peer]:
        """Yields what the headline times beside the Grams and the product."""
        yield from ()

    def copies(self, to: Tensor, source: Tensor) -> dict[str, Call]:
        """Returns what is timed beside packing: copies of the same bytes."""
        return {"copy_": lambda: to.copy_(source)}

    def packing_limit(self, q: Tensor) -> Limit | None:
        """Returns the least time for packing q, or None if it is not known."""
        return None

    def report(self) -> dict[str, object]:
        """Returns what the JSON says about this platform under "machine"."""
        return {"kernels": list(self.kernels)}


def per_layer(bits: GateBits, dtype: torch.dtype) -> MatmulPerLayer:
    """Returns what computes Lambda by a product per layer of gates stored as numbers."""
    return MatmulPerLayer(bits.unpack(), [1 / width for width in bits.widths], dtype)
