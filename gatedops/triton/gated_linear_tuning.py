"""Decides how the matrix products of gated layers run: their tiles, operands and precision."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor
from triton.testing import do_bench
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tile:
    """The share of a program: m x n numbers of the result, k terms of the sum at a time, with `stages` such steps under
    way, on `warps` warps."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def accumulators(self) -> int:
        """How many registers of a thread hold its share of the result."""
        return self.m * self.n // (32 * self.warps)

    def shared_bytes(self, name: str, itemsize: int, capability: tuple[int, int]) -> int:
        """How many bytes the operands under way take, which is nearly all shared memory of a kernel.

        From Blackwell on, tf32 operands that must be transposed take their bytes a second time. On Hopper, so does the
        operand that a gradient masks; Triton before 3.8 keeps it in registers."""
        operands = (self.m + self.n) * self.k * itemsize
        transposed = operands if capability[0] >= 10 and itemsize == 4 else 0
        masked = self.m * self.k * itemsize if capability[0] == 9 and name.endswith("gradient") else 0
        return operands * self.stages + transposed + masked

    def options(self) -> dict[str, int]:
        """Returns the tile's numbers as arguments of a launch."""
        return {"M": self.m, "N": self.n, "K": self.k, "num_warps": self.warps, "num_stages": self.stages}


# The first tile of each list suits every size. 64 numbers of 2 bytes fill the 128 bytes of a swizzled row of shared
# memory. 128 x 256 is for large layers: it reads the fewest bytes for a product and fills the registers of 8 warps.
# Tiles of 64 rows are for small batches, for which larger tiles would leave processors idle.
HALF_TILES = (Tile(128, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3), Tile(64, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4))
# tf32 takes the same bytes for half as many numbers.
TF32_TILES = (Tile(128, 128, 32, 8, 3), Tile(64, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4))
# float32 products run on the ordinary cores, with their operands in registers. Pairs, and pointers to single numbers,
# need registers too, and take half as many rows.
IEEE_TILE, IEEE_SMALL_TILE = Tile(64, 64, 32, 4, 3), Tile(32, 64, 32, 4, 3)
# Pointers to single numbers fill registers too. For pairs and tf32 layers, twice the warps halve a thread's share.
SINGLES_TILE, SINGLES_WIDE_TILE = Tile(64, 64, 32, 4, 3), Tile(64, 64, 32, 8, 3)
SHARED_SLACK = 8 << 10  # A kernel takes at most this many bytes beside the operands under way.


def precision_of(dtype: torch.dtype) -> str:
    """Returns the precision for tl.dot: "tf32" if torch may use it for float32 (torch.set_float32_matmul_precision)."""
    if dtype != torch.float32:
        return "tf32"  # Other dtypes ignore it.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tiles_of(name: str, dtype: torch.dtype, precision: str, capability: tuple[int, int], read: str) -> list[Tile]:
    """Returns the tiles that a kernel may take without spilling registers.

    Registers hold more than the sums. Before Hopper, tensor cores read their operands from registers. After Hopper,
    their results are copied to registers. On Hopper, pointers into the largest tile would take registers. A soft pair
    also keeps pre-activations."""
    if dtype == torch.float32 and precision == "ieee":
        return [IEEE_SMALL_TILE if read == "any" or name.endswith("pair") else IEEE_TILE]
    if read == "any":
        wide = name.endswith("pair") or (dtype == torch.float32 and name.endswith("layer"))
        return [SINGLES_WIDE_TILE if wide else SINGLES_TILE]
    tiles = TF32_TILES if dtype == torch.float32 else HALF_TILES
    most = 128 if capability[0] == 9 and dtype != torch.float32 and read == "tma" else 64
    return [tile for tile in tiles if tile.accumulators <= (most // 2 if name == "soft pair" else most)]


def fitting(
    name: str, tiles: list[Tile], itemsize: int, capability: tuple[int, int], shared: int, rows: int, cols: int
) -> list[Tile]:
    """Returns the tiles that fit `shared` bytes and are less than twice as large as a result of (rows, cols). The first
    tile is always among them."""
    return tiles[:1] + [
        tile
        for tile in tiles[1:]
        if tile.shared_bytes(name, itemsize, capability) + SHARED_SLACK <= shared
        and tile.m < 2 * max(rows, 64)
        and tile.n < 2 * cols
    ]


_fastest: dict[Hashable, Tile] = {}


def run_fastest(
    name: str, key: Hashable, like: Tensor, rows: int, cols: int, read: str, launch: Callable[[Tile], object]
) -> None:
    """Calls launch(tile) with the fastest tile, which is timed when this kernel first meets a problem of this kind.

    Rows count as the next power of two, so that batches of similar size share a choice. Nothing is timed while a CUDA
    graph is captured: the call takes the known choice, or the first tile. A choice does not change the order in which
    the terms of a sum are added, unless its tensor core instructions have another shape.
    """
    precision = precision_of(like.dtype)
    tiles = tiles_of(name, like.dtype, precision, capability(like.device), read)
    if like.device.type != "cuda":  # The interpreter runs here.
        launch(tiles[0])
        return
    key = (name, like.device, like.dtype, precision, triton.next_power_of_2(rows), cols, read, key)
    if key not in _fastest:
        if torch.cuda.is_current_stream_capturing():
            launch(tiles[0])
            return
        shared = triton.runtime.driver.active.utils.get_device_properties(like.device.index)["max_shared_mem"]
        _fastest[key] = _timed(fitting(name, tiles, like.itemsize, capability(like.device), shared, rows, cols), launch)
    launch(_fastest[key])


def _timed(tiles: list[Tile], launch: Callable[[Tile], object]) -> Tile:
    """Returns the fastest tile, by medians over about 20 ms each."""
    if len(tiles) == 1:
        return tiles[0]
    return min(tiles, key=lambda tile: do_bench(lambda: launch(tile), warmup=5, rep=20, return_mode="median"))


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Returns the compute capability; (0, 0) in the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def processors(device: torch.device) -> int:
    """Returns the number of streaming multiprocessors; 4 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def way_to_read(*matrices: Tensor) -> str:
    """Returns how a kernel reads tiles of all of these, the constexpr READ of gated_linear_tiles.

    From Hopper on it is "tma" if all rows begin on 16 bytes, except for float32 products on the ordinary cores, which
    would spill registers. In all other cases tiles are read by pointers."""
    first = matrices[0]
    has_tma = capability(first.device) >= (9, 0) and precision_of(first.dtype) != "ieee"
    return "tma" if has_tma and _rows_on_16_bytes(matrices) else way_by_pointers(*matrices)


def way_by_pointers(*matrices: Tensor) -> str:
    """Returns "aligned" if every row of all of these begins and ends on 16 bytes, else "any"."""
    whole = all(matrix.shape[1] * matrix.itemsize % 16 == 0 for matrix in matrices)
    return "aligned" if whole and _rows_on_16_bytes(matrices) else "any"


def _rows_on_16_bytes(matrices: tuple[Tensor, ...]) -> bool:
    return all(
        matrix.numel() > 0
        and matrix.data_ptr() % 16 == 0
        and matrix.stride(1) == 1
        and matrix.stride(0) >= matrix.shape[1]
        and matrix.stride(0) * matrix.itemsize % 16 == 0
        for matrix in matrices
    )


def operand(matrix: Tensor, rows: int, cols: int, read: str) -> Tensor | TensorDescriptor:
    """Returns the argument by which a kernel reads tiles (rows, cols) of a matrix."""
    return TensorDescriptor.from_tensor(matrix, [rows, cols]) if read == "tma" else matrix


def as_matrix(t: Tensor) -> Tensor:
    """Returns (..., d) as (rows, d)."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])
