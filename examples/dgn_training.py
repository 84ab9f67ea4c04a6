"""Repeats the papers' experiments with deep gated networks on real data, and puts their published table beside ours.

Trains the ordinary ReLU network, and value networks whose gates come from a frozen random network (FRNPF), from a
trained one (FLNPF; FL-0 .. FL-6 take them from seven stages of its training), or from one that learns with them (DLNPF,
DLGN, DLGN-SF). Some variants have an all-ones value input (PWC) or the gates of permuted layers. Each fully connected
variant with frozen gates is compared with kernel regression on all training points, by the neural path kernel of the
same gates. The set-up is that of the papers: fully connected nets of depth 6 and width 128, or their two convolutional
nets; batch 32, cross-entropy, Adam or SGD. Writes OUT/dgn_training_DATA.json and OUT/dgn_training_DATA.png.

    python examples/dgn_training.py
    python examples/dgn_training.py --data mnist --data-dir DIR --seeds 3 --epochs 30
    python examples/dgn_training.py --variants papers --optimizer sgd

If a run is stopped at any moment, the same command goes on from the checkpoints in OUT and ends with the same figures.
All seeds of a variant train as one network; seed s of every variant sees the data in the same order. --device cuda is
experimental.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _common.machine import machine_report
from _common.options import at_least, run_script, script_parser
from _common.output import write_json_atomically
from _common.store import Store
from _dgn_training import papers, report
from _dgn_training.run import Run
from _dgn_training.setup import ARCHITECTURES, DATA, OPTIMIZERS, Setup, load_task
from _dgn_training.variants import GROUPS, VARIANTS, expanded

DIGITS_EPOCHS, SEEDS = 25, 5
QUICK_EPOCHS, QUICK_SEEDS = 20, 2


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "device", "plot", seeded=False)
    add = options.add_argument
    names = [*GROUPS, *VARIANTS]
    add("--data", choices=DATA, default="digits", help="image set (default: %(default)s)")
    add("--data-dir", type=Path, help="folder with the files of mnist or cifar10")
    add("--arch", choices=ARCHITECTURES, default="fc", help="architecture (default: %(default)s)")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="optimizer (default: %(default)s)")
    add("--epochs", type=at_least(1), help=f"epochs (default: {DIGITS_EPOCHS} on digits, else the papers')")
    add("--seeds", type=at_least(1), help=f"trainings of each variant (default: {SEEDS})")
    add(
        "--variants",
        nargs="+",
        choices=names,
        default=["all"],
        metavar="NAME",
        help=f"{', '.join(names)} (default: all)",
    )
    add(
        "--npk-points",
        type=at_least(10),
        metavar="N",
        help="at most this many training points for the kernel regression (default: all)",
    )
    add("--quick", action="store_true", help=f"train on digits with {QUICK_EPOCHS} epochs and {QUICK_SEEDS} seeds")
    add("--threads", type=at_least(1), default=1, help="threads of the CPU (default: %(default)s)")
    add(
        "--checkpoint-every",
        type=at_least(0),
        default=10,
        metavar="SECONDS",
        help="time between checkpoints (default: %(default)s)",
    )
    return options


def setup_of(args: argparse.Namespace) -> Setup:
    """Returns the options of a run, with the defaults that depend on other options."""
    if args.quick and args.data != "digits":
        raise ValueError(f"--quick is a run on digits; got --data {args.data}")
    epochs = DIGITS_EPOCHS if args.data == "digits" else papers.EPOCHS[args.arch, args.optimizer]
    return Setup(
        data=args.data,
        arch=args.arch,
        optimizer=args.optimizer,
        epochs=args.epochs or (QUICK_EPOCHS if args.quick else epochs),
        seeds=args.seeds or (QUICK_SEEDS if args.quick else SEEDS),
        npk_points=args.npk_points,
        threads=args.threads,
        device=args.device,
    )


def run(args: argparse.Namespace) -> int:
    """Trains what is missing; returns the exit status, 130 after Ctrl-C."""
    try:
        train_and_report(args)
    except KeyboardInterrupt:
        print(f"dgn_training.py: stopped; the same command goes on from the checkpoints in {args.out}", file=sys.stderr)
        return 130
    return 0


def train_and_report(args: argparse.Namespace) -> None:
    setup, name = setup_of(args), f"dgn_training_{args.data}"
    task = load_task(setup, args.data_dir)
    store = Store(args.out / f"{name}.checkpoints", asdict(setup))
    torch.set_num_threads(args.threads)
    # Gradients of dark pixels stay 0 for long. Adam's means of them decay to denormal numbers, which slow the CPU down.
    torch.set_flush_denormal(True)
    wanted = expanded(args.variants)
    results = Run(setup, task, store, args.checkpoint_every).results(wanted)
    rows = report.rows_of(setup, wanted, results)
    machine = machine_report()
    report.print_report(setup, task, rows, machine)
    write_json_atomically(args.out / f"{name}.json", report.all_figures(setup, task, rows, results, machine))
    print(f"\nwrote {args.out / f'{name}.json'}")
    if not args.no_plot:
        from _dgn_training.picture import draw

        draw(args.out / f"{name}.png", setup, task, rows, results)
        print(f"wrote {args.out / f'{name}.png'}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
