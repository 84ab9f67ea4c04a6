"""The path kernel of five modern networks: what a pair of images costs.

GoogLeNet, DenseNet-121, ResNeXt-29, MobileNetV2 and ShuffleNetV2 in the sizes of pytorch-cifar, with random weights and
random images of 32x32. For each network the script estimates the work of a pair, and times the three parts of
gatedops.npk: reading the network, recording the gates of all images, and the kernel of n x m images. Before that it
compares the kernel of a small version of the network with the kernel in plain torch. Writes OUT/modern_npk.json and
.png.

    python benchmarks/modern_npk.py
    python benchmarks/modern_npk.py --networks MobileNetV2 ShuffleNetV2 --n 8 --m 8
    python benchmarks/modern_npk.py --small
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from _common.contest import OURS, Call, Contest, Entry, Failures, always
from _common.modern_nets import NETWORKS, SMALL_NETWORKS
from _common.options import DTYPES, at_least, run_script, script_parser
from _common.output import Results
from torch import Tensor, nn

import gatedops
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.images import ImageKernel
from gatedops.path_kernels.network import Network, read_network, recorded_gates, weighted_layers
from gatedops.reference import conv_gram as reference_conv

READ, RECORD, KERNEL = "read the network", "record gates", "kernel"
SIZE, SMALL_SIZE = 32, 16  # of the images
BATCH = 256  # as npk has it
CHECKED = 2  # images on each side of the comparison with plain torch
LARGEST_ERROR = 1e-4  # relative to the largest entry: far above the rounding of float32


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "dtype", "plot")
    add, names = options.add_argument, tuple(NETWORKS)
    add("--networks", choices=names, nargs="+", default=list(names), metavar="NAME", help=f"of {', '.join(names)}")
    add("--n", type=at_least(1), default=4, help="images on one side of the kernel (default: %(default)s)")
    add("--m", type=at_least(1), default=4, help="images on its other side (default: %(default)s)")
    add("--repeats", type=at_least(1), default=1, help="timed runs, after one to warm up (default: %(default)s)")
    add("--small", action="store_true", help=f"time the small versions, on images of {SMALL_SIZE}x{SMALL_SIZE}")
    return options


@dataclass(frozen=True)
class Problem:
    """A network and the images of both sides, which a kernel with bias="ignore" takes."""

    net: nn.Module
    x: Tensor
    y: Tensor

    def read(self) -> tuple[Network, ImageKernel]:
        network = read_network(self.net, self.x, biases=False)
        sigmas = [1.0] * len(weighted_layers(network.steps))
        return network, ImageKernel(*compile_steps(network, sigmas, tangent=False, biases=False), BATCH, False)

    def record(self, network: Network) -> list[gatedops.GateBits | None]:
        return [recorded_gates(self.net, network, side, BATCH, False) for side in (self.x, self.y)]

    def plain_form(self) -> Tensor:
        """The kernel in plain torch."""
        network = read_network(self.net, self.x, biases=False)
        sigmas = [1.0] * len(weighted_layers(network.steps))
        program, per_input = compile_steps(network, sigmas, tangent=False, biases=False)
        rows = [
            part
            for side, bits in zip((self.x, self.y), self.record(network), strict=True)
            for part in per_input.rows(side, bits, torch.float64, BATCH)
        ]
        return reference_conv.conv_gram(*rows, program.encoded, program.scalars, torch.float64)


def problem_of(net: nn.Module, size: int, n: int, m: int, seed: int) -> Problem:
    images = torch.rand((n + m, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return Problem(net, images[:n], images[n:])


def error_on_small_network(name: str, seed: int, dtype: torch.dtype) -> float:
    """Returns by how much gatedops.npk differs from its plain form on the small version of a network, relative to the
    largest entry; raises RuntimeError if that is more than rounding."""
    torch.manual_seed(seed)
    small = problem_of(SMALL_NETWORKS[name](), SMALL_SIZE, CHECKED, CHECKED, seed)
    found: Any = gatedops.npk(small.net, small.x, small.y, dtype=dtype, progress=False)
    expected = small.plain_form()
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"gatedops.npk is wrong: on the small {name} it differs from its plain form by {error:.1e}")
    return error


def time_network(name: str, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times the three parts of npk on one network."""
    dtype = DTYPES[args.dtype]
    torch.manual_seed(args.seed)
    net = (SMALL_NETWORKS if args.small else NETWORKS)[name]()
    problem = problem_of(net, SMALL_SIZE if args.small else SIZE, args.n, args.m, args.seed)
    network, kernel = problem.read()
    bits, y_bits = problem.record(network)
    contest, pairs = Contest(name, failures), args.n * args.m

    def gram() -> None:
        found = kernel.gram(problem.x, bits, problem.y, y_bits, dtype)
        if not (found.isfinite().all() and (found > 0).any()):
            raise RuntimeError("the kernel is not finite, or it is 0 everywhere")

    def check(call: Call) -> Mapping[str, object]:
        # A run of the call may take minutes, so the small version, which needs the same kernels, stands for it.
        return {"largest_error": error_on_small_network(name, args.seed, dtype)}

    facts = {"work": kernel.work.total, "pairs": pairs, "image_size": problem.x.shape[-1]}
    contest.enter(READ, OURS, always(problem.read))
    contest.enter(RECORD, OURS, always(partial(problem.record, network)))
    contest.enter(KERNEL, OURS, always(gram), check=check, work=pairs, unit="pairs", facts=facts)
    return [with_time_of_pair(entry) for entry in contest.run(args.repeats, least=1)]


def with_time_of_pair(entry: Entry) -> Entry:
    if entry.rate is None:
        return entry
    return replace(entry, facts={**entry.facts, "ms_per_pair": 1e3 / entry.rate})


def run(args: argparse.Namespace) -> int:
    results = Results(args, "modern_npk", family="conv_gram")
    print(f"{args.n} x {args.m} images; work: operations on numbers and on words of 32 gates for a pair, an estimate")
    with results.section("what a pair costs"):
        parts = [(name, partial(time_network, name, args, results.failures)) for name in args.networks]
        results.time_parts("networks", parts, ("work", "ms_per_pair", "largest_error"))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
