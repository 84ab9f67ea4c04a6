"""Trains every variant in turn, each from its last checkpoint on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _common.store import Store
from torch import Tensor

from _dgn_training import variants as variant_table
from _dgn_training.npk import Regressed, regress
from _dgn_training.setup import Setup, Task, spec_of
from _dgn_training.stacked import StackedDGN, StackedReLU
from _dgn_training.training import BEST, FrozenGates, History, Training
from _dgn_training.variants import Variant
from gatedops import DGN, GateBits, GateCache
from gatedops.progress import stages

# A frozen feature network reads this many rows at a time.
GATED = 1000


@dataclass(frozen=True)
class Result:
    """The result of one variant.

    npk  the kernel regression with the same gates; None if gates are trained too, and for convolutional networks
    """

    history: History
    npk: Regressed | None
    seconds: float

    @staticmethod
    def of(figures: dict[str, Any]) -> Result:
        npk = None if figures["npk"] is None else Regressed(**figures["npk"])
        return Result(History(**figures["history"]), npk, figures["seconds"])


@dataclass(frozen=True, eq=False)
class Run:
    """A run of many variants.

    checkpoint_every  seconds between checkpoints, which are written between epochs only
    """

    setup: Setup
    task: Task
    store: Store
    checkpoint_every: float

    def results(self, wanted: Sequence[Variant]) -> dict[str, Result]:
        """Returns the result of each variant by its name. What the store has is not computed again."""
        found: dict[str, Result] = {}
        with stages(len(wanted), "variant") as begin:
            for variant in wanted:
                begin(variant.title)
                figures = self.store.load_figures(variant.name)
                found[variant.name] = self._train(variant) if figures is None else Result.of(figures)
        return found

    def _train(self, variant: Variant) -> Result:
        training = self._prepared(variant)
        seconds = self.run_epochs(variant, training)
        regressed = None
        if training.gates is not None and self.setup.arch == "fc":
            regressed = regress(self.task, training.gates, self.setup, variant.ones, self.store, variant.name)
        result = Result(training.history, regressed, seconds)
        self.store.save_figures(variant.name, asdict(result))
        return result

    def _prepared(self, variant: Variant) -> Training:
        spec = spec_of(self.setup.arch, self.task)
        device = self.task.x.device
        nets = variant_table.relu_nets(spec, self.setup.seeds)
        if variant.mode == "ReLU":
            return Training(StackedReLU(nets).to(device), self.task, self.setup, keep=self.setup.stages)
        features = self.learned_features(variant.stage) if variant.mode == "FL" else None
        models = variant_table.deep_gated_nets(variant, spec, self.setup.seeds, features)
        gates = frozen_gates([model.to(device) for model in models], self.task) if variant.hard else None
        return Training(StackedDGN(models, nets[0]).to(device), self.task, self.setup, gates)

    def learned_features(self, stage: int | None) -> list[Mapping[str, Tensor]]:
        """Returns each seed's ReLU network's parameters at a stage of its training; None: at the seed's best epoch."""
        state = self.store.load_state("relu", torch.device("cpu"))
        if state is None:
            raise ValueError(f"{self.store.folder} lacks the ReLU network's states: remove the folder and start anew")
        nets = variant_table.relu_nets(spec_of(self.setup.arch, self.task), self.setup.seeds)
        stacked = StackedReLU(nets)
        stacked.load_state_dict(state["training"]["kept"][BEST if stage is None else self.setup.stages[stage]])
        stacked.value.copy_to(nets)
        return [net.state_dict() for net in nets]

    def run_epochs(self, variant: Variant, training: Training) -> float:
        """Runs the rest of the training. Returns the seconds of all of it, with the earlier parts of a stopped run."""
        state = self.store.load_state(variant.name, self.task.x.device)
        earlier = 0.0
        if state is not None:
            training.go_on_from(state["training"])
            earlier = state["seconds"]
        start = saved = time.perf_counter()
        with stages(self.setup.epochs, "epoch", "training", done=training.epoch) as show:
            for _ in range(training.epoch, self.setup.epochs):
                training.run_epoch()
                require_finite(training, variant)
                now = time.perf_counter()
                if now - saved >= self.checkpoint_every or training.epoch == self.setup.epochs:
                    state = {"training": training.state(), "seconds": earlier + now - start}
                    self.store.save_state(variant.name, state)
                    saved = now
                show(f"accuracy={max(training.history.accuracy[-1]):.2%}")
        return earlier + time.perf_counter() - start


def frozen_gates(models: Sequence[DGN], task: Task) -> FrozenGates:
    """Computes the gates of each seed's feature network on all points, once for the whole training."""

    def of_seeds(x: Tensor) -> GateBits:
        return GateBits.cat([GateCache.build(model, x, GATED).bits for model in models])

    return FrozenGates(of_seeds(task.x), of_seeds(task.test_x))


def require_finite(training: Training, variant: Variant) -> None:
    """Raises ValueError if a loss of the last epoch is not finite."""
    if not all(map(math.isfinite, training.history.loss[-1])):
        raise ValueError(
            f"{variant.title} diverged in epoch {training.epoch}: losses {training.history.loss[-1]}; "
            "leave it out of --variants or use the other --optimizer"
        )
