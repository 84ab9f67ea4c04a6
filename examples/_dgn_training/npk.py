"""Runs kernel regression with the neural path kernel of the same gates that a value network was trained with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import gatedops
from _dgn_training.setup import Task
from _dgn_training.training import FrozenGates
from gatedops.path_kernels import regression
from gatedops.progress import with_bar

DTYPE = torch.float64


@dataclass(frozen=True)
class Regressed:
    """For each seed, the accuracy (0 to 1) on all test points, and the ridge, chosen on held-out training points."""

    accuracy: list[float]
    ridge: list[float]


def regress(task: Task, gates: FrozenGates, seeds: int, points: int, ones: bool) -> Regressed:
    """Fits one regression for each seed.

    points  the number of training points; every seed and variant uses the same random choice of them
    ones    True if the value network reads all ones: then Sigma is constant and H is proportional to Lambda
    """
    n, m = len(task.x), len(task.test_x)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:points].to(task.x.device)
    x, test_x = (None, None) if ones else (task.x[chosen], task.test_x)
    found = Regressed([], [])
    for seed in with_bar(range(seeds), "kernel regression", "seed", seeds, None):
        bits, test_bits = gates.train[seed * n + chosen], gates.test[seed * m : (seed + 1) * m]
        gram = gatedops.npk_gram(x, bits, dtype=DTYPE)
        ridge = regression.select_ridge(gram, task.labels[chosen])
        fitted = regression.fit(gram, regression.one_hot(task.labels[chosen], task.classes), ridge)
        scores = _predict(fitted, test_x, test_bits, x, bits)
        found.accuracy.append(regression.accuracy(scores, task.test_labels))
        found.ridge.append(ridge)
    return found


def _predict(
    fitted: regression.KernelRegression,
    test_x: Tensor | None,
    test_bits: gatedops.GateBits,
    x: Tensor | None,
    bits: gatedops.GateBits,
) -> Tensor:
    return fitted.predict(gatedops.npk_gram(test_x, test_bits, x, bits, dtype=DTYPE))
