"""A fully connected ReLU network without biases, its training and its accuracy."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from gatedops.progress import with_bar

BATCH = 64
LEARNING_RATE = 1e-3


def relu_net(inputs: int, width: int, depth: int, outputs: int, seed: int) -> nn.Sequential:
    """Returns a net of `depth` weight layers, so of depth - 1 gated layers of `width` gates, as in docs/math.md,
    section 1. Weights are normal with variance 2 / fan-in (He), drawn from a generator seeded here.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [inputs, *[width] * (depth - 1), outputs]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out, bias=False)
        nn.init.normal_(linear.weight, std=math.sqrt(2 / fan_in), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(net: nn.Module, x: Tensor, labels: Tensor, epochs: int, seed: int) -> list[float]:
    """Trains by Adam on the cross-entropy in batches of 64, and returns the mean loss of every epoch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in with_bar(range(epochs), "training", "epoch", epochs, None):
        total = torch.zeros((), device=x.device)
        for batch in torch.randperm(len(x), generator=generator).to(x.device).split(BATCH):
            loss = nn.functional.cross_entropy(net(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        losses.append(float(total) / len(x))
    return losses


@torch.no_grad()
def net_accuracy(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Returns the share of the rows of x that the net classifies as `labels` says, 0 to 1."""
    return float((net(x).argmax(1) == labels).double().mean())
