"""Kernel regression on all of MNIST: what the gates of a ReLU network know, before and after its training.

Trains the papers' fully connected network (five layers of 128 gates; Adam at 1e-3, batch 100), and fits one kernel
regression with its gates on the training images: by Lambda, the count of common active gates, or with --sigma by the
neural path kernel itself, which multiplies the counts by the inner products of the images. gatedops.solve.kernel_ridge
stores no Gram: that of 60,000 images has 29 GB in float64, and its Cholesky factor as many. The script also measures
this dense way on few images, and extrapolates it to all. Writes OUT/mnist_regression.json and OUT/mnist_regression.png.

    python examples/mnist_regression.py --data-dir DIR
    python examples/mnist_regression.py --data-dir DIR --sigma

DIR has the four official files of MNIST. Without it, the script runs on the digits of scikit-learn, and its files are
named digits_regression. The network, and so its trained gates, has seen all training images, also where the regression
gets few of them. No test image has a part in any choice. If a run is stopped at any moment, the same command goes on
from the checkpoints in OUT.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _common.machine import machine_report
from _common.options import at_least, between, options_json, run_script, script_parser
from _common.output import print_table, write_json_atomically
from _common.store import Store
from _dgn_training.setup import Setup, Task, load_task
from _kernel_regression.fits import CHECKPOINT_SECONDS, Dense, Fit, Problem, dense_fit, fit
from _kernel_regression.network import GATES, Networks, networks_of

import gatedops
from gatedops.progress import stages

EPOCHS, QUICK_EPOCHS = {"digits": 25, "mnist": 10}, 10
# With the papers' smaller steps, 1e-4 in batches of 32, the network takes several times as long to get as far.
LEARNING_RATE, BATCH = 1e-3, 100
RIDGE, TOL = 0.1, 1e-3
# The regressions get this many points, and then all.
POINTS, QUICK_POINTS = (250, 1000, 4000, 16_000), (100,)
DENSE_POINTS = (500, 1000, 2000, 4000, 8000)
# Gates of this many inputs are recorded at a time.
RECORDED = 4096


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "plot", seeded=False)
    add = options.add_argument
    where = options.add_mutually_exclusive_group()
    where.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder with the four files of MNIST (default: run on digits)"
    )
    where.add_argument("--quick", action="store_true", help="run on digits with few epochs and points")
    add("--sigma", action="store_true", help="regress with the neural path kernel itself, not with Lambda alone")
    add("--points", type=at_least(10), nargs="+", metavar="N", help="training points of the regressions")
    add(
        "--epochs",
        type=at_least(1),
        help=f"epochs of the network (default: {EPOCHS['mnist']}, on digits {EPOCHS['digits']})",
    )
    add(
        "--ridge",
        type=between(0, math.inf),
        default=RIDGE,
        help="in units of the kernel's mean diagonal (default: %(default)s)",
    )
    add(
        "--tol", type=between(0, 1), default=TOL, help="relative residual at which a solve stops (default: %(default)s)"
    )
    add("--threads", type=at_least(1), default=torch.get_num_threads(), help="threads of the CPU (default: all)")
    return options


def points_of(args: argparse.Namespace, n: int) -> list[int]:
    """Returns the numbers of training points for the regressions, in order, with all points at the end unless --points
    leaves them out."""
    if args.points is None:
        return [*(count for count in (QUICK_POINTS if args.quick else POINTS) if count < n), n]
    if max(args.points) > n:
        raise ValueError(f"--points {max(args.points)} is more than the {n} training points")
    return sorted(set(args.points))


def problems_of(args: argparse.Namespace, task: Task, networks: Networks) -> dict[str, Problem]:
    """Records the gates of the network on all points, before and after training."""
    x, test_x = (task.x, task.test_x) if args.sigma else (None, None)

    def problem(gates: str) -> Problem:
        net = networks.of(gates)
        bits, test_bits = (gatedops.record_gates(net, points, RECORDED) for points in (task.x, task.test_x))
        return Problem(bits, task.labels, x, test_bits, task.test_labels, test_x, task.classes, args.ridge, args.tol)

    return {gates: problem(gates) for gates in GATES}


def fits_of(
    args: argparse.Namespace, problems: dict[str, Problem], points: list[int], store: Store
) -> tuple[dict[str, list[Fit]], list[Dense]]:
    """Fits every regression; returns those of each network's gates, and those of the trained gates by the dense way."""
    kernel = "npk" if args.sigma else "lambda"
    n = len(problems["trained"].labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    dense_points = [count for count in DENSE_POINTS if count < n] + [n] * (n <= DENSE_POINTS[-1])
    fits: dict[str, list[Fit]] = {gates: [] for gates in GATES}
    with stages(len(GATES) * len(points) + len(dense_points), "regression") as begin:
        for gates in GATES:
            for count in points:
                begin(f"{gates} gates, {count} points")
                problem = problems[gates].of_rows(order[:count])
                fits[gates].append(fit(problem, store, f"{gates}-{kernel}-{count}-{args.ridge:g}-{args.tol:g}"))
        dense = []
        for count in dense_points:
            begin(f"dense way, {count} points")
            problem = problems["trained"].of_rows(order[:count])
            dense.append(dense_fit(problem, store, f"dense-{kernel}-{count}-{args.ridge:g}"))
    return fits, dense


def run(args: argparse.Namespace) -> None:
    data = "digits" if args.data_dir is None else "mnist"
    epochs = args.epochs or (QUICK_EPOCHS if args.quick else EPOCHS[data])
    setup = Setup(data, "fc", "adam", epochs, seeds=1, npk_points=None, threads=args.threads, device="cpu")
    training = {"learning_rate": LEARNING_RATE, "batch": BATCH}
    task = load_task(setup, args.data_dir)
    points = points_of(args, len(task.x))
    store = Store(args.out / f"{data}_regression.checkpoints", asdict(setup) | training)
    torch.set_num_threads(args.threads)
    machine = machine_report()
    print(f"{data}: {len(task.x)} training and {len(task.test_x)} test points; ridge {args.ridge:g}, tol {args.tol:g}")
    networks = networks_of(setup, task, store, CHECKPOINT_SECONDS, **training)
    print(f"the network after {epochs} epochs ({networks.seconds:.0f} s): {networks.accuracy:.2%}\n")
    fits, dense = fits_of(args, problems_of(args, task, networks), points, store)
    print_report(fits, dense)
    content = {
        "machine": machine,
        "options": options_json(args) | {"data": data, "epochs": epochs},
        "points": {"train": len(task.x), "test": len(task.test_x)},
        "kernel": "NPK" if args.sigma else "Lambda",
        "network": {"accuracy": networks.accuracy, "by_epoch": networks.by_epoch, "seconds": networks.seconds},
        "fits": {gates: [asdict(one) for one in of_gates] for gates, of_gates in fits.items()},
        "dense": [asdict(one) for one in dense],
        "dense_extrapolated": [asdict(dense[-1].at(count)) for count in points if count > dense[-1].n],
    }
    path = args.out / f"{data}_regression.json"
    write_json_atomically(path, content)
    print(f"\nwrote {path}")
    if not args.no_plot:
        from _kernel_regression.mnist_picture import draw

        draw(path.with_suffix(".png"), content, fits, dense)
        print(f"wrote {path.with_suffix('.png')}")


def print_report(fits: dict[str, list[Fit]], dense: list[Dense]) -> None:
    header = ["gates", "points", "test accuracy", "iterations", "residual", "seconds", "MiB"]
    rows = [
        [
            gates,
            f"{one.n}",
            f"{one.accuracy:.2%}",
            f"{len(one.curve)}",
            f"{one.residual:.1e}",
            f"{one.cost.seconds:.1f}",
            mib(one.cost.memory),
        ]
        for gates, of_gates in fits.items()
        for one in of_gates
    ]
    print_table(header, rows)
    print("\nThe dense way, trained gates: a float64 Gram and its Cholesky factor")
    most = fits["trained"][-1].n
    shown = [*dense, *([dense[-1].at(most)] if most > dense[-1].n else [])]
    print_table(
        ["points", "test accuracy", "seconds", "MiB"],
        [
            [
                f"{one.n}",
                "extrapolated" if one.accuracy is None else f"{one.accuracy:.2%}",
                f"{one.seconds:.1f}",
                mib(one.memory),
            ]
            for one in shown
        ],
    )


def mib(memory: int | None) -> str:
    return "" if memory is None else f"{memory / 2**20:.0f}"


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
