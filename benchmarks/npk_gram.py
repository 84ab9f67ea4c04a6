"""The neural path kernel of real data: what the gates of a trained ReLU net know, and how fast their Gram is.

Trains a small fully connected ReLU net without biases, records its gates at initialisation and after training, and
computes the NPK Gram of both. Science: kernel regression with either Gram against the net itself, the share of gates
on, the overlap of active sub-networks within and across classes. Speed: gatedops against torch on random gates and on
these gates, in the same run. Writes OUT/npk_gram.json and OUT/npk_gram.png.

    python benchmarks/npk_gram.py
    python benchmarks/npk_gram.py --data mnist --data-dir DIR --n 10000

The ridge of the regression is chosen by leave-one-out on the training points. The net, and so its trained gates, has
seen all training points; no test point is used before the test accuracies.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from _common import gate_study
from _common.contest import OURS, Call, Contest, Entry, Failures, Limit, MeasuredLimit, always
from _common.gate_study import LabelledImages
from _common.machine import bit_pair_rate
from _common.options import DTYPES, at_least, require_memory, run_script, script_parser
from _common.output import Results, print_table
from _common.peers import MatmulPerLayer, input_matmul
from _common.plots import encoded
from _common.problems import Cell, random_gates
from _common.relu_net import net_accuracy, relu_net, train
from torch import Tensor, nn

import gatedops
from gatedops import GateBits, backends, reference
from gatedops.backends.choice import backend_of

DEFAULT_POINTS = {"digits": 1797, "mnist": 4000, "cifar10": 4000, "random": 2000}
SPEED_POINTS, SPEED_LAYERS, SPEED_WIDTH, SPEED_INPUTS = 4096, 4, 1024, 784
WHAT, REPEATS = "Gram", 21
BATCH = 4096  # inputs at a time whose gates are recorded
EIGENVALUES = 30
CHECKED_ROWS = 256
ARRAYS = 10  # (n, n) arrays alive at the worst moment


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "data", "device", "dtype", "scale", "peers", "plot")
    add = options.add_argument
    defaults = ", ".join(f"{name} {n}" for name, n in DEFAULT_POINTS.items())
    add(
        "--n",
        type=at_least(10),
        help="points in the Gram, a fifth of them test points, and the most in the random speed problem "
        f"(default: {defaults}; {SPEED_POINTS} in the speed problem)",
    )
    add("--width", type=at_least(1), default=256, help="gates per layer (default: %(default)s)")
    add("--depth", type=at_least(2), default=5, help="weight layers, gated ones + 1 (default: %(default)s)")
    add("--epochs", type=at_least(0), default=30, help="epochs of training (default: %(default)s)")
    return options


# --- what the gates know ---


@dataclass(frozen=True)
class GateFigures:
    """Figures of one set of gates.

    accuracy, ridge  test accuracy (0 to 1) of kernel regression, and the ridge chosen on the training points
    on, on_by_layer  share of the gates that are on
    within, across   mean cosine of the active sub-networks of two points of one class, and of two classes
    """

    accuracy: float
    ridge: float
    on: float
    on_by_layer: list[float]
    within: float
    across: float
    eigenvalues_over_trace: list[float]


def look(images: LabelledImages, bits: GateBits, args: argparse.Namespace) -> tuple[GateFigures, Tensor]:
    """The figures of the gates, and the picture of their normalised NPK."""
    dtype, x = DTYPES[args.dtype], images.pixels.flatten(1)
    overlap = gate_study.sub_network_overlap(bits, images.labels, len(images.classes), dtype)
    regressed = gate_study.gram_accuracy(gatedops.npk_gram(x, bits, scale=args.scale, dtype=dtype), images)
    gram = gatedops.npk_gram(x, bits, normalize=True, dtype=dtype)
    eigenvalues = gate_study.leading_eigenvalues(gram, EIGENVALUES, args.seed) / float(gram.diagonal().sum())
    figures = GateFigures(*regressed, *gate_study.shares_on(bits), *overlap, eigenvalues.tolist())
    return figures, gate_study.gram_image(gram, images.labels)


def study(args: argparse.Namespace, images: LabelledImages, net: nn.Sequential, results: Results) -> GateBits:
    """Looks at the gates of the net, trains it on the training points, looks again; returns the trained gates."""
    x, labels, k = images.inputs.flatten(1), images.labels, images.n_train
    found = {}
    bits = gatedops.record_gates(net, x, BATCH)
    found["initial gates"] = look(images, bits, args)
    losses = train(net, x[:k], labels[:k], args.epochs, args.seed)
    bits = gatedops.record_gates(net, x, BATCH)
    found["trained gates"] = look(images, bits, args)
    figures = {name: one for name, (one, _) in found.items()}
    accuracy = net_accuracy(net, x[k:], labels[k:])
    print_figures(figures, accuracy, images.n - k)
    results.add(
        **images.facts(),
        net={"test_accuracy": accuracy, "loss_by_epoch": losses},
        gates={name: asdict(one) for name, one in figures.items()},
        pictures={name: encoded(image) for name, (_, image) in found.items()},
    )
    return bits


def print_figures(figures: Mapping[str, GateFigures], accuracy: float, n_test: int) -> None:
    def share(p: float) -> str:
        return f"{p:.2%} +- {math.sqrt(p * (1 - p) / n_test):.2%}"

    columns = list(figures.values())
    rows = [
        ["test accuracy +- standard error", *(share(f.accuracy) for f in columns), share(accuracy)],
        ["ridge, chosen on training points", *(f"{f.ridge:g}" for f in columns), ""],
        ["gates on", *(f"{f.on:.1%}" for f in columns), ""],
        ["overlap of active sub-networks within a class", *(f"{f.within:.4f}" for f in columns), ""],
        ["overlap across classes", *(f"{f.across:.4f}" for f in columns), ""],
        ["within / across", *(f"{f.within / f.across:.2f}" if f.across else "-" for f in columns), ""],
    ]
    print_table(["", *(f"NPK, {name}" for name in figures), "the net itself"], rows)


# --- how fast the Gram is ---


@dataclass(frozen=True)
class Problem:
    """A symmetric Gram: gates, and float inputs x (n, d), or None for Lambda alone."""

    data: str
    bits: GateBits
    x: Tensor | None = None

    def __str__(self) -> str:
        widths = self.bits.widths
        layers = f"{len(widths)} x {widths[0]}" if len(set(widths)) == 1 else "-".join(map(str, widths))
        inputs = "Lambda alone" if self.x is None else f"with x (d={self.x.shape[1]})"
        return f"{self.data}, {layers}, n={self.bits.n}, {inputs}"


def problems(args: argparse.Namespace, images: LabelledImages, bits: GateBits) -> Iterator[Problem]:
    """Random gates and the trained net's gates, each without and with inputs."""
    n = min(SPEED_POINTS, args.n or SPEED_POINTS)
    random = random_gates(Cell(n, SPEED_LAYERS, SPEED_WIDTH), args.seed, args.device)
    yield Problem("random", random)
    x = torch.rand(n, SPEED_INPUTS, generator=torch.Generator().manual_seed(args.seed))
    yield Problem("random", random, x.to(args.device))
    yield Problem(args.data, bits)
    yield Problem(args.data, bits, images.inputs.flatten(1))


def time_gram(problem: Problem, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times gatedops and what people use today; everything writes into buffers made beforehand."""
    bits, dtype = problem.bits, DTYPES[args.dtype]
    x = None if problem.x is None else problem.x.to(dtype)
    n = bits.n
    out = torch.empty(n, n, dtype=dtype, device=bits.device)
    rows = torch.linspace(0, n - 1, min(n, CHECKED_ROWS)).long()
    exact = exact_rows(problem, rows, args.scale)

    def checked(call: Call, bound: float | None = None) -> dict[str, object]:
        error = largest_error(call(), rows, exact)
        if bound is not None and not error <= bound:
            raise RuntimeError(f"the Gram is wrong: its largest relative error is {error:.1e}")
        return {"largest_error": error if math.isfinite(error) else None}

    work = float(n * (n + 1) // 2 * sum(bits.widths))
    limit = counting_limit(work, args.device) if x is None else None
    contest = Contest(str(problem), failures, device=args.device)
    enter = partial(contest.enter, WHAT, unit="bit_pairs")
    ours = partial(gatedops.npk_gram, x, bits, scale=args.scale, dtype=dtype, out=out)
    bound = (len(bits.widths) + 8) * 16 * torch.finfo(dtype).eps
    enter(OURS, always(ours), check=partial(checked, bound=bound), limit=limit, work=work)
    if not args.no_peers:
        masks, factors = bits.unpack(), [1.0 if args.scale == "none" else 1.0 / width for width in bits.widths]
        for peer_dtype in (dtype, torch.bfloat16):
            peer = partial(MatmulPerLayer, masks, factors, peer_dtype, x)
            enter(str(peer_dtype).replace(".", " "), peer, check=checked, work=work)
        if x is not None:
            enter("torch x @ x.T alone", partial(input_matmul, x))
    return contest.run(REPEATS, base=(WHAT, OURS))


def exact_rows(problem: Problem, rows: Tensor, scale: str) -> Tensor:
    """These rows of the Gram in float64, on the CPU, from exact counts."""
    bits, x = problem.bits.to("cpu"), None if problem.x is None else problem.x.cpu()
    few = None if x is None else x[rows]
    return reference.npk_gram(few, bits[rows], x, bits, scale=scale, dtype=torch.float64)


def largest_error(gram: Tensor, rows: Tensor, exact: Tensor) -> float:
    """max |found - exact| / |exact| over the entries that are not 0; infinite if an exact 0 is missed."""
    wrong = (gram[rows.to(gram.device)].cpu().double() - exact).abs()
    if bool((wrong[exact == 0] > 0).any()):
        return math.inf
    return float(torch.where(exact == 0, 0, wrong / exact.abs()).max())


def counting_limit(bit_pairs: float, device: str) -> MeasuredLimit | None:
    """The time of counting alone by the chosen instruction set; None if the kernels in C++ do not run."""
    if backend_of(device, "gram") != "cpu":
        return None
    return lambda: Limit({"counting": bit_pairs / bit_pair_rate(backends.active_isa(), torch.get_num_threads())})


def run(args: argparse.Namespace) -> int:
    n = args.n or DEFAULT_POINTS[args.data]
    require_memory(n**2 * ARRAYS * DTYPES[args.dtype].itemsize, f"a study of n={n}")
    images = gate_study.load_images(args, n, args.device)
    net = relu_net(images.inputs[0].numel(), args.width, args.depth, len(images.classes), args.seed).to(args.device)
    results = Results(args, "npk_gram", device=args.device)
    print(
        f"{args.data}: {n} points ({images.n_train} training, {n - images.n_train} test), fully connected ReLU net "
        f"without biases, {args.depth - 1} gated layers of {args.width}, {args.epochs} epochs"
    )
    with results.until_gpu_is_lost():
        with results.section("what the gates know"):
            bits = study(args, images, net, results)
        with results.section("how fast their Gram is"):
            print("Symmetric Gram into a reused buffer; bit_pairs count each unordered pair of points once.")
            given = problems(args, images, bits)
            parts = ((str(one), partial(time_gram, one, args, results.failures)) for one in given)
            results.time_parts("speed", parts, ("largest_error",))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
