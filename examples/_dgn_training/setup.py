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
STAGES = 7  # FL-0 .. FL-6


@dataclass(frozen=True)
class Setup:
    """A run whose figures can be compared, and gone on with, only by a run with the same values."""

    data: str
    arch: str
    optimizer: str
    epochs: int
    seeds: int
    npk_points: int
    threads: int
    device: str

    @property
    def learning_rate(self) -> float:
        return papers.LEARNING_RATE[self.arch, self.optimizer]

    @property
    def stages(self) -> tuple[int, ...]:
        """The epochs after which the ReLU network gives FL-0 .. FL-6 their gates: 0 is the initialisation.

        The squares of 0/6 .. 6/6 of the training, as gates move most at its beginning. The released code takes, for
        GCONV, the best weights of the first 10, 20 .. 60 epochs.
        """
        last = STAGES - 1
        return tuple(round(self.epochs * stage**2 / last**2) for stage in range(STAGES))


@dataclass(frozen=True, eq=False)
class Task:
    """Inputs in [0, 1], float (n, d) for fully connected nets and (n, C, H, W) else; labels int64 (n,)."""

    x: Tensor
    labels: Tensor
    test_x: Tensor
    test_labels: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.x.shape[1:])


def load_task(setup: Setup, data_dir: Path | None) -> Task:
    """The data as the architecture reads it, on the device."""
    images = data.load(setup.data, data_dir)
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
    """The papers' network for these inputs."""
    if arch == "fc":
        return fc_spec(task.shape[0], papers.FC_WIDTHS, task.classes)
    return conv_spec(task.shape, outputs=task.classes, head="gap" if arch == "gconv" else "flatten")
