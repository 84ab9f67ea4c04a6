"""Trains a net on digits by SGD and by PathSGD, from a balanced and from an unbalanced start: OUT/path_sgd.png.

Both starts are the same function. In the unbalanced one the weights into each hidden unit are multiplied by a random
number, and those out of it are divided by it (Neyshabur, Salakhutdinov & Srebro 2015, arXiv 1506.02617). Each curve is
that of the learning rate with the lowest loss at the end, out of --rates.

    python examples/path_sgd.py
    python examples/path_sgd.py --epochs 50 --spread 3
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from _common.options import at_least, run_script, script_parser
from _common.output import print_table
from _common.plots import COLOURS, new_figure, save
from torch import Tensor, nn

from gatedops import data
from gatedops.optim import PathSGD

EPOCHS, BATCH, WIDTH, SPREAD = 20, 64, 128, 1.5
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
# A training diverges if the loss of a batch becomes larger.
LARGEST_LOSS = 1e6

# Makes the optimizer of a net for a learning rate.
Optimizer = Callable[[nn.Module, float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda net, rate: torch.optim.SGD(net.parameters(), rate),
    "PathSGD": PathSGD,
}


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    add = options.add_argument
    add("--epochs", type=at_least(1), default=EPOCHS, help="epochs (default: %(default)s)")
    add("--rates", type=float, nargs="+", default=list(RATES), metavar="LR", help="learning rates that are tried")
    add(
        "--spread",
        type=float,
        default=SPREAD,
        help="a hidden unit is multiplied by 10 ** u, u between -spread and spread (default: %(default)s)",
    )
    options.set_defaults(no_plot=False)  # the picture is what it makes: without matplotlib it does not start
    return options


@dataclass(frozen=True)
class Curve:
    """A training.

    Args:
        rate: the learning rate.
        losses: the loss of all training points, before the first epoch and after each.
        accuracy: the share of the test points that the net knows at the end.
    """

    rate: float
    losses: list[float]
    accuracy: float


def balanced_net(inputs: int, classes: int, seed: int) -> nn.Sequential:
    """A net of float64 with two hidden layers."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes)
    )
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net.double()


@torch.no_grad()
def unbalanced(net: nn.Sequential, spread: float, seed: int) -> nn.Sequential:
    """The same function, with the weights into each hidden unit multiplied by a number and those out of it divided."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    for layer, reader in pairwise(module for module in net if isinstance(module, nn.Linear)):
        factors = 10 ** (spread * (2 * torch.rand(WIDTH, generator=generator, dtype=torch.float64) - 1))
        layer.weight.mul_(factors.unsqueeze(1))
        layer.bias.mul_(factors)
        reader.weight.div_(factors)
    return net


def train(start: nn.Module, optimizer: Optimizer, rate: float, digits: data.ImageData, epochs: int) -> Curve:
    """Trains a copy of a net, always on the same batches."""
    net = copy.deepcopy(start)
    x, test = (digits.inputs(images, torch.float64).flatten(1) for images in (digits.train_images, digits.test_images))
    steps, generator = optimizer(net, rate), torch.Generator().manual_seed(0)
    losses = [_loss(net, x, digits.train_labels)]
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(net(x[rows]), digits.train_labels[rows])
            if not float(loss.detach()) < LARGEST_LOSS:
                return Curve(rate, [*losses, math.inf], 0.0)
            steps.zero_grad()
            loss.backward()
            steps.step()
        losses.append(_loss(net, x, digits.train_labels))
    with torch.no_grad():
        return Curve(rate, losses, float((net(test).argmax(1) == digits.test_labels).double().mean()))


def _loss(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(x), labels))


def curves(args: argparse.Namespace) -> dict[tuple[str, str], Curve]:
    """The best curve of each optimizer from each start."""
    digits = data.load("digits", seed=args.seed)
    net = balanced_net(digits.train_images[0].numel(), len(digits.classes), args.seed)
    starts = {"balanced": net, "unbalanced": unbalanced(net, args.spread, args.seed)}
    found = {}
    for name, optimizer in OPTIMIZERS.items():
        for start, begun in starts.items():
            tried = [train(begun, optimizer, rate, digits, args.epochs) for rate in args.rates]
            found[name, start] = min(tried, key=lambda curve: curve.losses[-1])
    return found


def draw(found: dict[tuple[str, str], Curve], path: Path) -> None:
    """Draws the losses of all curves."""
    figure = new_figure(8, 5, 0.12)
    axis = figure.subplots()
    for (name, start), curve in found.items():
        colour = COLOURS[list(OPTIMIZERS).index(name)]
        axis.plot(
            curve.losses,
            color=colour,
            # One line of PathSGD lies on the other.
            linewidth=5 if start == "balanced" else 2,
            alpha=0.4 if start == "balanced" else 1,
            linestyle="-" if start == "balanced" else "--",
            label=f"{name}, {start} start (rate {curve.rate:g})",
        )
    axis.set_yscale("log")
    axis.set_xlabel("epoch", fontsize=12)
    axis.set_ylabel("training loss", fontsize=12)
    axis.set_title("Digits: two starts that are the same function", fontsize=13)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=11)
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    # The matrices are so small that threads would wait for each other.
    torch.set_num_threads(1)
    found = curves(args)
    rows = [
        (name, start, f"{curve.rate:g}", f"{curve.losses[-1]:.4f}", f"{curve.accuracy:.1%}")
        for (name, start), curve in found.items()
    ]
    print_table(("optimizer", "start", "rate", "training loss", "test accuracy"), rows)
    path = args.out / "path_sgd.png"
    draw(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
