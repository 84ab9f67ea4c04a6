"""The gates of one digit on their way through a small convolutional net, as images."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from _common.images import encoded
from torch import Tensor, nn

import gatedops
from gatedops import data

EPOCHS, BATCH, LEARNING_RATE = 6, 64, 5e-3


def small_net(classes: int) -> nn.Sequential:
    """For (1, 8, 8) digits: 16 gates a pixel, max-pool, 36 gates a pixel, flatten, 64 gates."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 16, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(16, 36, 3, padding=1),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(36 * 16, 64),
        "relu3": nn.ReLU(),
        "head": nn.Linear(64, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def walk(seed: int) -> dict[str, object]:
    """Trains the net on the digits for seconds and follows the first test digit through it.

    The JSON has its image, its label, the net's answer and test accuracy, and for each layer an image of its gates.
    """
    digits = data.load("digits", seed=seed)
    x, labels = digits.inputs(digits.train_images), digits.train_labels
    test, test_labels = digits.inputs(digits.test_images), digits.test_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = small_net(len(digits.classes))
        optimizer = torch.optim.Adam(net.parameters(), LEARNING_RATE)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                loss = nn.functional.cross_entropy(net(x[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    bits = gatedops.record_gates(net, test, max_pool=True)
    with torch.no_grad():
        answers = net(test).argmax(1)
    layers = []
    for layer, gates in zip(bits.layers, bits[0].unpack(), strict=True):
        title, below = _caption(layer.name, layer.shape, layer.kind, gates)
        layers.append({"title": title, "below": below, "gates": encoded(tiles(gates[0], layer.kind))})
    accuracy = float((answers == test_labels).double().mean())
    return {
        "image": encoded(test[0, 0]),
        "label": int(test_labels[0]),
        "answer": int(answers[0]),
        "accuracy": accuracy,
        "layers": layers,
    }


def tiles(gates: Tensor, kind: str) -> Tensor:
    """The gates of one input as an image of 0 (between tiles), 1 (off) and 2 (on): one tile a channel.

    Select masks (K, C, H, W) are laid back onto the pixels they choose among, K being a square of side k = stride.
    """
    if kind == "select":
        masks, channels, height, width = gates.shape
        side = math.isqrt(masks)
        gates = gates.view(side, side, channels, height, width).permute(2, 3, 0, 4, 1)
        gates = gates.reshape(channels, height * side, width * side)
    if gates.dim() == 1:
        side = math.isqrt(len(gates))
        return gates[: side * side].view(side, side).int() + 1
    channels, height, width = gates.shape
    across = math.isqrt(channels - 1) + 1
    down = -(-channels // across)
    mosaic = torch.zeros(down * (height + 1) - 1, across * (width + 1) - 1, dtype=torch.int32)
    for channel in range(channels):
        top, left = channel // across * (height + 1), channel % across * (width + 1)
        mosaic[top : top + height, left : left + width] = gates[channel].int() + 1
    return mosaic


def _caption(name: str, shape: tuple[int, ...], kind: str, gates: Tensor) -> tuple[str, str]:
    size = " x ".join(map(str, shape))
    if kind == "select":
        return f"{name}: max-pool choices", f"{size}, on in {int(gates.sum())} of {gates[0, 0].numel()} windows"
    return f"{name}: gates", f"{size}, {float(gates.double().mean()):.0%} on"
