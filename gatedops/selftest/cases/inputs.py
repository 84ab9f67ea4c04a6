"""Draws the arguments of cases and timings on the CPU from a seed, and moves them to the device with their layout.

Most floats are whole numbers for which every product and every sum is exact in any order, so that results can be
compared bit for bit. Some have so many bits that a product of less precision is wrong, for example one in TF32
for float32, or in float32 for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gatedops.layout import words_used
from gatedops.portable.gates import words_of
from gatedops.selftest.case import Arguments, Make

P = ParamSpec("P")

FLOAT32, FLOAT64, HALVES = torch.float32, torch.float64, (torch.bfloat16, torch.float16)
LAYER_DTYPES = (FLOAT32, FLOAT64, *HALVES)

# A row has one large odd number in this range; its other whole numbers are at most _MOST. Sums of a few hundred
# products stay below 2^53, 2^24, 2^11 and 2^8.
_ODD = {FLOAT64: (2**24, 2**25), FLOAT32: (2049, 3800), torch.float16: (5, 15), torch.bfloat16: (3, 7)}
_MOST = {FLOAT64: 3, FLOAT32: 3, torch.float16: 2, torch.bfloat16: 1}
# On a CPU, timings have this many times fewer rows.
_ON_A_CPU = 32


def name_of(dtype: torch.dtype) -> str:
    """Returns the name of a dtype as people write it: "float32"."""
    return str(dtype).removeprefix("torch.")


def shrunk(device: torch.device, rows: int) -> int:
    """Returns how many rows a timing has on this device. On a CPU they are few, for tests."""
    return max(2, rows // _ON_A_CPU) if device.type == "cpu" else rows


def drawn(build: Callable[Concatenate[Draw, P], Arguments], *args: P.args, **kwargs: P.kwargs) -> Make:
    """Returns a function that builds arguments on the CPU and moves them to any device."""

    def make(device: torch.device, seed: int = 0) -> Arguments:
        return moved(build(Draw(seed), *args, **kwargs), device)

    return make


def drawn_rows(
    build: Callable[Concatenate[Draw, int, P], Arguments], rows: int, *args: P.args, **kwargs: P.kwargs
) -> Make:
    """Returns the same for a timing, with as many rows as are timed on the device."""

    def make(device: torch.device, seed: int = 0) -> Arguments:
        return moved(build(Draw(seed), shrunk(device, rows), *args, **kwargs), device)

    return make


def moved(arguments: Arguments, device: torch.device) -> Arguments:
    """Moves arguments to a device, with the same strides and offsets inside larger tensors."""

    def move(tensor: Tensor) -> Tensor:
        whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return whole.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return pytree.tree_map_only(Tensor, move, arguments)


class Layers(NamedTuple):
    """The gates of several layers, in the form that the ops take."""

    words: Tensor
    first: list[int]  # The first word of each layer.
    sizes: list[int]  # The number of words of each layer.


class Draw:
    """Draws numbers. A seed and an order of calls always give the same numbers."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Draws whole numbers from low to high, both included."""
        return torch.randint(low, high + 1, shape, generator=self._generator).to(dtype)

    def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draws normally distributed floats."""
        return torch.randn(shape, generator=self._generator, dtype=FLOAT64).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draws floats from 0 to 1."""
        return torch.rand(shape, generator=self._generator, dtype=FLOAT64).to(dtype)

    def small(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draws small whole numbers other than 0."""
        signs = 1 - 2 * self.integers(0, 1, *shape)
        return (signs * self.integers(1, _MOST[dtype], *shape)).to(dtype)

    def whole(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draws small whole numbers other than 0, with a large odd one in each row, behind the first two columns."""
        values = self.small(*shape, dtype=dtype)
        if shape[-1] > 2:
            low, high = _ODD[dtype]
            odd = self.integers(low // 2, (high - 1) // 2, *shape[:-1], 1).mul(2).add(1).to(dtype)
            values.scatter_(-1, self.integers(2, shape[-1] - 1, *shape[:-1], 1), odd)
        return values

    def sparse(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Draws -1, 0 and 1; three in four are 0, so sums of thousands of products are exact even in half precision."""
        return (self.integers(-1, 1, *shape) * self.gates(*shape, share=0.375)).to(dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Draws numbers of one byte."""
        return self.integers(0, 255, *shape, dtype=torch.uint8)

    def gates(self, *shape: int, share: float = 0.5) -> Tensor:
        """Draws bool gates of which this share is on."""
        return torch.rand(shape, generator=self._generator) < share

    def layers(self, n: int, widths: Sequence[int], *, skip: int = 0, share: float = 0.6) -> Layers:
        """Draws gates of fully connected layers. Their words begin behind `skip` words of other gates in each row."""
        return packed(self, [self.gates(n, width, share=share) for width in widths], skip)


def packed(draw: Draw, gates: Sequence[Tensor], skip: int = 0) -> Layers:
    """Packs the gates ``(n, width)`` of each layer. The rows are slices of longer rows, with 8 words of other gates
    behind them."""
    n, first, position = gates[0].shape[0], [], skip
    parts = [draw.integers(-(2**31), 2**31 - 1, n, skip, dtype=torch.int32)]
    for layer in gates:
        parts.append(words_of(layer[:, None]))
        first.append(position)
        position += parts[-1].shape[1]
    parts.append(draw.integers(-(2**31), 2**31 - 1, n, 8, dtype=torch.int32))
    return Layers(torch.cat(parts, 1)[:, :position], first, [words_used(1, layer.shape[1]) for layer in gates])


# --- where tensors lie in memory ------------------------------------------------------------------------------------

Layout = Callable[[Tensor], Tensor]


def plain(tensor: Tensor) -> Tensor:
    """Leaves the layout unchanged."""
    return tensor


def transposed(tensor: Tensor) -> Tensor:
    """Swaps the last two dimensions in memory."""
    return tensor.mT.contiguous().mT


def sliced(tensor: Tensor) -> Tensor:
    """Makes rows that are parts of rows twice as long."""
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


def unaligned(tensor: Tensor) -> Tensor:
    """Makes rows that begin one number behind a multiple of 16 bytes."""
    return torch.cat([tensor[..., :1], tensor], -1)[..., 1:]


def every_other(tensor: Tensor) -> Tensor:
    """Puts another number between each two numbers."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def expanded(tensor: Tensor) -> Tensor:
    """Makes a tensor with one number everywhere and strides of 0, like the gradient of a sum."""
    return torch.ones((), dtype=tensor.dtype).expand(tensor.shape)


def framed(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Makes an output whose rows are parts of longer rows, with rows before and behind them."""
    return torch.empty(rows + 2, columns + 16, dtype=dtype)[1:-1, 8 : 8 + columns]


def contiguous_frame(*shape: int, dtype: torch.dtype) -> Tensor:
    """Makes a contiguous output with memory before and behind it."""
    size = torch.Size(shape).numel()
    return torch.empty(size + 128, dtype=dtype)[64 : 64 + size].view(shape)


def call(*args: Any, **outputs: Tensor) -> Arguments:
    """Returns the positional arguments of an op, and the outputs that it fills."""
    return list(args), outputs
