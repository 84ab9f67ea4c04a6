"""The neural path kernel of real data: what the gates of a trained ReLU net know, and how fast their Gram is.

Trains a small fully connected ReLU net without biases, records its gates at initialisation and after
training, and computes the NPK Gram of both. Science: kernel regression with either Gram against the net
itself, the share of gates on, the overlap of active sub-networks within and across classes. Speed: gatedops
against torch on random gates and on these gates, in the same run. Writes OUT/npk_gram.json and
OUT/npk_gram.png.

    python benchmarks/npk_gram.py
    python benchmarks/npk_gram.py --data mnist --data-dir DIR --n 10000

The ridge of the regression is chosen on a held-out fifth of the training points. The net, and so its trained
gates, has seen all training points; no test point is used before the test accuracies.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _common.gate_study import LabelledPoints, Study, study_net
from _common.gram_speed import HEADER, GramProblem, GramResult, problem_name, random_problem, time_gram
from _common.machine import bit_pair_bound, machine_report
from _common.options import (
    DTYPES,
    add_common_options,
    at_least,
    require_device,
    require_folder,
    require_matplotlib,
    require_memory,
)
from _common.output import print_table, write_json_atomically
from _common.relu_net import relu_net

from gatedops import GateBits, data

DEFAULT_POINTS = {"digits": 1797, "mnist": 4000, "cifar10": 4000, "random": 2000}
SPEED_POINTS, SPEED_LAYERS, SPEED_WIDTH, SPEED_INPUTS = 4096, 4, 1024, 784
REPEATS = 21
ARRAYS = 10  # (n, n) arrays alive at the worst moment


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    defaults = ", ".join(f"{name} {n}" for name, n in DEFAULT_POINTS.items())
    add("--data", choices=data.NAMES, default="digits", help="image set (default: %(default)s)")
    add("--data-dir", type=Path, help="folder with the files of mnist or cifar10")
    add(
        "--n",
        type=at_least(10),
        help="points in the Gram, a fifth of them test points, and the most in the random speed problem "
        f"(default: {defaults}; {SPEED_POINTS} in the speed problem)",
    )
    add("--width", type=at_least(1), default=256, help="gates per layer (default: %(default)s)")
    add("--depth", type=at_least(2), default=5, help="weight layers, gated ones + 1 (default: %(default)s)")
    add("--epochs", type=at_least(0), default=30, help="of training (default: %(default)s)")
    add_common_options(options)
    return options


def load_points(args: argparse.Namespace) -> tuple[data.ImageData, LabelledPoints, torch.Tensor]:
    """The images, the points of the Gram (uint8) and the net's inputs (float32, (n, d), in [0, 1])."""
    images = data.load(args.data, args.data_dir, n=args.n or DEFAULT_POINTS[args.data], seed=args.seed)
    pixels = torch.cat([images.train_images, images.test_images]).flatten(1)
    labels = torch.cat([images.train_labels, images.test_labels])
    device = torch.device(args.device)
    points = LabelledPoints(pixels.to(device), labels.to(device), len(images.classes), len(images.train_labels))
    return images, points, images.inputs(points.x)


def speed(
    args: argparse.Namespace, inputs: torch.Tensor, bits: GateBits, report: dict[str, object]
) -> list[GramResult]:
    """gatedops and its peers on random gates and on the trained net's gates, each without and with inputs."""
    n = min(SPEED_POINTS, args.n or SPEED_POINTS)
    makers = (
        lambda: random_problem(n, SPEED_LAYERS, SPEED_WIDTH, None, args.seed),
        lambda: random_problem(n, SPEED_LAYERS, SPEED_WIDTH, SPEED_INPUTS, args.seed),
        lambda: GramProblem(problem_name(args.data, bits.widths, bits.n, None), bits),
        lambda: GramProblem(problem_name(args.data, bits.widths, bits.n, inputs), bits, inputs),
    )
    results: list[GramResult] = []
    for make in makers:
        results += time_gram(
            make(),
            dtype=DTYPES[args.dtype],
            scale=args.scale,
            repeats=REPEATS,
            peers=not args.no_peers,
            bound=bit_pair_bound(report),
        )
    return results


def print_results(
    args: argparse.Namespace,
    points: LabelledPoints,
    found: Study,
    results: list[GramResult],
    report: dict[str, object],
) -> None:
    n, n_test = len(points.x), len(points.x) - points.n_train
    print(
        f"{args.data}: {n} points ({points.n_train} training, {n_test} test), fully connected ReLU net "
        f"without biases, {args.depth - 1} gated layers of {args.width}, {args.epochs} epochs\n"
    )

    def share(p: float) -> str:
        return f"{p:.2%} +- {math.sqrt(p * (1 - p) / n_test):.2%}"

    columns = list(found.figures.values())
    rows = [
        ["test accuracy +- standard error", *(share(f.accuracy) for f in columns), share(found.net_accuracy)],
        ["ridge, chosen on training points", *(f"{f.ridge:g}" for f in columns), ""],
        ["gates on", *(f"{f.on:.1%}" for f in columns), ""],
        ["overlap of active sub-networks within a class", *(f"{f.within:.4f}" for f in columns), ""],
        ["overlap across classes", *(f"{f.across:.4f}" for f in columns), ""],
        ["within / across", *(f"{f.within / f.across:.2f}" if f.across else "-" for f in columns), ""],
    ]
    print_table(["", *(f"NPK, {name}" for name in found.figures), "the net itself"], rows)
    facts = f"{report['threads']} threads, {report['instruction_set']}, torch {report['torch']}"
    print(f"\n{report['cpu']}, {facts}")
    print("Symmetric Gram into a reused buffer; bit-pairs count each unordered pair of points once.")
    print_table(HEADER, [result.row() for result in results])
    print(f"bound: {bit_pair_bound(report).explanation}")


def all_figures(
    args: argparse.Namespace,
    points: LabelledPoints,
    found: Study,
    results: list[GramResult],
    report: dict[str, object],
) -> dict[str, object]:
    """The content of the JSON."""
    return {
        "machine": report,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "points": {"n": len(points.x), "train": points.n_train, "test": len(points.x) - points.n_train},
        "net": {"test_accuracy": found.net_accuracy, "loss_by_epoch": found.losses},
        "gates": {
            name: asdict(figures) | {"eigenvalues_over_trace": found.pictures[name].eigenvalues.tolist()}
            for name, figures in found.figures.items()
        },
        "bound": asdict(bit_pair_bound(report)),
        "speed": [asdict(result) for result in results],
    }


def run(args: argparse.Namespace) -> None:
    if not args.no_plot:
        require_matplotlib()
    require_device(args.device)
    require_folder(args.out)
    images, points, inputs = load_points(args)
    dtype = DTYPES[args.dtype]
    require_memory(len(points.x) ** 2 * ARRAYS * dtype.itemsize, f"a study of n={len(points.x)}")
    net = relu_net(inputs.shape[1], args.width, args.depth, points.classes, args.seed).to(inputs.device)
    found = study_net(net, points, inputs, epochs=args.epochs, dtype=dtype, scale=args.scale, seed=args.seed)
    report = machine_report()
    results = speed(args, inputs, found.trained, report)
    print_results(args, points, found, results, report)
    write_json_atomically(args.out / "npk_gram.json", all_figures(args, points, found, results, report))
    print(f"\nwrote {args.out / 'npk_gram.json'}")
    if not args.no_plot:
        from _common.plots import plot_npk_gram

        captions = {name: f"NPK, {name}: test accuracy {f.accuracy:.1%}" for name, f in found.figures.items()}
        title = f"NPK of {len(points.x)} points of {args.data}: {args.depth - 1} gated layers of {args.width}"
        plot_npk_gram(
            args.out / "npk_gram.png", found.pictures, captions, points.labels, images.classes, results, title
        )
        print(f"wrote {args.out / 'npk_gram.png'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"npk_gram.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
