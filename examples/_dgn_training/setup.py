"""The options that decide every figure of a run, and the data and networks that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from _dgn_training import papers
from gatedops import data
from gatedops.nn import ConvSpec, FCSpec, conv_spec, fc_spec

DATA = ("digits", "mnist", "cifar10")
ARCHITECTURES = ("fc", "vconv", "gconv")
OPTIMIZERS = ("adam", "sgd")
# The variants FL-0 .. FL-6 have one stage each.
STAGES = 7


@dataclass(frozen=True)
class Setup:
    """The options of a run. Only runs with the same values have comparable figures and can share checkpoints.

    npk_points  at most this many training points for the kernel regressions; None: all
    """

    data: str
    arch: str
    optimizer: str
    epochs: int
    seeds: int
    npk_points: int | None
    threads: int
    device: str

    @property
    def learning_rate(self) -> float:
        return papers.LEARNING_RATE[self.arch, self.optimizer]

    def points_of(self, task: Task) -> int:
        """Returns the number of training points of a kernel regression."""
        return len(task.x) if self.npk_points is None else min(self.npk_points, len(task.x))

    @property
    def stages(self) -> tuple[int, ...]:
        """The epochs after which the ReLU network gives FL-0 .. FL-6 their gates; 0 is the initialisation.

        They lie at (i / 6)^2 of the training for i = 0 .. 6, because gates move most at its beginning. For GCONV, the
        released code takes the best weights of the first 10, 20 .. 60 epochs.
        """
        last = STAGES - 1
        return tuple(round(self.epochs * stage**2 / last**2) for stage in range(STAGES))


@dataclass(frozen=True, eq=False)
class Task:
    """Inputs in [0, 1], float (n, d) for fully connected nets and (n, C, H, W) for others, and labels, int64 (n,)."""

    x: Tensor
    labels: Tensor
    test_x: Tensor
    test_labels: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.x.shape[1:])


def load_task(setup: Setup, data_dir: Path | None) -> Task:
    """Loads the data onto the device, in the shape that the architecture reads."""
    return task_of(setup, data.load(setup.data, data_dir))


def task_of(setup: Setup, images: data.ImageData) -> Task:
    """Puts images onto the device, in the shape that the architecture reads."""
    device = torch.device(setup.device)

    def inputs(pixels: Tensor) -> Tensor:
        x = images.inputs(pixels)
        return (x.flatten(1) if setup.arch == "fc" else x).to(device)

    return Task(
        inputs(images.train_images),
        images.train_labels.to(device),
        inputs(images.test_images),
        images.test_labels.to(device),
        len(images.classes),
    )


def spec_of(arch: str, task: Task) -> FCSpec | ConvSpec:
    """Returns the papers' network for these inputs."""
    if arch == "fc":
        return fc_spec(task.shape[0], papers.FC_WIDTHS, task.classes)
    return conv_spec(task.shape, outputs=task.classes, head="gap" if arch == "gconv" else "flatten")
