"""The path kernel of a convolutional net: what its gates know, what it is invariant to, and what a pair costs.

Trains a small GCONV net (convolutions of 3 x 3, global average pooling), and computes its path kernel (gatedops.npk)
before and after training: kernel regression with either Gram against the net itself. Then shows that with circular
padding the kernel does not change when an image is rotated over its edges. Then times a pair of 8x8 and of 32x32
images, 4 convolutions of 64 channels, beside the kernel in plain torch and, where neural-tangents is installed (it is
optional and needs JAX), its convolutional NTK of the same architecture. Writes OUT/conv_npk.json and OUT/conv_npk.png.

    python benchmarks/conv_npk.py
    python benchmarks/conv_npk.py --data cifar10 --data-dir DIR --n 1000 --channels 64 64 128 128 --dense 256 256
    python benchmarks/conv_npk.py --device cuda

The ridge of the regression is chosen on a held-out fifth of the training points. The net, and so its trained gates, has
seen all training points; no test point is used before the test accuracies.

With --device cuda the time of a pair alone is measured, on any GPU that torch calls by that name: by the portable ops,
or by the kernels that GATEDOPS_BACKEND=cuda chooses. Writes OUT/conv_npk_cuda.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from _common.contention import Contention, sentence
from _common.gate_study import LabelledPoints
from _common.machine import machine_report
from _common.options import (
    DEFAULT_OUT,
    DTYPES,
    at_least,
    require_device,
    require_folder,
    require_matplotlib,
    require_memory,
)
from _common.output import print_table, write_json_atomically
from _conv_npk import gpu, shifts, speed, study
from _gram.targets import HEADER as TARGET_HEADER
from _gram.targets import Target

from gatedops import data
from gatedops.backends.choice import backend_of
from gatedops.nn import conv_spec

DEFAULT_POINTS = {"digits": 1797, "mnist": 600, "cifar10": 400, "random": 200}
QUICK_POINTS = 200
CHANNELS = (64, 64, 64, 64)
REPEATS, QUICK_REPEATS, GPU_REPEATS = 7, 3, 21
ARRAYS = 8  # (n, n) arrays alive at the worst moment


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    defaults = ", ".join(f"{name} {n}" for name, n in DEFAULT_POINTS.items())
    add("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: timings alone (default: %(default)s)")
    add("--data", choices=data.NAMES, default="digits", help="image set (default: %(default)s)")
    add("--data-dir", type=Path, help="folder with the files of mnist or cifar10")
    add("--n", type=at_least(10), help=f"points in the Gram, a fifth of them test points (default: {defaults})")
    add("--channels", type=at_least(1), nargs="+", default=list(CHANNELS), metavar="C", help="of the convolutions")
    add("--dense", type=at_least(1), nargs="*", default=[], metavar="W", help="gated layers behind the pooling")
    add("--epochs", type=at_least(0), default=12, help="of training (default: %(default)s)")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the Grams (default: %(default)s)")
    add("--quick", action="store_true", help=f"{QUICK_POINTS} points, few and small timings: rough figures")
    add("--no-peers", action="store_true", help="time gatedops alone")
    add("--no-plot", action="store_true", help="no PNG; matplotlib is not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return options


def targets(args: argparse.Namespace, found: study.Study, entries: list[speed.Entry]) -> Iterator[Target]:
    """What a CPU with two threads is held to."""
    ours = {entry.problem: entry.us_per_pair for entry in entries if entry.by == "gatedops"}
    yield Target("8x8, us a pair", 10, ours["8x8"], at_least=False)
    yield Target("32x32, us a pair", 2000, ours["32x32"], at_least=False)
    whole = args.data == "digits" and args.n in (None, DEFAULT_POINTS["digits"]) and not args.quick
    if whole and tuple(args.channels) == CHANNELS and not args.dense:
        slowest = max(figures.seconds for figures in found.figures.values())
        yield Target("Gram of all 1797 digits, seconds", 60, slowest, at_least=False)


def time_pairs(args: argparse.Namespace) -> list[speed.Entry]:
    """Both problems, with or without peers."""
    problems = speed.QUICK_PROBLEMS if args.quick else speed.PROBLEMS
    repeats = QUICK_REPEATS if args.quick else REPEATS
    timed = [speed.time_problem(one, args.seed, repeats, peers=not args.no_peers) for one in problems]
    return [entry for entries in timed for entry in entries]


def as_json(args: argparse.Namespace) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def run_on_gpu(args: argparse.Namespace) -> None:
    require_device("cuda")
    require_folder(args.out)
    gpu_report = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    report = machine_report() | gpu_report | {"backend": backend_of("cuda", "conv_gram")}
    facts = f"{report['gpu']}, {report['backend']}, torch {report['torch']}, CUDA {report['cuda']}"
    print(f"{facts}; all of npk on a symmetric Gram, float32")
    problems = gpu.QUICK_PROBLEMS if args.quick else gpu.PROBLEMS
    repeats = QUICK_REPEATS if args.quick else GPU_REPEATS
    entries = [entry for one in problems for entry in gpu.time_problem(one, args.seed, repeats)]
    print_table(speed.HEADER, [entry.row() for entry in entries])
    held = list(gpu.targets(entries))
    print_table(TARGET_HEADER, [target.row() for target in held])
    content = {
        "machine": report,
        "options": as_json(args),
        "speed": [entry.to_json() for entry in entries],
        "targets": [asdict(target) | {"met": target.met} for target in held],
    }
    write_json_atomically(args.out / "conv_npk_cuda.json", content)
    print(f"\nwrote {args.out / 'conv_npk_cuda.json'}")


def run(args: argparse.Namespace) -> None:
    if not args.no_plot:
        require_matplotlib()
    require_folder(args.out)
    n = args.n or (QUICK_POINTS if args.quick else DEFAULT_POINTS[args.data])
    images = data.load(args.data, args.data_dir, n=n, seed=args.seed)
    pixels = torch.cat([images.train_images, images.test_images])
    labels = torch.cat([images.train_labels, images.test_labels])
    points = LabelledPoints(pixels, labels, len(images.classes), len(images.train_labels))
    require_memory(n**2 * ARRAYS * 8, f"a study of n={n}")
    inputs = images.inputs(pixels)
    spec = conv_spec(tuple(pixels.shape[1:]), args.channels, args.dense, points.classes, "gap")
    report = machine_report()
    facts = f"{report['threads']} threads, {report['instruction_set']}, torch {report['torch']}"
    contention = Contention()

    layers = "-".join(map(str, args.channels)) + "-GAP" + "".join(f"-{width}" for width in args.dense)
    title = f"Path kernel of GCONV {layers} on {n} points of {args.data}"
    print(f"{title}\n{points.n_train} training points, {args.epochs} epochs; {report['cpu']}, {facts}")
    options = {"epochs": args.epochs, "dtype": DTYPES[args.dtype], "seed": args.seed}
    found = study.study_net(spec.relu_net(args.seed), points, inputs, **options)
    net_row = ("the net itself", f"{found.net_accuracy:.2%}", "", "", "")
    print_table(study.HEADER, [*(figures.row(name) for name, figures in found.figures.items()), net_row])

    over_shifts = shifts.over_shifts(inputs, args.channels, args.dense, args.seed)
    print()
    print_table(shifts.HEADER, [one.row() for one in over_shifts])

    entries = time_pairs(args)
    versions = speed.neural_tangents_versions()
    print(f"\ngatedops: all of npk on a symmetric Gram; neural-tangents: {versions or 'not installed'}")
    print_table(speed.HEADER, [entry.row() for entry in entries])
    busy = contention.cores()
    print(sentence(busy))
    held = [
        Target("rotations, circular padding: change of H, in 1e-6", 1, over_shifts[0].spread / 1e-6, at_least=False),
        *targets(args, found, entries),
    ]
    print_table(TARGET_HEADER, [target.row() for target in held])
    content = {
        "machine": report,
        "cores_busy_elsewhere": busy,
        "options": as_json(args),
        "points": {"n": n, "train": points.n_train, "test": n - points.n_train},
        "net": {"layers": layers, "test_accuracy": found.net_accuracy, "loss_by_epoch": found.losses},
        "kernels": {name: figures.to_json() for name, figures in found.figures.items()},
        "spread_over_rotations": {one.padding: one.spread for one in over_shifts},
        "neural_tangents": versions,
        "speed": [entry.to_json() for entry in entries],
        "targets": [asdict(target) | {"met": target.met} for target in held],
    }
    write_json_atomically(args.out / "conv_npk.json", content)
    print(f"\nwrote {args.out / 'conv_npk.json'}")
    if not args.no_plot:
        from _conv_npk.picture import plot_conv_npk

        plot_conv_npk(args.out / "conv_npk.png", found, labels, images.classes, over_shifts, entries, title)
        print(f"wrote {args.out / 'conv_npk.png'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run_on_gpu(args) if args.device == "cuda" else run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"conv_npk.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
