"""How fast gated layers are, forward and backward, beside plain torch and torch.compile.

Kinds of net, each chosen with --only:

    layer     gated_linear gated by itself against Linear and ReLU
    value     gated_linear with hard gates from outside against Linear and a float mask
    pair      gated_linear_pair, hard gates, both networks trained, against the same in plain torch
    frozen    the same with a feature network that is not trained
    soft      the same with soft gates

A net has `depth` layers of `width` gates and sees `batch` rows; its input needs no gradient. The limit is the time of
the matrix products alone, by torch's own routines: all that the forward and the backward cannot do without. Saved
bytes are those that autograd keeps for the backward beside the parameters. Writes OUT/gated_linear.json and
OUT/gated_linear.png (gated_linear_cuda on a GPU, gated_linear_portable where GATEDOPS_BACKEND=portable runs the CPU's
tensors, which then has targets of its own). What cannot be timed is named with its error, and the rest goes on; the
exit status is 1 where that happens to a net as a whole.

    python benchmarks/gated_linear.py
    python benchmarks/gated_linear.py --only layer pair --size 512,128,6 --no-compile
    GATEDOPS_BACKEND=portable python benchmarks/gated_linear.py --no-compile
    python benchmarks/gated_linear.py --device cuda
    GATEDOPS_BACKEND=triton python benchmarks/gated_linear.py --device cuda

On a GPU everything is in bfloat16 (--dtype), times are those of CUDA events, and hard gates have one more baseline:
cuBLASLt, whose products write one bit per gate (RELU_AUX) and mask by it (DRELU), in two calls for a pair. Where that
library cannot be reached, a line says so.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from _common.contention import Contention, sentence
from _common.machine import machine_report
from _common.options import DEFAULT_OUT, at_least, require_device, require_folder, require_matplotlib, require_memory
from _common.output import print_table, write_json_atomically
from _gated_linear.cublaslt import library
from _gated_linear.measure import HEADER, OURS, Entry, Failure, failure, measure
from _gated_linear.nets import KINDS, Cell, Net
from _gated_linear.targets import gpu_targets, portable_targets, targets
from _gram.targets import HEADER as TARGET_HEADER
from _gram.targets import Target

from gatedops.backends.choice import backend_of

CELLS = (Cell(512, 128, 6), Cell(1024, 256, 4), Cell(2048, 256, 4), Cell(2048, 512, 4), Cell(4096, 1024, 4))
QUICK_CELLS = (Cell(512, 128, 6),)
GPU_CELLS = (Cell(4096, 1024, 4), Cell(16384, 1024, 4), Cell(16384, 4096, 4), Cell(16384, 8192, 4))
GPU_QUICK_CELLS = (Cell(16384, 1024, 4), Cell(16384, 8192, 4))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REPEATS = 31
ARRAYS = 24  # (batch, width) arrays alive for each layer at the worst moment


def cell(text: str) -> Cell:
    """An argparse type: BATCH,WIDTH,DEPTH."""
    try:
        batch, width, depth = (at_least(1)(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs BATCH,WIDTH,DEPTH, got {text!r}") from None
    return Cell(batch, width, depth)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    add("--dtype", choices=tuple(DTYPES), help="(default: float32 on the CPU, bfloat16 on a GPU)")
    sizes = options.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="the smallest size only, rough figures")
    sizes.add_argument("--size", type=cell, nargs="+", metavar="BATCH,WIDTH,DEPTH", help="other sizes")
    add("--only", choices=tuple(KINDS), nargs="+", default=tuple(KINDS), metavar="KIND", help=", ".join(KINDS))
    add("--no-compile", action="store_true", help="no torch.compile, which takes minutes to compile")
    add("--no-plot", action="store_true", help="no PNG; matplotlib is not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return options


def cells_of(args: argparse.Namespace) -> tuple[Cell, ...]:
    if args.size:
        return tuple(args.size)
    if args.device == "cuda":
        return GPU_QUICK_CELLS if args.quick else GPU_CELLS
    return QUICK_CELLS if args.quick else CELLS


def facts_of(args: argparse.Namespace, report: dict[str, object]) -> tuple[str, str]:
    """The processor, and what ran on it: of the kernels in C++ the instruction set, else the backend."""
    backend = backend_of(args.device, "gated_linear")
    report |= {"backend": backend}
    if args.device == "cpu":
        kernels = report["instruction_set"] if backend == "cpu" else backend
        return str(report["cpu"]), f"{report['threads']} threads, {kernels}, torch {report['torch']}"
    report |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return str(report["gpu"]), f"{args.dtype}, {backend}, torch {report['torch']}, CUDA {report['cuda']}"


def name_of(device: str) -> str:
    """The name of the files: those of one backend never replace those of another on the CPU."""
    if device == "cuda":
        return "gated_linear_cuda"
    return "gated_linear" if backend_of(device, "gated_linear") == "cpu" else "gated_linear_portable"


def targets_of(device: str, entries: list[Entry]) -> list[Target]:
    if device == "cuda":
        return list(gpu_targets(entries))
    return list(targets(entries) if backend_of(device, "gated_linear") == "cpu" else portable_targets(entries))


def require_compiler() -> None:
    """ValueError where torch.compile finds no C++ compiler."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ValueError("torch.compile needs a C++ compiler, and neither g++ nor clang++ is found: use --no-compile")


def measured(args: argparse.Namespace, kind: str, one: Cell) -> tuple[list[Entry], list[Failure]]:
    """One net; an error is a failure of all that is timed there."""
    try:
        net = Net(kind, one, args.seed, args.device, DTYPES[args.dtype])
        return measure(net, 9 if args.quick else REPEATS, compiled=not args.no_compile)
    except RuntimeError as error:
        return [], [failure(kind, one, OURS, error)]


def timed(args: argparse.Namespace, cells: tuple[Cell, ...]) -> tuple[list[Entry], list[Failure]]:
    """All nets, with a table for each kind."""
    entries: list[Entry] = []
    failures: list[Failure] = []
    for kind in args.only:
        found, failed = [], []
        for one in cells:
            times, without = measured(args, kind, one)
            found += times
            failed += without
        print_table(HEADER, [row.row() for row in [*found, *failed]])
        for missing in failed:
            print(f"{missing.by}, {missing.batch} x {missing.width} x {missing.depth}: {missing.reason}")
        print()
        entries += found
        failures += failed
    return entries, failures


def prepare(args: argparse.Namespace) -> tuple[Cell, ...]:
    """Refuses what cannot run, before anything does; the sizes to time."""
    if not args.no_plot:
        require_matplotlib()
    require_device(args.device)
    if not args.no_compile:
        require_compiler()
    require_folder(args.out)
    cells = cells_of(args)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    if args.device == "cpu":
        largest = max(4 * ARRAYS * one.batch * one.width * one.depth for one in cells)
        require_memory(largest, "the largest of these nets")
    return cells


def run(args: argparse.Namespace) -> int:
    """The exit status."""
    cells = prepare(args)
    name, report = name_of(args.device), machine_report()
    processor, facts = facts_of(args, report)
    print(f"{processor}, {facts}; medians, in turns")
    if args.device == "cuda" and library() is None:
        print("cuBLASLt cannot be reached from Python here: the best baseline is torch.compile")
    contention = Contention()
    entries, failures = timed(args, cells)
    busy = contention.cores()
    print(sentence(busy))
    held = targets_of(args.device, entries)
    print_table(TARGET_HEADER, [target.row() for target in held])
    content = {
        "machine": report,
        "cores_busy_elsewhere": busy,
        "entries": [entry.to_json() for entry in entries],
        "failures": [missing.to_json() for missing in failures],
        "targets": [asdict(target) | {"met": target.met} for target in held],
    }
    write_json_atomically(args.out / f"{name}.json", content)
    print(f"\nwrote {args.out / name}.json")
    if entries and not args.no_plot:
        from _gated_linear.picture import plot_speeds

        title = f"Gated layers, forward and backward: {processor}, {facts}"
        plot_speeds(args.out / f"{name}.png", entries, title)
        print(f"wrote {args.out / name}.png")
    return int(any(missing.by == OURS for missing in failures))


def main() -> int:
    args = parser().parse_args()
    try:
        return run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"gated_linear.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
