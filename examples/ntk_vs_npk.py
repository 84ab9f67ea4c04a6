"""Compares the tangent kernel of the value weights with the neural path kernel, over the width of the network.

The script draws value weights many times under the hard gates of a random ReLU net, and computes the tangent kernel K^V
of each draw (gatedops.ntk). The mean of K^V is d sigma^(2 (d - 1)) H at every width, and single draws come closer to
this mean as the width grows (docs/math.md, sections 4 and 14). Writes OUT/ntk_vs_npk.json and OUT/ntk_vs_npk.png.

    python examples/ntk_vs_npk.py
    python examples/ntk_vs_npk.py --widths 32 512 --depth 6 --draws 400
"""

from __future__ import annotations

import argparse
import sys

import torch
from _common.machine import machine_report
from _common.options import at_least, options_json, require_memory, run_script, script_parser
from _common.output import print_table, write_json_atomically
from _ntk_vs_npk.draws import HEADER, concentration, draw_kernels

from gatedops import data

WIDTHS = (16, 64, 256, 1024)
QUICK_WIDTHS = (16, 64)
DRAWS = 200
# Narrow nets get up to this many times as many draws, because their draws scatter more and cost less.
MOST_DRAWS = 4
# At the worst moment this many (n, parameters) arrays of float32 are alive.
ARRAYS = 4


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "data", "plot")
    add = options.add_argument
    add("--n", type=at_least(2), default=12, help="points of a kernel (default: %(default)s)")
    add("--depth", type=at_least(2), default=4, help="weight layers, one more than gated layers (default: %(default)s)")
    sizes = options.add_mutually_exclusive_group()
    listed = ", ".join(map(str, WIDTHS))
    sizes.add_argument(
        "--widths", type=at_least(1), nargs="+", metavar="W", help=f"gates per layer (default: {listed})"
    )
    sizes.add_argument("--quick", action="store_true", help="draw narrow nets only, which takes seconds")
    add("--draws", type=at_least(2), default=DRAWS, help="draws of weights in the widest net (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> None:
    widths = sorted(set(args.widths or (QUICK_WIDTHS if args.quick else WIDTHS)))
    images = data.load(args.data, args.data_dir, n=args.n, seed=args.seed)
    x = images.inputs(torch.cat([images.train_images, images.test_images]).flatten(1))
    largest = widths[-1] * (x.shape[1] + (args.depth - 2) * widths[-1])
    require_memory(ARRAYS * 4 * args.n * largest, f"the derivatives of {args.n} points at width {widths[-1]}")
    report = machine_report()
    print(
        f"{args.data}: {args.n} points, {args.depth - 1} gated layers, no biases;"
        " value weights are normal with variance 2 / width"
    )
    drawn = []
    for width in widths:
        draws = args.draws * min(MOST_DRAWS, widths[-1] // width)
        drawn.append(draw_kernels(x, width, args.depth, draws, args.seed))
    figures = [concentration(one) for one in drawn]
    print_table(HEADER, [one.row() for one in figures])
    print(
        "expected is d sigma^(2 (d - 1)) H; |z| is the difference between mean and expected in standard errors, the"
        " largest of all pairs"
    )
    content = {
        "machine": report,
        "options": options_json(args),
        "widths": [one.to_json() for one in figures],
    }
    write_json_atomically(args.out / "ntk_vs_npk.json", content)
    print(f"\nwrote {args.out / 'ntk_vs_npk.json'}")
    if not args.no_plot:
        from _ntk_vs_npk.picture import plot_concentration

        title = (
            f"Tangent kernel of the value weights and path kernel: {args.n} points of {args.data}, depth {args.depth}"
        )
        plot_concentration(args.out / "ntk_vs_npk.png", drawn, figures, title)
        print(f"wrote {args.out / 'ntk_vs_npk.png'}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
