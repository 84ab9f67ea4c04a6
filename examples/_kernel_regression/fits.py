"""Kernel regression with the gates of a network by conjugate gradients, and by the dense way, each fit once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from _common.store import Store
from torch import Tensor

import gatedops
from _kernel_regression.cost import Cost, measured
from gatedops import GateBits
from gatedops.path_kernels import regression
from gatedops.solve import Solution, kernel_ridge

CHECKPOINT_SECONDS = 10


@dataclass(frozen=True, eq=False)
class Problem:
    """Labelled points, the gates that one network has on them, and what the ridge regression needs.

    x, test_x  None: the kernel is Lambda, which depends on the gates alone
    """

    bits: GateBits
    labels: Tensor
    x: Tensor | None
    test_bits: GateBits
    test_labels: Tensor
    test_x: Tensor | None
    classes: int
    ridge: float
    tol: float

    def of_rows(self, rows: Tensor) -> Problem:
        """Returns the problem with these training points only."""
        x = None if self.x is None else self.x[rows]
        return replace(self, bits=self.bits[rows], labels=self.labels[rows], x=x)

    @property
    def targets(self) -> Tensor:
        """One column for each class, float64 (n, classes)."""
        return regression.one_hot(self.labels, self.classes)

    def accuracy(self, scores: Tensor) -> float:
        """Returns the share of the test points, 0 to 1, whose largest score is that of their class."""
        return regression.accuracy(scores, self.test_labels)


@dataclass(frozen=True)
class Fit:
    """A regression on n points by `gatedops.solve.kernel_ridge`.

    accuracy   on the test points, 0 to 1
    curve      the largest relative residual of a target, as the solver updates it, after each iteration
    residual   the largest true relative residual at the end
    reason     why the solver stopped
    cost       of the solve, with the preparation of the kernel
    predicted  the seconds that the scores of the test points took
    """

    n: int
    accuracy: float
    curve: list[float]
    residual: float
    reason: str
    cost: Cost
    predicted: float

    @staticmethod
    def of(figures: dict[str, Any]) -> Fit:
        return Fit(**figures | {"cost": Cost(**figures["cost"])})


class Curve:
    """The residual after each iteration of a solve, which a killed run keeps in the store."""

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, name
        self.residuals: dict[str, float] = store.load_figures(name) or {}

    def __call__(self, iteration: int, residuals: Tensor) -> None:
        """Takes what kernel_ridge tells its callback. An iteration that a new run repeats replaces the old one."""
        self.residuals[str(iteration)] = float(residuals.max())
        self.store.save_figures(self.name, self.residuals)

    def up_to(self, iterations: int) -> list[float]:
        """Returns the residuals of these iterations."""
        return [self.residuals[str(iteration)] for iteration in range(1, iterations + 1)]


def fit(problem: Problem, store: Store, name: str) -> Fit:
    """Fits the regression and predicts the test points; what the store has is not computed again.

    A run that is killed during the solve goes on from the solver's checkpoint in the store's folder.
    """
    known = store.load_figures(name)
    if known is not None:
        return Fit.of(known)
    checkpoint, curve = store.folder / f"{name}.solve", Curve(store, f"{name}.curve")

    def solved() -> Solution:
        kernel = gatedops.NPKOperator(problem.bits, problem.x)
        return kernel_ridge(
            kernel,
            problem.targets,
            problem.ridge,
            method="cg",
            tol=problem.tol,
            checkpoint=checkpoint,
            checkpoint_every=CHECKPOINT_SECONDS,
            callback=curve,
        )

    solution, cost = measured(solved)
    cross = gatedops.NPKOperator(problem.test_bits, problem.test_x, problem.bits, problem.x)
    scores, prediction = measured(lambda: solution.predict(cross))
    found = Fit(
        len(problem.labels),
        problem.accuracy(scores),
        curve.up_to(solution.iterations),
        float(solution.residuals.max()),
        solution.reason,
        # The seconds of a killed run, up to its last checkpoint, are among those of the solution.
        replace(cost, seconds=max(cost.seconds, solution.seconds)),
        prediction.seconds,
    )
    store.save_figures(name, asdict(found))
    for file in (checkpoint, store.folder / f"{name}.curve.json"):
        file.unlink(missing_ok=True)
    return found


@dataclass(frozen=True)
class Dense:
    """A regression on n points by a float64 Gram and its Cholesky factor.

    accuracy  on the test points, 0 to 1; None if the figures are extrapolated from those of fewer points
    memory    None if the system does not say
    """

    n: int
    accuracy: float | None
    gram_seconds: float
    solve_seconds: float
    memory: int | None

    @property
    def seconds(self) -> float:
        """The time of the Gram and of the solve."""
        return self.gram_seconds + self.solve_seconds

    def at(self, n: int) -> Dense:
        """Extrapolates to n points: the Gram and the memory grow by the square of n, the factor by its cube."""
        ratio = n / self.n
        memory = None if self.memory is None else round(self.memory * ratio**2)
        return Dense(n, None, self.gram_seconds * ratio**2, self.solve_seconds * ratio**3, memory)


def dense_fit(problem: Problem, store: Store, name: str) -> Dense:
    """Fits the same regression the dense way; what the store has is not computed again."""
    known: Mapping[str, Any] | None = store.load_figures(name)
    if known is not None:
        return Dense(**known)
    gram, first = measured(lambda: gatedops.npk_gram(problem.x, problem.bits, dtype=torch.float64))
    fitted, second = measured(lambda: regression.fit(gram, problem.targets, problem.ridge))
    cross = gatedops.npk_gram(problem.test_x, problem.test_bits, problem.x, problem.bits, dtype=torch.float64)
    # The Gram is still there while the factor is made.
    memory = None if second.memory is None else gram.nbytes + second.memory
    found = Dense(len(problem.labels), problem.accuracy(fitted.predict(cross)), first.seconds, second.seconds, memory)
    store.save_figures(name, asdict(found))
    return found
