"""How fast gated layers are, forward and backward, beside plain torch and torch.compile.

Kinds of net, each chosen with --only:

    layer     gated_linear gated by itself against Linear and ReLU
    value     gated_linear with hard gates from outside against Linear and a float mask
    pair      gated_linear_pair, hard gates, both networks trained, against the same in plain torch
    frozen    the same with a feature network that is not trained
    soft      the same with soft gates

A net has `depth` layers of `width` gates and sees `batch` rows; its input needs no gradient. The limit is the time of
the matrix products alone, by torch's own routines: neither the forward nor the backward can do without them. Saved
bytes are those that autograd keeps for the backward beside the parameters. Ratios compare with gatedops. The script
writes OUT/gated_linear.json and OUT/gated_linear.png (gated_linear_cuda on a GPU, gated_linear_portable if
GATEDOPS_BACKEND=portable runs the tensors of the CPU). It names what cannot be timed with its error and goes on; the
exit status is then 1.

    python benchmarks/gated_linear.py
    python benchmarks/gated_linear.py --only layer pair --size 512,128,6 --no-compile
    GATEDOPS_BACKEND=portable python benchmarks/gated_linear.py --no-compile
    python benchmarks/gated_linear.py --device cuda
    GATEDOPS_BACKEND=triton python benchmarks/gated_linear.py --device cuda

On a GPU everything is in bfloat16 (--dtype), times are those of CUDA events, and nets with hard gates whose width is a
multiple of 128 have one more baseline: cuBLASLt, whose products write one bit per gate (RELU_AUX) and mask by it
(DRELU), in two calls for a pair. If that library cannot be reached, a line says so.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial

import torch
from _common.contest import Entry, Failures
from _common.options import at_least, require_memory, run_script, script_parser
from _common.output import Results
from _common.problems import LAYER_KINDS
from _gated_linear.cublaslt import library
from _gated_linear.measure import time_net
from _gated_linear.nets import Cell, Net

from gatedops.backends.choice import backend_of

CELLS = (Cell(512, 128, 6), Cell(1024, 256, 4), Cell(2048, 256, 4), Cell(2048, 512, 4), Cell(4096, 1024, 4))
QUICK_CELLS = (Cell(512, 128, 6),)
GPU_CELLS = (Cell(4096, 1024, 4), Cell(16384, 1024, 4), Cell(16384, 4096, 4), Cell(16384, 8192, 4))
GPU_QUICK_CELLS = (Cell(16384, 1024, 4), Cell(16384, 8192, 4))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REPEATS, QUICK_REPEATS = 31, 9
ARRAYS = 24  # (batch, width) arrays alive for each layer at the worst moment


def cell(text: str) -> Cell:
    """An argparse type: BATCH,WIDTH,DEPTH."""
    try:
        batch, width, depth = (at_least(1)(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs BATCH,WIDTH,DEPTH, got {text!r}") from None
    return Cell(batch, width, depth)


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "device", "plot")
    add = options.add_argument
    add("--dtype", choices=tuple(DTYPES), help="(default: float32 on the CPU, bfloat16 on a GPU)")
    sizes = options.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="the smallest size only, rough figures")
    sizes.add_argument("--size", type=cell, nargs="+", metavar="BATCH,WIDTH,DEPTH", help="other sizes")
    kinds = tuple(LAYER_KINDS)
    add("--only", choices=kinds, nargs="+", default=kinds, metavar="KIND", help=", ".join(kinds))
    add("--no-compile", action="store_true", help="no torch.compile, which takes minutes to compile")
    return options


def cells_of(args: argparse.Namespace) -> tuple[Cell, ...]:
    if args.size:
        return tuple(args.size)
    if args.device == "cuda":
        return GPU_QUICK_CELLS if args.quick else GPU_CELLS
    return QUICK_CELLS if args.quick else CELLS


def name_of(device: str) -> str:
    """Returns the name of the files: on the CPU those of one backend never replace those of another."""
    if device == "cuda":
        return "gated_linear_cuda"
    return "gated_linear" if backend_of(device, "gated_linear") == "cpu" else "gated_linear_portable"


def prepare(args: argparse.Namespace) -> tuple[Cell, ...]:
    """Refuses what cannot run, before anything does, and returns the sizes to time."""
    if not args.no_compile and shutil.which("g++") is None and shutil.which("clang++") is None:
        raise ValueError("torch.compile needs a C++ compiler, and neither g++ nor clang++ is found: use --no-compile")
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    cells = cells_of(args)
    if args.device == "cpu":
        largest = max(4 * ARRAYS * one.batch * one.width * one.depth for one in cells)
        require_memory(largest, "the largest of these nets", "--size")
    return cells


def time_cell(kind: str, one: Cell, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    net = Net(kind, one, args.seed, args.device, DTYPES[args.dtype])
    return time_net(net, failures, QUICK_REPEATS if args.quick else REPEATS, compiled=not args.no_compile)


def run(args: argparse.Namespace) -> int:
    cells = prepare(args)
    results = Results(args, name_of(args.device), device=args.device, family="gated_linear")
    if args.device == "cuda" and library() is None:
        print("cuBLASLt cannot be reached from Python here: the best baseline is torch.compile")
    with results.until_gpu_is_lost():
        for kind in args.only:
            with results.section(f"{kind}: {LAYER_KINDS[kind]}, {args.dtype}"):
                parts = [(f"{kind} {one}", partial(time_cell, kind, one, args, results.failures)) for one in cells]
                results.time_parts("entries", parts, ("saved_bytes", "saved_of_eager"))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
