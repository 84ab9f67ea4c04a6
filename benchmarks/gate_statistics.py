"""What gates do, counted on bits, for a million inputs: gate_stats, gate_change, count_regions, naswot_score.

The gates are random. By default they are those of the papers' network, 5 x 128 gates, which take 160 bytes an input.
The limit of each function is to read its bits once: the time in which torch adds their words up as 64-bit integers.
Writes OUT/gate_statistics.json.

    python benchmarks/gate_statistics.py
    python benchmarks/gate_statistics.py --n 100000 --widths 1024 1024
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from _common.contest import OURS, Contest, always
from _common.options import at_least, require_memory, run_script, script_parser
from _common.output import Results, print_entries
from _common.problems import random_bits

from gatedops import GateBits, count_regions, gate_stats, naswot_score
from gatedops.stats import gate_change

NASWOT_BATCH = 128  # as in the paper
REPEATS = 5
LIMIT = "reading the bits"


def read(*read_bits: GateBits) -> None:
    for bits in read_bits:
        bits.words.view(torch.int64).sum()


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    add = options.add_argument
    add("--n", type=at_least(NASWOT_BATCH), default=1_000_000, help="inputs (default: %(default)s)")
    add("--widths", type=at_least(1), nargs="+", default=[128] * 5, help="gates of each layer (default: 5 x 128)")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed runs of each, at most (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> int:
    row_bytes = sum(-(-width // 256) * 32 for width in args.widths)
    require_memory(4 * args.n * row_bytes, "gates, a second checkpoint and their parts")
    results = Results(args, "gate_statistics", family="gates")
    bits, later = (random_bits(args.n, args.widths, seed) for seed in (args.seed, args.seed + 1))
    problem = f"{args.n} inputs, {sum(args.widths)} gates in {len(args.widths)} layers"
    with results.section(f"{problem}, {bits.nbytes / 1e6:.0f} MB of bits"):
        contest = Contest(problem, results.failures)

        def enter(what: str, function: Callable[..., object], *inputs: GateBits) -> None:
            contest.enter(what, OURS, always(partial(function, *inputs)))
            contest.enter(what, LIMIT, always(partial(read, *inputs)))

        enter("gate_stats", gate_stats, bits)
        enter("gate_change", gate_change, bits, later)
        enter("count_regions", count_regions, bits)
        enter(f"naswot_score, batches of {NASWOT_BATCH}", partial(naswot_score, batch_size=NASWOT_BATCH), bits)
        entries = contest.run(args.repeats, least=1, seconds=15, limits=(LIMIT,))
        print_entries(entries)
        regions = count_regions(bits)
        print(f"{regions.net} regions of the net, {', '.join(map(str, regions.layers))} of its layers")
    counted = {"net": regions.net, "layers": list(regions.layers)}
    results.add(bytes=bits.nbytes, entries=[entry.to_json() for entry in entries], regions=counted)
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
