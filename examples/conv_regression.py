"""Kernel regression with the convolutional neural path kernel, beside the network that its gates come from.

Trains the papers' VCONV (four convolutions, two dense layers; Adam, batch 32), and computes the neural path kernel of
its gates (gatedops.NPKOperator.of) on the points that it was trained on, in tiles. Then a kernel regression, whose
ridge is chosen by leave-one-out, predicts the test points. The script times one tile and one epoch on a few points, and
takes as many points as --minutes allow; one in five of them is a test point. Writes OUT/conv_regression_DATA.json and
OUT/conv_regression_DATA.png.

    python examples/conv_regression.py --data-dir DIR
    python examples/conv_regression.py --data-dir DIR --points 2000 --gates untrained trained

DIR has the official binary files of CIFAR-10. Without it, the script runs on the digits of scikit-learn. If a run is
stopped at any moment, the same command goes on from the checkpoints and tiles in OUT. No test point has a part in any
choice.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _common import gate_study
from _common.machine import machine_report
from _common.options import at_least, options_json, require_memory, run_script, script_parser
from _common.output import print_table, write_json_atomically
from _common.plots import encoded
from _common.store import Store
from _dgn_training.setup import Setup, Task, spec_of, task_of
from _kernel_regression.fits import CHECKPOINT_SECONDS
from _kernel_regression.network import GATES, SEED, Networks, networks_of, seconds_per_point
from _kernel_regression.tiles import TILE, Plan, kernels_of, planned, seconds_per_pair
from torch import Tensor

from gatedops import data
from gatedops.path_kernels import regression
from gatedops.solve import kernel_ridge, select_ridge

EPOCHS, QUICK_EPOCHS, QUICK_POINTS, MINUTES = 15, 10, 300, 60
# An epoch is timed on this many points.
TIMED = 200
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# At most this many training points choose the ridge, because that takes an eigendecomposition.
CHOOSING = 4000
TOL = 1e-3
# The regressions get these shares of the training points.
SHARES = (1 / 8, 1 / 4, 1 / 2, 1)


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "plot", seeded=False)
    add = options.add_argument
    where = options.add_mutually_exclusive_group()
    where.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of CIFAR-10's files (default: digits)")
    where.add_argument("--quick", action="store_true", help=f"run on {QUICK_POINTS} digits with few epochs")
    size = options.add_mutually_exclusive_group()
    size.add_argument(
        "--minutes",
        type=at_least(1),
        default=MINUTES,
        help="time for the training and the kernels, which decides how many points are taken (default: %(default)s)",
    )
    size.add_argument("--points", type=at_least(20), metavar="N", help="training and test points together")
    help_text = "network whose gates make a kernel: before its training, after it, or both (default: trained)"
    add("--gates", choices=GATES, nargs="+", default=["trained"], help=help_text)
    add("--epochs", type=at_least(1), help=f"epochs of the network (default: {EPOCHS})")
    add("--threads", type=at_least(1), default=torch.get_num_threads(), help="threads of the CPU (default: all)")
    add("--note", default="", help="remark on the data, for the picture and the JSON")
    return options


@dataclass(frozen=True, eq=False)
class Regressions:
    """What the kernel of one network's gates gives.

    points    training points of each regression
    accuracy  of each, on the test points, 0 to 1
    by_class  of the regression on all training points, 0 to 1
    ridge     in units of the kernel's mean diagonal
    """

    points: list[int]
    accuracy: list[float]
    by_class: list[float]
    ridge: float


def regressions_of(gram: Tensor, cross: Tensor, task: Task) -> Regressions:
    """Chooses the ridge, and fits the regressions."""
    few, labels = slice(CHOOSING), task.labels
    ridge = select_ridge(gram[few, few].double(), labels[few], RIDGES)
    targets = regression.one_hot(labels, task.classes)
    points, accuracy = [round(share * len(labels)) for share in SHARES], []
    for n in points:
        scores = kernel_ridge(gram[:n, :n], targets[:n], ridge, tol=TOL).predict(cross[:, :n])
        accuracy.append(regression.accuracy(scores, task.test_labels))
    return Regressions(points, accuracy, accuracy_by_class(scores, task), ridge)


def accuracy_by_class(scores: Tensor, task: Task) -> list[float]:
    """Returns for each class the share of its test points, 0 to 1, whose largest score is that of the class."""
    right = scores.argmax(1) == task.test_labels
    return [float(right[task.test_labels == label].double().mean().nan_to_num()) for label in range(task.classes)]


def plan_of(args: argparse.Namespace, setup: Setup, images: data.ImageData, store: Store) -> Plan:
    """Returns the number of points: the user's, or as many as the time allows. A run that goes on keeps its plan."""
    points = args.points or (QUICK_POINTS if args.quick else None)
    if points is not None:
        return Plan(points)
    known = store.load_figures("plan")
    if known is None:
        print("timing a tile of the kernel, and an epoch of the training")
        sample, few = (task_of(setup, images.sample(min(images.n, n))) for n in (3 * TILE, TIMED))
        per_pair = seconds_per_pair(spec_of(setup.arch, sample).relu_net(SEED).eval(), sample.x)
        per_point = seconds_per_point(setup, few)
        known = asdict(planned(per_pair, per_point, len(set(args.gates)), 60 * args.minutes, images.n))
        store.save_figures("plan", known)
    return Plan(**known)


def store_of(args: argparse.Namespace, setup: Setup) -> Store:
    points = args.points or (QUICK_POINTS if args.quick else None)
    size = {"points": points, "minutes": None if points else args.minutes}
    return Store(args.out / f"conv_regression_{setup.data}.checkpoints", asdict(setup) | size)


def run(args: argparse.Namespace) -> None:
    name = "digits" if args.data_dir is None else "cifar10"
    images = data.load(name, args.data_dir)
    if (args.points or 0) > images.n:
        raise ValueError(f"--points {args.points} is more than the {images.n} points of {name}")
    epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS)
    setup = Setup(name, "vconv", "adam", epochs, seeds=1, npk_points=None, threads=args.threads, device="cpu")
    torch.set_num_threads(args.threads)
    store, machine = store_of(args, setup), machine_report()
    plan = plan_of(args, setup, images, store)
    task = task_of(setup, images.sample(plan.n))
    k, m = len(task.x), len(task.test_x)
    require_memory(4 * k * (k + m) + 8 * 3 * k**2, f"a regression on {k} points", "--points or --minutes")
    print(f"{name}: {k} training and {m} test points, {plan.pairs:,} pairs for a kernel")
    if plan.seconds_per_pair is not None and plan.seconds_per_point is not None:
        print(
            f"the training takes about {plan.n * plan.seconds_per_point / 60:.0f} minutes, and a kernel, at "
            f"{1e6 * plan.seconds_per_pair:.1f} us a pair, {plan.pairs * plan.seconds_per_pair / 60:.0f} minutes"
        )
    networks = networks_of(setup, task, store, CHECKPOINT_SECONDS)
    print(f"the network after {epochs} epochs on these points: {networks.accuracy:.2%}")
    content: dict[str, Any] = {
        "machine": machine,
        "options": options_json(args) | {"data": name, "epochs": epochs},
        "points": {"train": k, "test": m, "pairs": plan.pairs},
        "timed": {"seconds_per_pair": plan.seconds_per_pair, "seconds_per_point": plan.seconds_per_point},
        "classes": dict(zip(images.classes, torch.bincount(task.labels, minlength=task.classes).tolist(), strict=True)),
        "network": network_figures(networks, task),
        "kernels": {},
        "pictures": {},
    }
    for gates in [name for name in GATES if name in args.gates]:
        gram, cross = kernels_of(networks.of(gates), task.x, task.test_x, store, gates)
        content["kernels"][gates] = asdict(regressions_of(gram, cross, task))
        content["pictures"][gates] = encoded(gate_study.gram_image(gate_study.normalised(gram), task.labels))
    report(args, content)


def network_figures(networks: Networks, task: Task) -> dict[str, Any]:
    with torch.no_grad():
        scores = torch.cat([networks.trained(x) for x in task.test_x.split(TILE)])
    return {
        "accuracy": networks.accuracy,
        "by_class": accuracy_by_class(scores, task),
        "by_epoch": networks.by_epoch,
        "seconds": networks.seconds,
    }


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Prints the table, and writes the JSON and the picture."""
    rows = [
        [f"{gates} gates", f"{n}", f"{accuracy:.2%}", f"{found['ridge']:g}"]
        for gates, found in content["kernels"].items()
        for n, accuracy in zip(found["points"], found["accuracy"], strict=True)
    ]
    network = ["the network", f"{content['points']['train']}", f"{content['network']['accuracy']:.2%}", ""]
    print_table(["kernel", "points", "test accuracy", "ridge"], [*rows, network])
    path = args.out / f"conv_regression_{content['options']['data']}.json"
    write_json_atomically(path, content)
    print(f"\nwrote {path}")
    if not args.no_plot:
        from _kernel_regression.conv_picture import draw

        draw(path.with_suffix(".png"), content)
        print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
