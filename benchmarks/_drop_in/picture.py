"""The gates of one digit on their way through a small convolutional net, as a picture."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from _common.output import replacing
from torch import Tensor, nn

import gatedops
from gatedops import GateBits, data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPOCHS, BATCH, LEARNING_RATE = 6, 64, 5e-3
ON, OFF = "#e0a458", "#1d2f4b"


@dataclass(frozen=True)
class Walk:
    """One test digit: image (H, W) in [0, 1], its label, the net's answer, its gates (one row); the test accuracy."""

    image: Tensor
    label: int
    answer: int
    bits: GateBits
    accuracy: float


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


def walk(seed: int) -> Walk:
    """Trains the net on the digits for seconds and follows the first test digit through it."""
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
    accuracy = float((answers == test_labels).double().mean())
    return Walk(test[0, 0], int(test_labels[0]), int(answers[0]), bits[0], accuracy)


def draw(path: Path, found: Walk) -> None:
    """One PNG: the digit, and one panel a layer with the gates that are on for it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = dict(zip([layer.name for layer in found.bits.layers], found.bits.unpack(), strict=True))
    figure, axes = pyplot.subplots(1, 1 + len(panels), figsize=(16, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.15))
    figure.suptitle(
        f"The gates of one digit in a small net (test accuracy {found.accuracy:.1%}): on is light, off is dark",
        fontsize=14,
    )
    axes[0].imshow(found.image.numpy(), cmap="gray_r", interpolation="nearest")
    _label(axes[0], f"input: a {found.label}", f"the net says {found.answer}")
    for axis, (name, gates), layer in zip(axes[1:], panels.items(), found.bits.layers, strict=True):
        mosaic = tiles(gates[0], layer.kind)
        axis.imshow(mosaic.numpy(), cmap=ListedColormap(["white", OFF, ON]), vmin=0, vmax=2, interpolation="nearest")
        _label(axis, *_caption(name, layer.shape, layer.kind, gates))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)


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


def _label(axis: Axes, title: str, below: str) -> None:
    axis.set_title(title, fontsize=12)
    axis.set_xlabel(below, fontsize=11)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
