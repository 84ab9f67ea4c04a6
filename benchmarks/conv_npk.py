"""The path kernel of a convolutional net: what its gates know, and what a pair costs.

Trains a small GCONV net (convolutions of 3 x 3, global average pooling), and computes its path kernel (gatedops.npk)
before and after training: kernel regression with either Gram against the net itself. Then times a pair of 8x8 and of
32x32 images, 4 convolutions of 64 channels, beside the kernel in plain torch and, if neural-tangents is installed (it
is optional and needs JAX), its convolutional NTK of the same architecture. Writes OUT/conv_npk.json and .png.

    python benchmarks/conv_npk.py
    python benchmarks/conv_npk.py --data cifar10 --data-dir DIR --n 1000 --channels 64 64 128 128 --dense 256 256
    python benchmarks/conv_npk.py --device cuda

The ridge of the regression is chosen by leave-one-out on the training points. The net, and so its trained gates, has
seen all training points; no test point is used before the test accuracies.

With --device cuda the script only times a pair, on any GPU that torch calls by that name: by the portable ops, or by
the kernels that GATEDOPS_BACKEND=cuda chooses. It writes OUT/conv_npk_cuda.json.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from _common import gate_study
from _common.contest import OURS, Call, Contest, Entry, Failures
from _common.gate_study import LabelledImages
from _common.options import DTYPES, at_least, require_memory, run_script, script_parser
from _common.output import Results, print_table
from _common.plots import encoded
from _common.relu_net import net_accuracy, train
from torch import Tensor, nn

import gatedops
from gatedops.nn import conv_spec
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.network import read_network, weighted_layers
from gatedops.reference import conv_gram as reference_conv

DEFAULT_POINTS = {"digits": 1797, "mnist": 600, "cifar10": 400, "random": 200}
QUICK_POINTS = 200
CHANNELS = (64, 64, 64, 64)  # of the net that is trained, and of the one that is timed
REPEATS, QUICK_REPEATS, GPU_REPEATS = 7, 3, 21
ARRAYS = 8  # (n, n) arrays alive at the worst moment
WHAT, PLAIN, PEER = "a pair", "gatedops.reference.conv_gram", "neural-tangents, NTK"
LARGEST_ERROR = 1e-4  # relative to the largest entry: far above the rounding of float32


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "data", "device", "dtype", "peers", "plot")
    add = options.add_argument
    defaults = ", ".join(f"{name} {n}" for name, n in DEFAULT_POINTS.items())
    add("--n", type=at_least(10), help=f"points in the Gram, a fifth of them test points (default: {defaults})")
    some = at_least(1)
    add("--channels", type=some, nargs="+", default=list(CHANNELS), metavar="C", help="channels of each convolution")
    add("--dense", type=some, nargs="*", default=[], metavar="W", help="gated layers behind the pooling")
    add("--epochs", type=at_least(0), default=12, help="epochs of training (default: %(default)s)")
    add("--quick", action="store_true", help=f"{QUICK_POINTS} points, few and small timings: rough figures")
    return options


# --- what the gates know ---


@dataclass(frozen=True)
class KernelFigures:
    """Figures of one Gram: test accuracy (0 to 1) of kernel regression, its ridge, and the time that all of npk took
    for this number of unordered pairs."""

    accuracy: float
    ridge: float
    seconds: float
    pairs: int
    us_per_pair: float


def look(net: nn.Module, images: LabelledImages, args: argparse.Namespace) -> tuple[KernelFigures, Tensor]:
    """The figures of the net's kernel, and the picture of its normalised Gram."""
    start = time.perf_counter()
    gram: Any = gatedops.npk(net.eval(), images.inputs, dtype=DTYPES[args.dtype])
    seconds, pairs = time.perf_counter() - start, unordered(images.n)
    figures = KernelFigures(*gate_study.gram_accuracy(gram, images), seconds, pairs, 1e6 * seconds / pairs)
    return figures, gate_study.gram_image(gate_study.normalised(gram), images.labels)


def study(args: argparse.Namespace, images: LabelledImages, results: Results) -> None:
    """Looks at the kernel of a net, trains it on the training points, and looks again."""
    spec = conv_spec(tuple(images.pixels.shape[1:]), args.channels, args.dense, len(images.classes), "gap")
    net, x, labels, k = spec.relu_net(args.seed), images.inputs, images.labels, images.n_train
    found = {"untrained net": look(net, images, args)}
    losses = train(net, x[:k], labels[:k], args.epochs, args.seed)
    found["trained net"] = look(net, images, args)
    accuracy = net_accuracy(net, x[k:], labels[k:])
    rows = [
        (name, f"{one.accuracy:.2%}", f"{one.ridge:g}", f"{one.seconds:.1f}", f"{one.us_per_pair:.2f}")
        for name, (one, _) in found.items()
    ]
    header = ("kernel", "test accuracy", "ridge", "seconds", "us a pair")
    print_table(header, [*rows, ("the net itself", f"{accuracy:.2%}", "", "", "")])
    results.add(
        **images.facts(),
        net={"layers": layers_of(args), "test_accuracy": accuracy, "loss_by_epoch": losses},
        kernels={name: asdict(one) for name, (one, _) in found.items()},
        pictures={name: encoded(image) for name, (_, image) in found.items()},
    )


def layers_of(args: argparse.Namespace) -> str:
    return "-".join(map(str, [*args.channels, "GAP", *args.dense]))


# --- what a pair costs ---


@dataclass(frozen=True)
class Problem:
    """A Gram of n random images (C, s, s): 4 convolutions of 64 channels, zero padding, global average pooling.

    n is the number of gatedops; the plain form and neural-tangents do n_plain and n_peer.
    """

    channels: int
    size: int
    n: int
    n_plain: int
    n_peer: int

    def __str__(self) -> str:
        return f"{self.size}x{self.size} images"

    def images(self, n: int, seed: int) -> Tensor:
        shape = (n, self.channels, self.size, self.size)
        return torch.rand(shape, generator=torch.Generator().manual_seed(seed))

    def net(self, seed: int) -> nn.Sequential:
        return conv_spec((self.channels, self.size, self.size), CHANNELS, [], 10, "gap").relu_net(seed).eval()


PROBLEMS = (Problem(1, 8, 512, 16, 8), Problem(3, 32, 32, 1, 1))
QUICK_PROBLEMS = (Problem(1, 8, 96, 4, 4), Problem(3, 32, 3, 1, 1))
GPU_PROBLEMS = (Problem(1, 8, 1024, 16, 0), Problem(3, 32, 256, 2, 0))
GPU_QUICK_PROBLEMS = (Problem(1, 8, 256, 16, 0), Problem(3, 32, 64, 2, 0))


def unordered(n: int) -> int:
    return n * (n + 1) // 2


def time_pairs(args: argparse.Namespace, results: Results) -> None:
    if args.device == "cuda":
        problems, repeats = GPU_QUICK_PROBLEMS if args.quick else GPU_PROBLEMS, GPU_REPEATS
    else:
        problems, repeats = QUICK_PROBLEMS if args.quick else PROBLEMS, REPEATS
    print("gatedops: all of npk on a symmetric Gram in float32; ratios are those of the time of a pair")
    repeats = QUICK_REPEATS if args.quick else repeats
    parts = [(str(one), partial(time_problem, one, args, results.failures, repeats)) for one in problems]
    results.time_parts("speed", parts, ("pairs", "us_per_pair"))


def time_problem(problem: Problem, args: argparse.Namespace, failures: Failures, repeats: int) -> list[Entry]:
    """Times gatedops, its plain form, and on a CPU neural-tangents, each on its number of images."""
    net, x = problem.net(args.seed).to(args.device), problem.images(problem.n, args.seed).to(args.device)
    few = x[: problem.n_plain]
    contest = Contest(str(problem), failures, device=args.device)

    def enter(by: str, pairs: int, make: Callable[[], Call], check: Callable[[Call], None] | None = None) -> None:
        contest.enter(WHAT, by, make, check=check, work=pairs, unit="pairs", facts={"pairs": pairs})

    def make_ours() -> Call:
        return lambda: gatedops.npk(net, x, progress=False)

    enter(OURS, unordered(problem.n), make_ours, lambda call: require_agreement(net, few))
    if not args.no_peers:
        enter(PLAIN, unordered(problem.n_plain), lambda: plain_form(net, few))
        kernel = neural_tangents_kernel() if args.device == "cpu" else None
        if kernel is not None:
            images = problem.images(problem.n_peer, args.seed).permute(0, 2, 3, 1).numpy()
            # neural-tangents computes every entry, the others compute each unordered pair once.
            enter(PEER, problem.n_peer**2, lambda: lambda: kernel(images))
    entries = contest.run(repeats, least=3, seconds=6, base=(WHAT, OURS))
    return [replace(entry, facts={**entry.facts, "us_per_pair": 1e6 / (entry.rate or 1)}) for entry in entries]


def plain_form(net: nn.Sequential, x: Tensor) -> Callable[[], Tensor]:
    """The same Gram by plain torch, with gates recorded and masks made beforehand."""
    network = read_network(net, x)
    sigmas = [1.0] * len(weighted_layers(network.steps))
    program, per_input = compile_steps(network, sigmas, tangent=False, biases=False)
    columns, words = per_input.rows(x, gatedops.record_gates(net, x), torch.float32, len(x))
    encoded_steps, scalars = program.encoded, program.scalars
    return lambda: reference_conv.conv_gram(columns, words, None, None, encoded_steps, scalars, torch.float32)


def require_agreement(net: nn.Sequential, x: Tensor) -> None:
    """Raises RuntimeError unless gatedops.npk gives what its plain form does."""
    expected = plain_form(net, x)()
    found: Any = gatedops.npk(net, x, progress=False)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"gatedops.npk is wrong: it differs from its plain form by {error:.1e}")


def neural_tangents_kernel() -> Callable[[Any], Any] | None:
    """The NTK of the same architecture at infinite width for images (n, H, W, C); None if it is not installed."""
    try:
        jax, stax = importlib.import_module("jax"), importlib.import_module("neural_tangents").stax
    except ImportError:
        return None
    layers = [layer for width in CHANNELS for layer in (stax.Conv(width, (3, 3), padding="SAME"), stax.Relu())]
    _, _, kernel = stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(10))
    compiled = jax.jit(lambda images: kernel(images, None, "ntk"))
    return lambda images: compiled(images).block_until_ready()


def neural_tangents_versions() -> dict[str, str] | None:
    """The versions of neural-tangents and JAX; None if they are not installed."""
    if neural_tangents_kernel() is None:
        return None
    return {name: importlib.import_module(name).__version__ for name in ("neural_tangents", "jax")}


def run(args: argparse.Namespace) -> int:
    return run_on_gpu(args) if args.device == "cuda" else run_on_cpu(args)


def run_on_gpu(args: argparse.Namespace) -> int:
    results = Results(args, "conv_npk_cuda", device="cuda", family="conv_gram")
    with results.until_gpu_is_lost(), results.section("what a pair costs"):
        time_pairs(args, results)
    return results.finish()


def run_on_cpu(args: argparse.Namespace) -> int:
    n = args.n or (QUICK_POINTS if args.quick else DEFAULT_POINTS[args.data])
    require_memory(n**2 * ARRAYS * 8, f"a study of n={n}")
    images = gate_study.load_images(args, n)
    results = Results(args, "conv_npk", family="conv_gram")
    print(f"GCONV {layers_of(args)} on {n} points of {args.data}, {images.n_train} of them for {args.epochs} epochs")
    with results.section("what its gates know"):
        study(args, images, results)
    with results.section("what a pair costs"):
        results.add(neural_tangents=neural_tangents_versions())
        print(f"neural-tangents: {results.content['neural_tangents'] or 'not installed'}")
        time_pairs(args, results)
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
