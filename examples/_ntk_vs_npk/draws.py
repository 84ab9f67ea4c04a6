"""Draws value weights many times under the same gates, and computes the tangent kernel of each draw."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from _common.relu_net import relu_net
from torch import Tensor, nn

import gatedops
from gatedops.progress import with_bar
from gatedops.trace import GatedTwin

HEADER = (
    "width",
    "parameters",
    "draws",
    "mean / expected",
    "largest |z|",
    "std / mean",
    "same, diagonal",
    "distance of a draw",
)


@dataclass(frozen=True)
class Drawn:
    """M draws of K^V of n points at one width, and the expectation of K^V.

    kernels   float64 (M, n, n)
    expected  float64 (n, n): d sigma^(2 (d - 1)) H
    """

    width: int
    parameters: int
    kernels: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Concentration:
    """Figures of one width, over the pairs of points whose H is not 0. Draws are independent of each other.

    mean_over_expected      the sum of the mean of all draws, divided by the sum of d sigma^(2 (d - 1)) H
    its_standard_error      the standard error of that ratio, from the scatter of the draws
    largest_z               the largest |mean - expected| of all pairs, in standard errors
    std_over_mean           the median over the pairs of std(K^V) / mean(K^V)
    std_over_mean_diagonal  the same median over the pairs of a point and itself
    distance                the median over the draws of |K^V - expected| / |expected|, in Frobenius norms
    """

    width: int
    parameters: int
    draws: int
    pairs: int
    mean_over_expected: float
    its_standard_error: float
    largest_z: float
    std_over_mean: float
    std_over_mean_diagonal: float
    distance: float

    def row(self) -> tuple[str, ...]:
        """Returns the cells under HEADER."""
        return (
            str(self.width),
            f"{self.parameters:,}",
            str(self.draws),
            f"{self.mean_over_expected:.4f} +- {self.its_standard_error:.4f}",
            f"{self.largest_z:.2f} of {self.pairs} pairs",
            f"{self.std_over_mean:.3f}",
            f"{self.std_over_mean_diagonal:.3f}",
            f"{self.distance:.3f}",
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def draw_kernels(x: Tensor, width: int, depth: int, draws: int, seed: int) -> Drawn:
    """Draws K^V of the points x (n, d_in) for `draws` value networks under the gates of one random ReLU net.

    The nets have depth weight layers, depth - 1 gated layers of `width`, no biases and one output. Value weights are
    normal, with variance 2 / width in every layer.
    """
    net = relu_net(x.shape[1], width, depth, 1, seed)
    twin = gatedops.gated_twin(net)
    bits = gatedops.record_gates(net, x)
    sigma = math.sqrt(2 / width)
    h = gatedops.npk_gram(x.double(), bits, scale="none", dtype=torch.float64)
    # The seed differs from that of the gates: a draw of the weights that made the gates would depend on them.
    generator = torch.Generator().manual_seed(seed + 1)
    found = [
        _tangent_kernel(twin, x, sigma, generator)
        for _ in with_bar(range(draws), f"width {width}", "draw", draws, None)
    ]
    parameters = sum(p.numel() for p in net.parameters())
    return Drawn(width, parameters, torch.stack(found), depth * sigma ** (2 * (depth - 1)) * h)


def _tangent_kernel(twin: GatedTwin, x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    for weight in twin.value.parameters():
        nn.init.normal_(weight, std=sigma, generator=generator)
    return gatedops.ntk(twin, x, parts=("V",), progress=False)["V"].double()


def concentration(drawn: Drawn) -> Concentration:
    """Measures how far the draws lie from their expectation and from each other."""
    upper = torch.ones_like(drawn.expected, dtype=torch.bool).triu() & (drawn.expected != 0)
    entries, expected = drawn.kernels[:, upper], drawn.expected[upper]
    draws = len(entries)
    mean, std = entries.mean(0), entries.std(0)
    totals = entries.sum(1) / expected.sum()
    diagonal = drawn.kernels.diagonal(dim1=1, dim2=2)
    distances = (drawn.kernels - drawn.expected).norm(dim=(1, 2)) / drawn.expected.norm()
    return Concentration(
        drawn.width,
        drawn.parameters,
        draws,
        len(expected),
        float(totals.mean()),
        float(totals.std() / draws**0.5),
        float(((mean - expected).abs() / (std / draws**0.5)).max()),
        float((std / mean.abs()).median()),
        float((diagonal.std(0) / diagonal.mean(0)).median()),
        float(distances.median()),
    )
