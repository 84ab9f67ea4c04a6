"""Computes the kernel of a convolutional network in tiles, each of which is on the disk whole or not at all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from _common.store import Store
from torch import Tensor, nn

from gatedops import NPKOperator
from gatedops.operators.base import KernelOperator
from gatedops.progress import stages

# Inputs on each side of a tile.
TILE = 400


@dataclass(frozen=True)
class Plan:
    """How many points are taken, and why.

    n                  training and test points together
    seconds_per_pair   from one timed tile; None if the user gave the number of points
    seconds_per_point  of the network's whole training, from one timed epoch; None with seconds_per_pair
    """

    n: int
    seconds_per_pair: float | None = None
    seconds_per_point: float | None = None

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


def planned(per_pair: float, per_point: float, kernels: int, seconds: float, most: int) -> Plan:
    """Returns the plan with the most points whose training and kernels take at most these seconds.

    per_pair, per_point  seconds for each pair of inputs of one kernel, and of the training for each point
    kernels              how many kernels are computed
    most                 the points that there are
    """
    # 0.8 n points of n are for training, which makes 0.48 n^2 pairs. So n solves square n^2 + per_point n = seconds.
    square = 0.48 * kernels * per_pair
    n = math.floor((math.sqrt(per_point**2 + 4 * square * seconds) - per_point) / (2 * square))
    return Plan(min(most, max(10, n)), per_pair, per_point)


def seconds_per_pair(net: nn.Module, x: Tensor) -> float:
    """Times a tile of the kernel of at least four inputs."""
    half = min(TILE, len(x) // 2)
    kernel = NPKOperator.of(net, x[: 2 * half], cache="none")
    # The first call loads and compiles what all share.
    kernel.block(slice(0, 2), slice(2, 4))
    start = time.perf_counter()
    kernel.block(slice(0, half), slice(half, 2 * half))
    return (time.perf_counter() - start) / half**2


def kernels_of(net: nn.Module, x: Tensor, test_x: Tensor, store: Store, name: str) -> tuple[Tensor, Tensor]:
    """Returns the kernels (n, n) of the training points and (m, n) of the test points with them, float32.

    A tile that the store has is not computed again.
    """
    n, m = len(x), len(test_x)
    gram = _of_tiles(lambda: NPKOperator.of(net, x, cache="none"), (n, n), store, f"{name}-train", symmetric=True)
    cross = _of_tiles(lambda: NPKOperator.of(net, test_x, x, cache="none"), (m, n), store, f"{name}-test")
    return gram, cross


def _of_tiles(
    make: Callable[[], KernelOperator], shape: tuple[int, int], store: Store, name: str, *, symmetric: bool = False
) -> Tensor:
    """Returns a kernel of this shape. The operator is made only if a tile is missing."""
    whole, operator = torch.empty(shape), cache(make)
    rows, columns = ([slice(k, min(k + TILE, size)) for k in range(0, size, TILE)] for size in shape)
    places = [(i, j) for i in range(len(rows)) for j in range(i + 1 if symmetric else len(columns))]
    with stages(len(places), "tile", f"kernel, {name}") as show:
        for i, j in places:
            job = f"{name}-{i:03}-{j:03}"
            known = store.load_state(job, torch.device("cpu"))
            if known is None:
                known = {"tile": operator().block(rows[i], columns[j])}
                store.save_state(job, known)
            whole[rows[i], columns[j]] = known["tile"]
            if symmetric:
                whole[columns[j], rows[i]] = known["tile"].T
            show("")
    return whole
