"""Runs kernel regression with the neural path kernel of the same gates that a value network was trained with."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from _common.store import Store
from torch import Tensor

import gatedops
from _dgn_training.setup import Setup, Task
from _dgn_training.training import FrozenGates
from gatedops import GateBits
from gatedops.path_kernels import regression
from gatedops.progress import with_bar
from gatedops.solve import kernel_ridge, select_ridge

# At most this many training points choose the ridge, because that takes an eigendecomposition.
CHOOSING = 4000
# The ridge is one of these, in units of the kernel's mean diagonal, if there are more points. With 20,000 points of
# MNIST, 0.01 and 0.03 change the accuracy by 0.01 points and take up to 1.7 times as many iterations as 0.1.
RIDGES = (0.1, 0.3, 1.0)
# With fewer points, which are solved without iterations, it may also be one of these.
SMALL_RIDGES = (1e-8, 1e-4, 1e-3, 1e-2)
# The relative residual of the regression. Below it, predictions of classes change no more.
TOL = 1e-3


@dataclass(frozen=True)
class OfSeed:
    """The regression of one seed: its test accuracy (0 to 1), its ridge, and the solver's iterations."""

    accuracy: float
    ridge: float
    iterations: int


@dataclass(frozen=True)
class Regressed:
    """For each seed, the accuracy (0 to 1) on all test points, the ridge, chosen on training points, and the iterations
    of the solver, which are 0 for a Cholesky factor."""

    accuracy: list[float]
    ridge: list[float]
    iterations: list[int]


def regress(task: Task, gates: FrozenGates, setup: Setup, ones: bool, store: Store, name: str) -> Regressed:
    """Fits one regression for each seed. What the store has under this name is not computed again, and a solve that was
    killed goes on from its last checkpoint.

    ones  True if the value network reads all ones: then Sigma is constant and H is proportional to Lambda
    """
    n, m = len(task.x), len(task.test_x)
    rows = chosen_points(n, setup.npk_points).to(task.x.device)
    x, test_x = (None, None) if ones else (task.x[rows], task.test_x)
    found = Regressed([], [], [])
    for seed in with_bar(range(setup.seeds), "kernel regression", "seed", setup.seeds, None):
        job = f"{name}.npk-{seed}"
        known = store.load_figures(job)
        if known is None:
            bits, test_bits = gates.train[seed * n + rows], gates.test[seed * m : (seed + 1) * m]
            of_seed = _fit(task, task.labels[rows], (bits, x), (test_bits, test_x), store, job)
            store.save_figures(job, asdict(of_seed))
        else:
            of_seed = OfSeed(**known)
        found.accuracy.append(of_seed.accuracy)
        found.ridge.append(of_seed.ridge)
        found.iterations.append(of_seed.iterations)
    return found


def chosen_points(n: int, most: int | None) -> Tensor:
    """Returns which training points a regression uses, in random order; they are the same for every seed and
    variant."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]


def ridges_of(n: int) -> tuple[float, ...]:
    """Returns the ridges among which leave-one-out chooses for n training points."""
    return RIDGES if n > CHOOSING else SMALL_RIDGES + RIDGES


def _fit(
    task: Task,
    labels: Tensor,
    train: tuple[GateBits, Tensor | None],
    test: tuple[GateBits, Tensor | None],
    store: Store,
    job: str,
) -> OfSeed:
    """Fits one seed. train, test: the gates of the points, and the points or None."""
    bits, x = train
    few = slice(CHOOSING)
    gram = gatedops.npk_gram(None if x is None else x[few], bits[few], dtype=torch.float64)
    ridge = select_ridge(gram, labels[few], ridges_of(len(labels)))
    targets, checkpoint = regression.one_hot(labels, task.classes), store.folder / f"{job}.solve"
    solution = kernel_ridge(gatedops.NPKOperator(*train), targets, ridge, tol=TOL, checkpoint=checkpoint)
    scores = solution.predict(gatedops.NPKOperator(*test, *train))
    checkpoint.unlink(missing_ok=True)
    return OfSeed(regression.accuracy(scores, task.test_labels), ridge, solution.iterations)
