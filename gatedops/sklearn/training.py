"""A short training of a made network inside fit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BATCH = 64
_RATE = 1e-3


def train(net: nn.Module, x: Tensor, targets: Tensor, epochs: int, generator: torch.Generator) -> None:
    """Trains a net by Adam, with cross-entropy for labels and squared errors for numbers.

    The same arguments and the same number of threads give the same weights.

    Args:
        net: its parameters change.
        x: ``(n, d)``.
        targets: int64 labels ``(n,)`` from 0, or floats ``(n, c)``, which are centred and divided by their standard
            deviations here.
        epochs: how many times each input is used.
        generator: draws the order of the inputs.
    """
    is_labels = not targets.is_floating_point()
    if not is_labels:
        targets = targets - targets.mean(0)
        spread = targets.square().mean(0).sqrt()
        targets = (targets / torch.where(spread > 0, spread, 1.0)).to(x.dtype)
    loss = nn.functional.cross_entropy if is_labels else nn.functional.mse_loss
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(_BATCH):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss(net(x[rows]), targets[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
