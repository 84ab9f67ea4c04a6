"""The block Lanczos process: an orthonormal basis of a Krylov space, and a symmetric matrix projected on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gatedops.solve.row_tiles import one_thread, times, to_tiles, transposed_times

# Directions of a block that are smaller than this part of its scale are rounding, and are dropped.
_NEGLIGIBLE = 1e-13


class BlockKrylov:
    """A basis V of span(start, A start, A^2 start, ...) for a symmetric A ``(n, n)``, in float64.

    After each :meth:`extend`, ``A V = V projected + W coupling E^T``. W is the block that follows. E has the columns of
    the identity that belong to the last block of V. Every new block is orthogonalised against all of V, so no
    eigenvalue is found twice, and V takes ``8 n`` bytes for each of its columns. The bits of all results are the same
    for any number of threads if those of the product are.

    Args:
        product: returns A v, float64 ``(n, c)``, for a block v.
        start: ``(n, c)``. If it is zero, the space is exhausted at once.

    Attributes:
        head: ``(k, c)``, with ``start = V[:, :k] head``; k is the rank of start.
        projected: ``(p, p)``, V^T A V.
        coupling: ``(q, width of the last block)``; q is the width of the block that follows, 0 once the space is
            invariant.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], start: Tensor) -> None:
        self._product = product
        self._n = len(start)
        self._blocks: list[Tensor] = []
        # The block that follows, in tiles of rows, as all blocks are.
        self._following, self.head = _orthonormal(to_tiles(start.to(torch.float64)), 0.0)
        self.projected = self.head.new_zeros(0, 0)
        self.coupling = self.head[:, :0]

    @property
    def size(self) -> int:
        """The number of columns of V, p."""
        return len(self.projected)

    @property
    def exhausted(self) -> bool:
        """Whether the space is invariant, so that it cannot grow."""
        return self._following.shape[2] == 0

    def extend(self) -> None:
        """Appends the following block to the basis, and finds the next one. This takes one product with A."""
        self._blocks.append(self._following)
        image = to_tiles(self._product(_rows(self._following, self._n)))
        inside = self._remove(image)
        if not bool(torch.isfinite(inside).all()):
            raise ValueError("K: a product with it is not finite: use scale='width' or float64, or look for NaN in it")
        before, size = self.size, len(inside)
        grown = self.projected.new_zeros(size, size)
        grown[:before, :before] = self.projected
        grown[:, before:] = inside
        grown[before:, :before] = inside[:before].T
        grown[before:, before:] = (inside[before:] + inside[before:].T) / 2
        self.projected = grown
        self._following, self.coupling = _orthonormal(image, float(grown.diagonal().abs().max()))
        # The space has at most n dimensions, whatever rounding adds to the image.
        room = self._n - size
        self._following, self.coupling = self._following[:, :, :room], self.coupling[:room]
        self._remove(self._following)
        self._following, again = _orthonormal(self._following, 0.0)
        with one_thread():
            self.coupling = again @ self.coupling

    def renew(self, block: Tensor) -> None:
        """Continues an invariant space with what block ``(n, c)`` has outside it."""
        tiles = to_tiles(block)
        self._remove(tiles)
        self._following, _ = _orthonormal(tiles, 1.0)
        self._remove(self._following)
        self._following, _ = _orthonormal(self._following, 0.0)
        self.coupling = block.new_zeros(self._following.shape[2], self.coupling.shape[1])

    def combine(self, coefficients: Tensor) -> Tensor:
        """Returns V coefficients, ``(n, c)``, for coefficients ``(p, c)``."""
        return _rows(self._combined(coefficients), self._n)

    def restart(self, values: Tensor, vectors: Tensor) -> None:
        """Keeps of the basis only the Ritz vectors V vectors, ``(p, k)``, with their Ritz values ``(k,)``. The relation
        between A, V and the following block still holds (a thick restart)."""
        with one_thread():
            self.coupling = self.coupling @ vectors[-self.coupling.shape[1] :]
        self._blocks = [self._combined(vectors)]
        self.projected = torch.diag(values)

    def _combined(self, coefficients: Tensor) -> Tensor:
        parts = coefficients.split([block.shape[2] for block in self._blocks])
        found = times(self._blocks[0], parts[0])
        for block, part in zip(self._blocks[1:], parts[1:], strict=True):
            found += times(block, part)
        return found

    def _remove(self, block: Tensor) -> Tensor:
        """Makes a block orthogonal to the basis, in place, and returns what it had of each basis vector, ``(p, c)``."""
        inside = []
        for known in self._blocks:
            inside.append(transposed_times(known, block))
            block -= times(known, inside[-1])
        return torch.cat(inside)


def _orthonormal(tiles: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Factors a block, in tiles of rows, into Q C with Q orthonormal. Directions that are rounding beside the largest
    one, or beside the scale, are left out."""
    with one_thread():
        q, r = torch.linalg.qr(tiles.flatten(0, 1))
        u, sizes, v = torch.linalg.svd(r)
        kept = int((sizes > _NEGLIGIBLE * max(scale, float(sizes[:1].sum()))).sum())
        return (q @ u[:, :kept]).view(*tiles.shape[:2], kept), sizes[:kept, None] * v[:kept]


def _rows(tiles: Tensor, n: int) -> Tensor:
    return tiles.flatten(0, 1)[:n]
