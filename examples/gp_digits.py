"""Gaussian processes that predict the ink of a digit's lower half from its upper half, with their uncertainty.

Compares four kernels in GPyTorch: RBF, whose lengthscale is trained, and the neural path kernel of a random net, of the
net trained on the same digits, and of the net trained on other digits (gatedops.gpytorch.NPKKernel). Each process
trains its outputscale, noise and mean by the marginal likelihood of its digits. The gates of a net that was trained on
their labels make a process too sure of itself. Writes OUT/gp_digits.json and OUT/gp_digits.png.

    python examples/gp_digits.py
    python examples/gp_digits.py --n 1000 --width 512
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _common.machine import machine_report
from _common.options import at_least, options_json, run_script, script_parser
from _common.output import print_table, write_json_atomically
from _common.plots import COLOURS, new_figure, save
from torch import Tensor, nn

from gatedops import data

N, LARGEST_N, WIDTH, STEPS, NET_STEPS, RATE, NET_RATE = 300, 1400, 256, 60, 300, 0.1, 1e-3
# A normal variable lies this many standard deviations from its mean in 5 % of all cases.
NINETY_FIVE = 1.96


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "plot")
    add = options.add_argument
    add("--n", type=at_least(2, LARGEST_N), default=N, help="digits of the processes (default: %(default)s)")
    add("--width", type=at_least(1), default=WIDTH, help="gates in each of two layers (default: %(default)s)")
    add("--steps", type=at_least(1), default=STEPS, help="steps of Adam for each process (default: %(default)s)")
    return options


@dataclass(frozen=True)
class Halves:
    """Digits cut in two.

    Args:
        x: the upper halves and a column of ones, float64 ``(n, 33)``.
        y: the ink of the lower halves, ``(n,)``, with mean 0 and variance 1 over the digits of the processes.
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Prediction:
    """What a process says of the test digits.

    Args:
        kernel: its name.
        mean, deviation: of each digit, with the noise.
        rmse: the root of the mean squared error.
        nlpd: the mean of ``-log p(y)``, which also rewards a right uncertainty.
        covered: the share of the digits in the interval that should hold 95 % of them.
    """

    kernel: str
    mean: list[float]
    deviation: list[float]
    rmse: float
    nlpd: float
    covered: float

    def row(self) -> tuple[str, ...]:
        return self.kernel, f"{self.rmse:.3f}", f"{self.nlpd:.3f}", f"{self.covered:.1%}"


def halves(n: int, seed: int) -> tuple[Halves, Halves, Halves]:
    """Returns n digits for the processes, the other training digits, and the test digits."""
    digits = data.load("digits", seed=seed)
    train, test = (digits.inputs(part, torch.float64)[:, 0] for part in (digits.train_images, digits.test_images))
    middle = train.shape[1] // 2
    ink = train[:n, middle:].mean((1, 2))
    made = []
    for images in (train[:n], train[n:], test):
        x = torch.cat([images[:, :middle].flatten(1), torch.ones(len(images), 1)], 1)
        made.append(Halves(x, (images[:, middle:].mean((1, 2)) - ink.mean()) / ink.std()))
    return made[0], made[1], made[2]


def random_net(inputs: int, width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
    return nn.Sequential(*layers).double()


def trained(net: nn.Sequential, points: Halves) -> nn.Sequential:
    """Returns a copy of the net, trained on digits, all at a time."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), NET_RATE)
    for _ in range(NET_STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(points.x)[:, 0], points.y).backward()
        optimizer.step()
    return net


def predict(name: str, kernel: nn.Module, points: Halves, test: Halves, steps: int) -> Prediction:
    """Trains a Gaussian process with this kernel, and asks it for the test digits."""
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(points.x, points.y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean, self.kernel = gpytorch.means.ConstantMean(), gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    process = Process().double()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(process.likelihood, process)
    optimizer = torch.optim.Adam([p for p in process.parameters() if p.requires_grad], RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        (-marginal(process(points.x), points.y)).backward()
        optimizer.step()
    process.eval()
    with torch.no_grad():
        said = process.likelihood(process(test.x))
    error, deviation = test.y - said.mean, said.stddev
    return Prediction(
        kernel=name,
        mean=said.mean.tolist(),
        deviation=deviation.tolist(),
        rmse=float(error.square().mean().sqrt()),
        nlpd=float(-torch.distributions.Normal(said.mean, deviation).log_prob(test.y).mean()),
        covered=float((error.abs() <= NINETY_FIVE * deviation).double().mean()),
    )


def predictions(points: Halves, others: Halves, test: Halves, args: argparse.Namespace) -> list[Prediction]:
    """Returns the predictions of all kernels."""
    import gpytorch

    from gatedops.gpytorch import NPKKernel

    net = random_net(points.x.shape[1], args.width, args.seed)
    kernels = {
        "RBF": gpytorch.kernels.RBFKernel(),
        "NPK, random net": NPKKernel(net),
        "NPK, net of these digits": NPKKernel(trained(net, points)),
        "NPK, net of others": NPKKernel(trained(net, others)),
    }
    return [predict(name, kernel, points, test, args.steps) for name, kernel in kernels.items()]


def draw(found: Sequence[Prediction], truth: Tensor, path: Path) -> None:
    """Draws what each process says against the truth, with the interval of 95 %."""
    figure = new_figure(15, 4.6, 0.12)
    axes = figure.subplots(1, len(found), sharex=True, sharey=True)
    ends = [float(end) for end in truth.aminmax()]
    for axis, one, colour in zip(axes, found, COLOURS, strict=False):
        reach = [NINETY_FIVE * deviation for deviation in one.deviation]
        axis.errorbar(truth, one.mean, reach, fmt="o", color=colour, ecolor=colour, markersize=3, elinewidth=0.5)
        axis.plot(ends, ends, color="black", linewidth=1)
        axis.set_title(f"{one.kernel}\nRMSE {one.rmse:.2f}, {one.covered:.0%} in the interval", fontsize=11)
        axis.set_xlabel("ink of the lower half", fontsize=11)
    axes[0].set_ylabel("prediction and its 95 % interval", fontsize=11)
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    # The matrices are so small that threads would wait for each other.
    torch.set_num_threads(1)
    points, others, test = halves(args.n, args.seed)
    found = predictions(points, others, test, args)
    print(f"{len(points.x)} digits for the processes, {len(test.x)} test digits; ink in standard deviations")
    print_table(("kernel", "RMSE", "-log p(y)", "in 95 % interval"), [one.row() for one in found])
    content = {"machine": machine_report(), "options": options_json(args), "kernels": [asdict(one) for one in found]}
    write_json_atomically(args.out / "gp_digits.json", content)
    print(f"wrote {args.out / 'gp_digits.json'}")
    if not args.no_plot:
        draw(found, test.y, args.out / "gp_digits.png")
        print(f"wrote {args.out / 'gp_digits.png'}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
