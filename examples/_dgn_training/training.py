"""Trains all seeds of a variant as one network.

Each seed has its own initialisation and its own order of the data. The optimizers are elementwise, so each seed learns
as it would alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from _dgn_training import papers
from _dgn_training.cuda_graph import GraphedStep
from _dgn_training.setup import Setup, Task
from gatedops import GateBits

# This many test points are evaluated at a time.
EVALUATED = 500
# Among the kept epochs, this key has each seed's parameters after the epoch with its highest test accuracy.
BEST = -1


@dataclass(frozen=True, eq=False)
class FrozenGates:
    """Hard gates of the S feature networks: for each seed in turn, `train` has one row per training point."""

    train: GateBits
    test: GateBits


@dataclass
class History:
    """The mean training loss and the test accuracy (0 to 1) after each epoch: a list per epoch, a number per seed."""

    loss: list[list[float]] = field(default_factory=list)
    accuracy: list[list[float]] = field(default_factory=list)

    def best_epochs(self) -> list[int]:
        """Returns, for each seed, the first epoch, counted from 1, that has the seed's highest accuracy."""
        of_seeds = [list(accuracies) for accuracies in zip(*self.accuracy, strict=True)]
        return [1 + accuracies.index(max(accuracies)) for accuracies in of_seeds]


class Training:
    """The training of a stacked network.

    net    StackedReLU or StackedDGN of S seeds, on the task's device
    gates  those of frozen feature networks
    keep   the epochs after which the parameters are kept, besides those under `BEST`; 0 is the initialisation. If it
           is None, nothing is kept.
    batch, learning_rate  those of the papers unless they are given
    """

    def __init__(
        self,
        net: nn.Module,
        task: Task,
        setup: Setup,
        gates: FrozenGates | None = None,
        keep: Sequence[int] | None = None,
        *,
        batch: int = papers.BATCH,
        learning_rate: float | None = None,
    ):
        self.net, self.task, self.setup, self.gates, self.keep = net, task, setup, gates, keep
        self.batch = batch
        self.optimizer = optimizer_of(setup, net, learning_rate or setup.learning_rate)
        self.history = History()
        self.kept: dict[int, dict[str, Tensor]] = {}
        self._keep()
        self._step = GraphedStep(self) if setup.device == "cuda" else self.step

    @property
    def epoch(self) -> int:
        """The number of epochs done."""
        return len(self.history.loss)

    def run_epoch(self) -> None:
        """Trains on all training points once, then computes the accuracy on the test points."""
        rows = data_order(len(self.task.x), self.setup.seeds, self.epoch).to(self.task.x.device)
        total = torch.zeros(self.setup.seeds, device=rows.device, dtype=self.task.x.dtype)
        for batch in rows.split(self.batch, dim=1):
            total += self._step(batch) * batch.shape[1]
        self.history.loss.append((total / rows.shape[1]).tolist())
        self.history.accuracy.append(self.accuracy().tolist())
        self._keep()

    def step(self, batch: Tensor) -> Tensor:
        """Makes one step of the optimizer on rows (S, B) of the training points; returns each seed's loss, (S,)."""
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        return loss.detach()

    def _loss(self, batch: Tensor) -> Tensor:
        x = self.task.x[batch.flatten()].unflatten(0, batch.shape)
        logits = self.net(x, self._gates(batch, len(self.task.x), train=True))
        labels = self.task.labels[batch.flatten()]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="none")
        return loss.view(batch.shape).mean(1)

    @torch.no_grad()
    def accuracy(self) -> Tensor:
        """Returns the test accuracy of each seed, float64 (S,), 0 to 1."""
        x, labels = self.task.test_x, self.task.test_labels
        right = torch.zeros(self.setup.seeds, dtype=torch.int64, device=x.device)
        for rows in torch.arange(len(x), device=x.device).split(EVALUATED):
            batch = rows.expand(self.setup.seeds, -1)
            logits = self.net(
                x[rows].expand(self.setup.seeds, *[-1] * x.dim()), self._gates(batch, len(x), train=False)
            )
            right += (logits.argmax(2) == labels[rows]).sum(1)
        return right.double() / len(x)

    def _gates(self, batch: Tensor, n: int, train: bool) -> list[Tensor] | None:
        if self.gates is None:
            return None
        first = torch.arange(0, len(batch) * n, n, device=batch.device).unsqueeze(1)
        bits = self.gates.train if train else self.gates.test
        return bits[(batch + first).flatten()].unpack()

    def _keep(self) -> None:
        if self.keep is None:
            return
        now = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        if self.epoch in self.keep:
            self.kept[self.epoch] = now
        if self.epoch == 1:
            self.kept[BEST] = {name: value.clone() for name, value in now.items()}
        for seed, epoch in enumerate(self.history.best_epochs()):
            if epoch == self.epoch:
                for name, value in now.items():
                    seeds_first(self.kept[BEST][name], self.setup.seeds)[seed] = seeds_first(value, self.setup.seeds)[
                        seed
                    ]

    def state(self) -> dict[str, Any]:
        """Returns all that the rest of the training depends on. The order of the data follows from seed and epoch."""
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.history.loss,
            "accuracy": self.history.accuracy,
            "kept": self.kept,
        }

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Puts back what `state` returned."""
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(state["loss"], state["accuracy"])
        self.kept = state["kept"]


def seeds_first(parameter: Tensor, seeds: int) -> Tensor:
    """Returns a view of (S, ...), or of a grouped convolution's (S * C, ...), with the seeds as its first axis."""
    return parameter.unflatten(0, (seeds, -1))


def optimizer_of(setup: Setup, net: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Returns the papers' Adam or SGD, without weight decay, and SGD without momentum."""
    if setup.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), learning_rate, fused=True)
    return torch.optim.Adam(
        net.parameters(),
        learning_rate,
        eps=papers.ADAM_EPSILON,
        fused=True,
        capturable=setup.device == "cuda",
    )


def data_order(n: int, seeds: int, epoch: int) -> Tensor:
    """Returns int64 (S, n), for each seed a permutation of the training points that depends on seed and epoch alone."""
    generators = (torch.Generator().manual_seed(1_000_003 * (seed + 1) + epoch) for seed in range(seeds))
    return torch.stack([torch.randperm(n, generator=generator) for generator in generators])
