"""Solving with the neural path kernel: what a product costs, and what regressions cost.

Products: 10 columns times Lambda, and times the kernel of bytes, of floats that are bytes divided by 255, and of other
floats, against the same product by gatedops.npk_matvec and by a stored float32 Gram; then Lambda with up to 96 columns.
Regressions: kernel_ridge by conjugate gradients against a float64 Gram and its Cholesky factor, with the difference of
their predictions; then nystrom, whose points may be many more. Points are clusters in 784 dimensions, and the gates are
those of a random network of 5 layers of 128. Writes OUT/solve.json and .png. examples/mnist_regression.py has all of
MNIST.

    python benchmarks/solve.py
    python benchmarks/solve.py --only products --n 4096
    python benchmarks/solve.py --only nystrom --nystrom-n 50000 --centres 2000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from _common.contest import OURS, Call, Contest, Entry, Failures, always
from _common.options import at_least, run_script, script_parser
from _common.output import Results
from torch import Tensor

import gatedops
from gatedops import GateBits, NPKOperator
from gatedops.nn import fc_spec
from gatedops.path_kernels.regression import one_hot
from gatedops.solve import Solution, kernel_ridge, nystrom

SECTIONS = ("products", "ridge", "nystrom")
WIDTHS, CLASSES, FEATURES = (128,) * 5, 10, 784
COLUMNS = (1, 10, 20, 48, 96)
RIDGE = 0.1
TESTED = 1000  # points whose predictions are compared
LARGEST_ERROR = 1e-5  # of a product, relative to its largest number: float32 rounds entries to 6e-8 of theirs
GATED = 10_000  # inputs at a time while gates are recorded


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "plot")
    add = options.add_argument
    add("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), metavar="SECTION", help=f"of {SECTIONS}")
    add("--n", type=at_least(64), default=8192, help="points of the products (default: %(default)s)")
    add("--ridge-n", type=at_least(64), default=10_000, help="points of the regressions (default: %(default)s)")
    add("--nystrom-n", type=at_least(64), default=200_000, help="points of nystrom (default: %(default)s)")
    add("--centres", type=at_least(1), default=5000, help="centres of nystrom (default: %(default)s)")
    add("--repeats", type=at_least(1), default=21, help="timed runs of each product (default: %(default)s)")
    return options


@dataclass(frozen=True)
class Points:
    """Points in clusters, as bytes (n, d), their labels (n,), and the gates of a random network on them."""

    x: Tensor
    labels: Tensor
    bits: GateBits

    @staticmethod
    def drawn(n: int, seed: int) -> Points:
        made = torch.Generator().manual_seed(seed)
        labels = torch.randint(CLASSES, (n,), generator=made)
        # A cluster is a class in one of several shapes, so that no linear function separates the classes.
        shapes = torch.rand(CLASSES, 4, FEATURES, generator=made)
        x = shapes[labels, torch.randint(4, (n,), generator=made)] * 160
        for rows in torch.arange(n).split(GATED):
            x[rows] += 60 * torch.randn(len(rows), FEATURES, generator=made)
        x = x.clamp_(0, 255).to(torch.uint8)
        net = fc_spec(FEATURES, WIDTHS, CLASSES).relu_net(seed)
        parts = [gatedops.record_gates(net, x[rows].float() / 255) for rows in torch.arange(n).split(GATED)]
        return Points(x, labels, GateBits.cat(parts))

    def targets(self) -> Tensor:
        return one_hot(self.labels, CLASSES)


def product_entries(points: Points, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times products with 10 columns. Each is compared with npk_matvec of the same x."""
    v = torch.randn(len(points.x), 10, generator=torch.Generator().manual_seed(args.seed))
    floats = points.x.float() / 255
    inputs = {
        "Lambda": None,
        "bytes": points.x,
        "bytes / 255 in float32": floats,
        # No number divides these.
        "other float32": floats + 0.1 * torch.sin(torch.arange(FEATURES)),
    }
    contest = Contest(f"n={len(points.x)}, 10 columns", failures)
    for what, x in inputs.items():
        operator = NPKOperator(points.bits, x, cache="none")
        gram = gatedops.npk_gram(x, points.bits)
        check = partial(error_of, gram.double() @ v.double())
        contest.enter(what, "npk_matvec", always(partial(gatedops.npk_matvec, x, points.bits, v)), check=check)
        contest.enter(
            what, OURS, always(partial(operator.product, v)), check=check, facts={"sigma": operator.sigma.kind}
        )
        contest.enter(what, "a stored Gram", always(partial(torch.matmul, gram, v)), check=check)
    return contest.run(args.repeats)


def column_entries(points: Points, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times products of Lambda with more and more columns, in both dtypes of v."""
    contest = Contest(f"Lambda, n={len(points.x)}", failures)
    operator = NPKOperator(points.bits)
    gram = gatedops.npk_gram(None, points.bits).double()
    for columns in COLUMNS:
        v = torch.randn(len(points.x), columns, dtype=torch.float64)
        for by, side in (("float32 v", v.float()), ("float64 v", v)):
            check = partial(error_of, gram @ side.double())
            contest.enter(f"{columns} columns", by, always(partial(operator.product, side)), check=check)
    base = ("10 columns", "float32 v")
    return contest.run(args.repeats, base=base)


def error_of(expected: Tensor, call: Call) -> Mapping[str, object]:
    """Returns the error of a product, relative to the largest number; raises RuntimeError if it is more than
    rounding."""
    error = float((call() - expected).abs().max() / expected.abs().max())
    if not error < LARGEST_ERROR:
        raise RuntimeError(f"the product is wrong by {error:.1e} of its largest number")
    return {"largest_error": error}


def ridge_entries(args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times kernel_ridge with Lambda by both methods, once each after a run on fewer points, and compares their
    predictions."""
    everything = Points.drawn(args.ridge_n + TESTED, args.seed)
    train, test = slice(args.ridge_n), slice(args.ridge_n, None)
    bits, targets = everything.bits[train], everything.targets()[train]
    cross = NPKOperator(everything.bits[test], y_bits=bits)
    scores: dict[str, Tensor] = {}
    contest = Contest(f"n={args.ridge_n}, Lambda, {CLASSES} columns, ridge {RIDGE:g}", failures)

    def solver(method: str) -> Callable[[], Solution]:
        return lambda: kernel_ridge(NPKOperator(bits), targets, RIDGE, method=method, progress=False)

    def check(method: str, call: Call) -> Mapping[str, object]:
        solution = call()
        scores[method] = solution.predict(cross)
        right = (scores[method].argmax(1) == everything.labels[test]).double().mean().item()
        exact = scores["cholesky"]
        alike = (scores[method].argmax(1) == exact.argmax(1)).double().mean().item()
        off = float((scores[method] - exact).abs().max())
        return {"accuracy": right, "same_class": alike, "largest_difference": off, "iterations": solution.iterations}

    for by, method in (("Gram and Cholesky", "cholesky"), (OURS, "cg")):
        contest.enter("kernel_ridge", by, always(solver(method)), check=partial(check, method))
    return contest.run(3, least=3)


def nystrom_entries(args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times nystrom once: it takes minutes."""
    points = Points.drawn(args.nystrom_n + TESTED, args.seed)
    train, test = slice(args.nystrom_n), slice(args.nystrom_n, None)
    bits, targets = points.bits[train], points.targets()[train]
    begun = time.perf_counter()
    solution = nystrom(NPKOperator(bits), targets, RIDGE, centres=args.centres)
    seconds = time.perf_counter() - begun
    scores = solution.predict(NPKOperator(points.bits[test], y_bits=bits[solution.centres]))
    right = (scores.argmax(1) == points.labels[test]).double().mean().item()
    problem = f"n={args.nystrom_n}, Lambda, {args.centres} centres"
    return [Entry(problem, "nystrom", OURS, seconds, seconds, 1, facts={"accuracy": right})]


def run(args: argparse.Namespace) -> int:
    if "nystrom" in args.only and args.centres > args.nystrom_n:
        raise ValueError(f"--centres {args.centres} is more than the {args.nystrom_n} points of --nystrom-n")
    results = Results(args, "solve")
    if "products" in args.only:
        points = Points.drawn(args.n, args.seed)
        with results.section("what a product with the kernel costs"):
            parts = [("products", partial(product_entries, points, args, results.failures))]
            results.time_parts("products", parts, ("sigma", "largest_error"))
            parts = [("columns", partial(column_entries, points, args, results.failures))]
            results.time_parts("columns", parts)
    if "ridge" in args.only:
        with results.section("ridge regression"):
            parts = [("ridge", partial(ridge_entries, args, results.failures))]
            results.time_parts("ridge", parts, ("iterations", "accuracy", "same_class", "largest_difference"))
    if "nystrom" in args.only:
        with results.section("many points, few centres"):
            parts = [("nystrom", partial(nystrom_entries, args, results.failures))]
            results.time_parts("nystrom", parts, ("accuracy",))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
