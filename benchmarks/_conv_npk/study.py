"""Path kernels of a convolutional net before and after its training."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from _common.gate_study import LabelledPoints, gram_accuracy, gram_image
from _common.relu_net import net_accuracy, train
from torch import Tensor, nn

import gatedops

HEADER = ("kernel", "test accuracy", "ridge", "seconds", "us a pair")


@dataclass(frozen=True)
class KernelFigures:
    """Of one Gram: test accuracy (0 to 1) of kernel regression, its ridge, and what the Gram took, all of npk."""

    accuracy: float
    ridge: float
    seconds: float
    pairs: int

    @property
    def us_per_pair(self) -> float:
        """Microseconds for each unordered pair."""
        return 1e6 * self.seconds / self.pairs

    def row(self, name: str) -> tuple[str, ...]:
        """The cells under HEADER."""
        return name, f"{self.accuracy:.2%}", f"{self.ridge:g}", f"{self.seconds:.1f}", f"{self.us_per_pair:.2f}"

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"us_per_pair": self.us_per_pair}


@dataclass(frozen=True)
class Study:
    """figures and images (the normalised Gram, sorted by class) by name: "untrained net" and "trained net"."""

    figures: dict[str, KernelFigures]
    images: dict[str, Tensor]
    losses: list[float]
    net_accuracy: float


def study_net(
    net: nn.Sequential, points: LabelledPoints, inputs: Tensor, *, epochs: int, dtype: torch.dtype, seed: int
) -> Study:
    """Look at the kernel of a net, train it on the training points, look again. inputs: float (n, C, H, W)."""
    figures: dict[str, KernelFigures] = {}
    images: dict[str, Tensor] = {}

    def look(name: str) -> None:
        start = time.perf_counter()
        gram = gatedops.npk(net.eval(), inputs, dtype=dtype)
        seconds = time.perf_counter() - start
        figures[name] = KernelFigures(*gram_accuracy(gram, points, seed), seconds, len(gram) * (len(gram) + 1) // 2)
        images[name] = gram_image(_normalised(gram), points.labels)

    look("untrained net")
    k = points.n_train
    losses = train(net, inputs[:k], points.labels[:k], epochs, seed)
    look("trained net")
    return Study(figures, images, losses, net_accuracy(net, inputs[k:], points.labels[k:]))


def _normalised(gram: Tensor) -> Tensor:
    """K_ij / sqrt(K_ii K_jj); 0 for a point whose kernel with itself is 0."""
    factors = gram.diagonal().rsqrt()
    factors = torch.where(factors.isfinite(), factors, 0)
    return gram * factors[:, None] * factors
