"""The gates of one digit on their way through a small convolutional net, as a picture: OUT/gate_walk.png.

The net learns the digits for some seconds. gatedops.record_gates then records the gates of the first test digit, and
with max_pool=True the choices of its max-pool too.

    python examples/gate_walk.py
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _common.options import run_script, script_parser
from _common.plots import new_figure, save
from torch import Tensor, nn

import gatedops
from gatedops import data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPOCHS, BATCH, LEARNING_RATE = 6, 64, 5e-3
ON, OFF = "#e0a458", "#1d2f4b"


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    options.set_defaults(no_plot=False)  # the picture is all that it makes: without matplotlib it does not start
    return options


@dataclass(frozen=True)
class Walk:
    """What the picture shows.

    image          the digit
    label, answer  what it is, and what the net takes it for
    accuracy       the share of the test digits that the net knows
    layers         of each layer the title, a line of figures, and the gates as `tiles` lays them out
    """

    image: Tensor
    label: int
    answer: int
    accuracy: float
    layers: list[tuple[str, str, Tensor]]


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
    """Trains the net on the digits and follows the first test digit through it."""
    digits = data.load("digits", seed=seed)
    x, labels = digits.inputs(digits.train_images), digits.train_labels
    test, test_labels = digits.inputs(digits.test_images), digits.test_labels
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
    layers = [
        (*caption(layer.name, layer.shape, layer.kind, gates), tiles(gates[0], layer.kind))
        for layer, gates in zip(bits.layers, bits[0].unpack(), strict=True)
    ]
    accuracy = float((answers == test_labels).double().mean())
    return Walk(test[0, 0], int(test_labels[0]), int(answers[0]), accuracy, layers)


def caption(name: str, shape: tuple[int, ...], kind: str, gates: Tensor) -> tuple[str, str]:
    """Returns the title of a layer and a line about its gates (1, ...)."""
    size = " x ".join(map(str, shape))
    if kind == "select":
        return f"{name}: max-pool choices", f"{size}, on in {int(gates.sum())} of {gates[0, 0].numel()} windows"
    return f"{name}: gates", f"{size}, {float(gates.double().mean()):.0%} on"


def tiles(gates: Tensor, kind: str) -> Tensor:
    """Returns the gates of one input as an image of 0 (between tiles), 1 (off) and 2 (on): one tile a channel.

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


def draw(seen: Walk, path: Path) -> None:
    """Draws the digit and the gates of each layer side by side."""
    from matplotlib.colors import ListedColormap

    figure = new_figure(16, 4.2, 0.15)
    title = f"The gates of one digit in a small net (test accuracy {seen.accuracy:.1%}): on is light, off is dark"
    figure.suptitle(title, fontsize=14)
    axes = figure.subplots(1, 1 + len(seen.layers))
    draw_panel(axes[0], seen.image, f"input: a {seen.label}", f"the net says {seen.answer}", cmap="gray_r")
    for axis, (title, below, gates) in zip(axes[1:], seen.layers, strict=True):
        draw_panel(axis, gates, title, below, cmap=ListedColormap(["white", OFF, ON]), vmin=0, vmax=2)
    save(figure, path)


def draw_panel(axis: Axes, image: Tensor, title: str, below: str, **style: Any) -> None:
    axis.imshow(image.numpy(), interpolation="nearest", **style)
    axis.set_title(title, fontsize=12)
    axis.set_xlabel(below, fontsize=11)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def run(args: argparse.Namespace) -> None:
    path = args.out / "gate_walk.png"
    seen = walk(args.seed)
    draw(seen, path)
    print(f"a {seen.label}, for which the net says {seen.answer}; it knows {seen.accuracy:.1%} of the test digits")
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
