"""Trains the papers' ReLU network, epoch by epoch from the last checkpoint on."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from _common.store import Store
from _dgn_training import papers
from _dgn_training.run import Run
from _dgn_training.setup import Setup, Task, spec_of
from _dgn_training.stacked import StackedReLU
from _dgn_training.training import Training
from _dgn_training.variants import VARIANTS
from torch import nn

SEED = 0
GATES = ("untrained", "trained")


@dataclass(frozen=True, eq=False)
class Networks:
    """A network before and after its training.

    by_epoch  the trained network's test accuracy (0 to 1) after each epoch
    seconds   of the training
    """

    untrained: nn.Sequential
    trained: nn.Sequential
    by_epoch: list[float]
    seconds: float

    @property
    def accuracy(self) -> float:
        """The test accuracy of the trained network, after the last epoch."""
        return self.by_epoch[-1]

    def of(self, gates: str) -> nn.Sequential:
        """Returns the "untrained" or the "trained" network."""
        return self.trained if gates == "trained" else self.untrained


def networks_of(
    setup: Setup,
    task: Task,
    store: Store,
    checkpoint_every: float,
    *,
    batch: int = papers.BATCH,
    learning_rate: float | None = None,
) -> Networks:
    """Trains the network of this set-up, as examples/dgn_training.py does, on all training points of the task; with
    another batch or learning rate if they are given."""
    untrained = spec_of(setup.arch, task).relu_net(SEED)
    trained = copy.deepcopy(untrained)
    training = Training(StackedReLU([trained]), task, setup, batch=batch, learning_rate=learning_rate)
    # Adam's means of gradients decay to denormal numbers, which slow the CPU down.
    torch.set_flush_denormal(True)
    seconds = Run(setup, task, store, checkpoint_every).run_epochs(VARIANTS["relu"], training)
    torch.set_flush_denormal(False)
    training.net.value.copy_to([trained])
    by_epoch = [accuracy for (accuracy,) in training.history.accuracy]
    return Networks(untrained.eval(), trained.eval(), by_epoch, seconds)


def seconds_per_point(setup: Setup, task: Task) -> float:
    """Times an epoch on a small task. Returns the seconds that the whole training takes for each point, of training and
    test points together."""
    training = Training(StackedReLU([spec_of(setup.arch, task).relu_net(SEED)]), task, setup)
    # The first epoch loads what all share.
    training.run_epoch()
    start = time.perf_counter()
    training.run_epoch()
    return setup.epochs * (time.perf_counter() - start) / (len(task.x) + len(task.test_x))
