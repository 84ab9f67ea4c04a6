"""Computes the kernel of a convolutional network in tiles, each of which is on the disk whole or not at all."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from _common.store import Store
from torch import Tensor, nn

import gatedops
from gatedops.progress import stages

# Inputs on each side of a tile.
TILE = 400


@dataclass(frozen=True)
class Plan:
    """How many points are taken, and why.

    n                 training and test points together
    seconds_per_pair  from one timed tile; None if the user gave the number of points
    """

    n: int
    seconds_per_pair: float | None

    @property
    def test(self) -> int:
        """One point in five is a test point, as `gatedops.data` splits them."""
        return round(self.n / 5)

    @property
    def pairs(self) -> int:
        """The pairs of inputs of a kernel: each unordered pair of training points, and each of a test point with one of
        them."""
        train = self.n - self.test
        return train * (train + 1) // 2 + train * self.test


def planned(net: nn.Module, x: Tensor, seconds: float, most: int) -> Plan:
    """Times a tile, and returns the plan with the most points whose kernel takes at most these seconds.

    x     inputs for the tile, at least two
    most  the points that there are
    """
    rows, columns = x[: len(x) // 2][:TILE], x[len(x) // 2 :][:TILE]
    # The first call loads and compiles what all share.
    gatedops.npk(net, rows[:2], columns[:2])
    start = time.perf_counter()
    gatedops.npk(net, rows, columns, progress=False)
    per_pair = (time.perf_counter() - start) / (len(rows) * len(columns))
    # Of n points 0.8 n are for training, so there are 0.48 n^2 pairs.
    n = math.floor(math.sqrt(seconds / per_pair / 0.48))
    return Plan(min(most, max(10, n)), per_pair)


def kernels_of(net: nn.Module, x: Tensor, test_x: Tensor, store: Store, name: str) -> tuple[Tensor, Tensor]:
    """Returns the kernels (n, n) of the training points and (m, n) of the test points with them, float32.

    A tile that the store has is not computed again.
    """
    n, m = len(x), len(test_x)
    gram, cross = torch.empty(n, n), torch.empty(m, n)
    parts, test_parts = (list(torch.arange(rows).split(TILE)) for rows in (n, m))
    jobs = [(False, i, j) for i in range(len(parts)) for j in range(i + 1)]
    jobs += [(True, i, j) for i in range(len(test_parts)) for j in range(len(parts))]
    with stages(len(jobs), "tile", f"kernel, {name}") as show:
        for of_test, i, j in jobs:
            columns = parts[j]
            rows = test_parts[i] if of_test else parts[i]
            tile = _tile(
                net,
                (test_x if of_test else x)[rows],
                None if i == j and not of_test else x[columns],
                store,
                f"{name}-{'test' if of_test else 'train'}-{i:03}-{j:03}",
            )
            where = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
            (cross if of_test else gram)[where] = tile
            if not of_test:
                gram[where[::-1]] = tile.T
            show("")
    return gram, cross


def _tile(net: nn.Module, x: Tensor, y: Tensor | None, store: Store, name: str) -> Tensor:
    known = store.load_state(name, torch.device("cpu"))
    if known is not None:
        return known["tile"]
    tile = gatedops.npk(net, x, y, progress=False)
    assert isinstance(tile, Tensor)
    store.save_state(name, {"tile": tile})
    return tile
