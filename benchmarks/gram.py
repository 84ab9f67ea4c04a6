"""Measures how fast the Gram is, beside what the machine allows and what others reach.

--only chooses sections, of which a GPU has the first four:

    sweep      Lambda over n, L and w: time, rate, share of the limit, portable, torch
    headline   one cell by every kernel, with inputs, and matvec; on a CPU n=4096, L=4, w=1024, one thread and all; on a
               GPU n=60,000, L=10, w=1024, and a matvec of 500,000 points, whose Gram fits into no memory
    one-layer  counts of one layer: on a CPU of 1024 gates beside NumKong's dots_symmetric, if it is installed; on a GPU
               of two sets of 32,768 points, 32,768 gates
    packing    pre-activations to bits, beside a memcpy of the input
    data-set   n=60,000, L=5, w=128, MNIST's size in the papers' network: a new result, a reused one, matvec
    one-core   one thread, L=4, w=4096, n=8192: the share of the inner loop's limit
    scaling    the exponents of time in n and in L * w
    soft       real-valued gates beside plain torch

The limit of a cell is the largest of the times that its units need. On a CPU these are the time to count every bit-pair
at the rate of the instruction set in registers, and the time to write the n x n result, both at rates that are measured
here. On a GPU they are the times of the tensor cores, of the product over layers, of Sigma and of writing, at published
rates (_gram/gpu_limits.py). Gates are random, half of them on. "portable" is the op made of torch's own operations,
called directly.

    python benchmarks/gram.py
    python benchmarks/gram.py --only sweep --n 2048 8192 --layers 1 16 --width 512
    python benchmarks/gram.py --device cuda
    GATEDOPS_BACKEND=cuda python benchmarks/gram.py --device cuda

On a GPU all kernels are timed beside torch's products of int8 and float16 gates: portable, and those that
GATEDOPS_BACKEND (cuda or triton) adds. A kernel or peer that is wrong or raises is named with the reason
("failures" in the JSON) and the rest goes on; the exit status is then 1. The run ends if an error leaves the GPU
unusable. Writes OUT/gram.json and OUT/gram.png, or OUT/gram_cuda.json and .png, the JSON after every cell.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from _common.options import at_least, require_memory, run_script, script_parser
from _common.output import Results
from _gram.cpu import Cpu
from _gram.gpu import Gpu
from _gram.sections import ON_GPUS, SECTIONS, Run
from _gram.sizes import chosen_sizes

BUFFERS = 5  # n x n arrays of float32, and sets of packed gates, alive at the worst moment on a CPU


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "device", "peers", "plot")
    add = options.add_argument
    size = options.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, few runs: a minute, rough figures")
    size.add_argument("--full", action="store_true", help="every n, L and w in the sweep: about an hour on two cores")
    add("--n", type=at_least(16), nargs="+", metavar="N", help="points; all combinations with L and w are run")
    add("--layers", type=at_least(1), nargs="+", metavar="L", help="gated layers")
    add("--width", type=at_least(1), nargs="+", metavar="W", help="gates per layer")
    add("--only", choices=tuple(SECTIONS), nargs="+", metavar="SECTION", help="(default: all) " + ", ".join(SECTIONS))
    return options


def chosen_sections(args: argparse.Namespace) -> list[str]:
    """The sections asked for; raises ValueError if one of them is about the CPU alone and a GPU is asked for."""
    there = ON_GPUS if args.device == "cuda" else tuple(SECTIONS)
    alone = [section for section in args.only or () if section not in there]
    if alone:
        raise ValueError(f"--only {' '.join(alone)} is about the CPU; with --device cuda there are {', '.join(there)}")
    return [section for section in there if args.only is None or section in args.only]


def run(args: argparse.Namespace) -> int:
    """Prints a table for each section; returns the exit status, 1 if a contestant failed."""
    sections, sizes, on_gpu = chosen_sections(args), chosen_sizes(args), args.device == "cuda"
    if not on_gpu:
        for cell in (*sizes.cells["sweep"], *sizes.cells["headline"]):
            require_memory(BUFFERS * (4 * cell.n**2 + cell.n * cell.bits_per_pair // 8), str(cell))
    platform = Gpu(peers=not args.no_peers) if on_gpu else Cpu(peers=not args.no_peers)
    results = Results(args, "gram_cuda" if on_gpu else "gram", device=args.device)
    results.machine |= platform.report()
    if isinstance(platform, Gpu):
        print(f"chosen kernel: {platform.kernels[0]}; CUDA events, medians, in turns, second-level cache cold")
        if platform.rates is None:
            print("no limits: the rates of this GPU are not known here")
        else:
            results.add(rates=asdict(platform.rates))
    task = Run(platform, sizes, args.seed, results.failures)
    with results.until_gpu_is_lost():
        for section in sections:
            with results.section(section):
                results.time_parts(section, SECTIONS[section](task), ("grows", "exponent"), within="sections")
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
